"""Imports point down only, and what is imported lazily stays so."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "contrapose"
BOTTOM = {"similarity", "augment", "encoders", "data"}
BELOW = {
    "similarity": set(),
    "augment": set(),
    "encoders": set(),
    "data": set(),
    "losses": {"similarity"},
    "keys": {"similarity", "encoders"},
    "evaluation": BOTTOM | {"losses"},
    "training": BOTTOM | {"losses", "keys", "evaluation"},
    "recipes": BOTTOM | {"losses", "keys", "evaluation", "training"},
    "experiments": BOTTOM | {"losses", "keys", "evaluation", "training", "recipes"},
    "bench": {"similarity", "losses", "training"},
    "verification": {"similarity", "losses", "keys", "training"},
    "report": set(),
}


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


def files(layer: str) -> list[Path]:
    return [*(SRC / layer).rglob("*.py"), *SRC.glob(f"{layer}.py")]


@pytest.mark.parametrize("layer", BELOW)
def test_imports_point_down(layer):
    layers = set(BELOW)
    for path in files(layer):
        parts = (name.split(".") for name in imports(path))
        used = {p[1] for p in parts if p[0] == "contrapose" and len(p) > 1} & layers
        assert used <= BELOW[layer] | {layer}, path


ABOVE = {"api", "explain", "estimator", "reproduce", "cli", "__main__"}


@pytest.mark.parametrize("layer", BELOW)
def test_only_experiments_call_what_trains_a_run_whole(layer):
    allowed = {"api", "explain"} if layer == "experiments" else set()
    for path in files(layer):
        parts = (name.split(".") for name in imports(path))
        used = {p[1] for p in parts if p[0] == "contrapose" and len(p) > 1} & ABOVE
        assert used <= allowed, path


def test_the_report_needs_no_torch():
    for path in files("report"):
        assert not any(name.split(".")[0] in ("torch", "torchvision") for name in imports(path)), (
            path
        )


@pytest.mark.parametrize(
    "module",
    ["contrapose", "contrapose.report", "contrapose.cli", "contrapose.experiments.evidence"],
)
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
