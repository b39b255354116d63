"""What the documents show is run: every Python block, every command."""

import inspect
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from contrapose import augment, encoders, experiments, keys, losses, recipes
from contrapose.commands.console import console
from contrapose.commands.jobs import print_experiments
from contrapose.commands.list_ import print_inventory

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("contrapose ")
]
# the commands stand as a person types them; here the images are few, so batches and epochs are too,
# and most networks are narrow
FEW = ["--epochs", "1", "--batch-size", "8"]
NARROW = ["--set", "backbone.width=64"]
SHARE = 4  # of the epochs that a command asks for one is enough to show that it runs


def picture(i: int) -> Image.Image:
    pixel = np.random.default_rng(i).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    return Image.fromarray(pixel)


def shard(folder: Path, name: str, n: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        picture(i).save(folder / "x.png")
        rows.append({"bytes": (folder / "x.png").read_bytes(), "path": f"{i}.png"})
    (folder / "x.png").unlink()
    features = {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}
    table = pa.table({"image": rows, "label": [i % 2 for i in range(n)]})
    metadata = {"huggingface": json.dumps({"info": features})}
    pq.write_table(
        table.replace_schema_metadata(metadata), folder / f"{name}-00000-of-00001.parquet"
    )


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = tmp_path_factory.mktemp("desk")
    for i in range(24):
        folder = desk / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
        number = np.random.default_rng(i)
        for name in ("scans", "bands", "heights", "clips"):
            (desk / name).mkdir(exist_ok=True)
        scan = number.integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(scan).save(desk / "scans" / f"{i}.png")
        band = number.integers(0, 255, (32, 32, 5)).astype(np.uint8)
        height = (number.random((32, 32, 2)) * (255, 4095)).astype(np.uint16)
        for name, x in (("bands", band), ("heights", height)):
            tifffile.imwrite(
                desk / name / f"{i}.tif", x, photometric="minisblack", planarconfig="contig"
            )
        picture(i).save(desk / "clips" / f"clip{i // 4}_{i:02}.png")
    shard(desk / "shards", "train", 24)
    shard(desk / "root" / "cifar10", "train", 24)
    shard(desk / "root" / "cifar10", "test", 8)
    return desk


def test_every_command_of_the_readme_runs(desk):
    """One process for all, in the order shown, since each builds on those before it."""
    wanted = []
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        for k, word in enumerate(arguments[1:]):
            if arguments[k] == "--epochs":
                arguments[k + 1] = str(math.ceil(int(word) / SHARE))
        small = any("digits" in a for a in arguments)
        new = arguments[0] == "train" and "--resume" not in arguments
        unnamed = new and "--encoder" not in arguments and len(wanted) > 0  # the first as shown
        brief = [] if small or not new else FEW
        brief = [*brief, *(["--encoder", "small_conv"] if unnamed and not small else [])]
        brief = [*brief, *(NARROW if unnamed and "--start" not in arguments else [])]
        wanted.append([*arguments, *brief])
    assert len(wanted) >= 10
    code = (
        "import json, sys\nfrom contrapose.cli import main\n"
        "for arguments in json.load(sys.stdin):\n"
        "    sys.argv = ['contrapose', *arguments]; print('$', *sys.argv)\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, (arguments, stop.code)\n"
    )
    environment = {
        **os.environ, "CONTRAPOSE_DATA": str(desk / "root"), "CONTRAPOSE_CACHE": "off",
        "COLUMNS": "80",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(wanted), capture_output=True, text=True,
        cwd=desk, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (desk / "mine.html").is_file()
    # a path is never broken, however deep the folder in which this runs
    shown = [x for x in done.stdout.splitlines() if not x.startswith("$ ") and str(desk) not in x]
    assert [line for line in shown if len(line) > 80] == []


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_every_snippet_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_the_first_screen_names_the_two_commands_and_shows_a_picture():
    first = README.splitlines()[:20]
    for wanted in ("make demo", "make test", "docs/report.png"):
        assert any(wanted in line for line in first), wanted
    assert (ROOT / "docs" / "report.png").is_file()


def test_make_targets_that_the_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_recipe_and_experiment_says_what_to_expect_and_the_lists_print_it():
    """A result and a time, both with a number: a stranger knows what a command will give."""
    expected = [
        *(recipes.expectation(name) for name in recipes.names()),
        *(experiments.expectation(name) for name in experiments.names()),
    ]
    for sentence in expected:
        assert re.match(r"Expect .*\d", sentence), sentence
        assert re.search(r"\d (s|min|h)\b", sentence), sentence
    with console.capture() as shown:
        print_inventory()
        print_experiments()
    printed = " ".join(shown.get().split())
    for sentence in expected:
        assert sentence in printed
    shown = {**augment.__dict__, **losses.__dict__, **keys.__dict__, **encoders.__dict__}
    for name, function in shown.items():
        if inspect.isfunction(function) and not name.startswith("_"):
            first = (function.__doc__ or "").strip().partition("\n")[0]
            assert first.endswith((".", ".)")), f"{name}: a list would cut {first!r}"
