"""Imports point down only, and what is imported lazily stays so."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "contrapose"
GROUND = {"version", "errors", "files", "progress", "partials", "machine", "threads", "processes"}
GROUND |= {"paired", "portions", "slurm", "compiler"}
MACHINERY = {
    f"experiments.{n}"
    for n in ("form", "evidence", "charts", "noise", "trained", "measures", "running")
}
LABS = {f"experiments.{n}" for n in ("simclr", "supervised", "suppression", "temperature")}
# every name at the top level of the package, from the bottom up: a layer may import those before it
LAYERS = [
    GROUND,
    {"similarity", "augment", "data", "encoders"},
    {"losses"},
    {"keys"},
    {"evaluation"},
    {"training"},
    {"recipes"},
    {"report", "bench", "verification"},
    {"adapt"},
    {"plan"},
    {"prepare"},
    {"api"},
    {"explain", "estimator", "verification.training"},
    {"downstream"},
    {"experiments"} | MACHINERY,
    LABS | {"studies"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NEVER = {  # what the order alone would permit
    "report": set(LEVEL) - {"report", "files", "progress", "version", "errors", "paired"},
    "encoders": {"data", "augment", "similarity"},
    "similarity": {"data", "augment", "encoders"},
    "augment": {"data", "encoders"},
    "data": {"encoders"},
    "losses": {"augment", "data", "encoders"},
    "bench": {"recipes", "evaluation", "keys", "data", "augment", "encoders"},
    "verification": {"recipes", "evaluation"},
    "studies": LABS,
    "experiments": LABS - LABS,
}


def name_of(module: str) -> str:
    """The name in LAYERS of `contrapose.a.b.c`: `a`, or `a.b` where a has parts of its own."""
    parts = module.split(".")[1:3]
    return ".".join(parts) if ".".join(parts) in LEVEL else parts[0] if parts else ""


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def files() -> list[tuple[str, Path]]:
    """(name in LAYERS, file) of every file of the package but its `__init__`."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        module = ".".join(("contrapose", *path.relative_to(SRC).with_suffix("").parts))
        if module != "contrapose.__init__":
            found.append((name_of(module.removesuffix(".__init__")), path))
    return found


def test_every_name_of_the_package_has_its_layer():
    there = {p.stem if p.is_file() else p.name for p in SRC.iterdir() if p.suffix in ("", ".py")}
    there -= {"__init__", "__pycache__"}
    assert there == {name for name in LEVEL if "." not in name}
    inner = {p.stem for p in (SRC / "experiments").iterdir()} - {"__init__", "__pycache__"}
    assert {f"experiments.{name}" for name in inner} == MACHINERY | LABS


@pytest.mark.parametrize("layer", sorted(LEVEL))
def test_imports_point_down(layer):
    for name, path in files():
        if name != layer:
            continue
        used = {name_of(m) for m in imports(path) if m.partition(".")[0] == "contrapose"} - {""}
        assert used <= set(LEVEL), path
        if path == SRC / "experiments" / "__init__.py":
            used -= LABS  # it lists them
        above = {n for n in used - {layer} if LEVEL[n] > LEVEL[layer]}
        beside = used & NEVER.get(layer, set())
        other_lab = used & LABS - {layer} if layer in LABS else set()
        assert not above | beside | other_lab, path


def test_nobody_imports_the_commands_but_the_command_line():
    for name, path in files():
        if name not in ("commands", "cli"):
            assert not any(m.startswith("contrapose.commands") for m in imports(path)), path


def test_the_report_needs_no_torch():
    for name, path in files():
        if name in ("report", "files", "progress", "version", "errors"):
            used = {module.split(".")[0] for module in imports(path)}
            assert not used & {"torch", "torchvision"}, path


@pytest.mark.parametrize(
    "module",
    ["contrapose", "contrapose.report", "contrapose.cli", "contrapose.experiments.evidence"],
)
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_takes_a_second_to_import_is_not_imported_before_it_is_needed():
    slow = {"torchvision", "sklearn", "torch._dynamo", "scipy", "plotly"}
    code = f"import sys, contrapose.explain; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [], done
