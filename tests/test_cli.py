"""The command line as a person meets it: real processes, 80 columns, messages that help."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from support.command import contrapose


def test_help_is_quick_and_imports_no_torch():
    start = time.perf_counter()
    done = contrapose("--help", fresh=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0 and "train" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    code = "import sys, contrapose, contrapose.cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert seconds < 2.0, seconds  # 0.5 s on a quiet machine; this bound only catches torch


def test_help_flows_over_the_width_of_the_terminal():
    said = contrapose("study", "--help").stdout.splitlines()
    first = next(k for k, line in enumerate(said) if "Short runs on some" in line)
    assert len(said[first]) == 80 and said[first + 1].startswith(" Without labels signals")
    said = [line.strip() for line in contrapose("train", "--help").stdout.splitlines()]
    assert any(line.startswith("On Slurm:") for line in said)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on a folder of class subfolders with a file that is no image in it."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for c, name in enumerate(["<script>alert(1)</script>".replace("/", "∕"), "b & c"]):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(40):
            pixel = random.integers(0, 60, (12, 12, 3)) + 90 * c
            Image.fromarray(pixel.astype(np.uint8)).save(root / "photos" / name / f"{i}.png")
    (root / "photos" / "b & c" / "broken\x1b[2J\n.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    done = contrapose(
        "train", "photos", "--encoder", "small_conv", "--epochs", 2, "--batch-size", 16,
        "--out", "run", "--device", "cpu", cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done


def test_train_ends_with_a_verdict_and_a_report(run):
    root, done = run
    assert "left out photos/b & c/broken\\x1b[2J\\n.png: " in done.stdout
    assert "\x1b" not in done.stdout
    assert "Verdict" in done.stdout and "report.html" in done.stdout
    assert "linear probe accuracy on h" in done.stdout
    page = (root / "run" / "report.html").read_text()
    assert "<script>alert(1)" not in page
    for name in ("recipe", "environment", "status", "evaluation", "diagnosis"):
        json.loads((root / "run" / f"{name}.json").read_text())


def test_a_finished_run_resumed_says_that_nothing_is_left_to_do(run):
    done = contrapose("train", "--resume", "run", "--no-explain", "--device", "cpu", cwd=run[0])
    assert done.returncode == 0, done.stderr
    assert "run is finished, 10 steps: nothing left to do" in " ".join(done.stdout.split())


def test_evaluate_diagnose_embed_and_report_take_the_run(run):
    root, _ = run
    assert "kNN accuracy on h" in contrapose("evaluate", "run", cwd=root).stdout
    assert "uniformity" in contrapose("diagnose", "run", cwd=root).stdout
    done = contrapose("embed", "run", "photos", "--out", "e.npz", cwd=root)
    assert "80 images" in done.stdout, done.stderr
    with np.load(root / "e.npz") as saved:
        assert saved["h"].shape[0] == saved["z"].shape[0] == len(saved["label"]) == 80
    again = contrapose("embed", "run", "photos", "--out", "e.npz", cwd=root)
    assert again.returncode == 2 and "exists" in again.stderr
    assert contrapose("embed", "run", "photos", "--out", "e.parquet", cwd=root).returncode == 0
    np.save(root / "labels.npy", np.arange(80) % 2)
    done = contrapose("diagnose", "e.npz", "--labels", "labels.npy", cwd=root)
    assert "effective rank" in done.stdout and "Verdict" in done.stdout, done.stderr
    assert contrapose("report", "run", "run", "--out", "both.html", cwd=root).returncode == 0


ERRORS = {
    ("train",): "name the images",
    ("train", "digitz"): "digits",
    ("train", "digits", "--recipe", "simcrl"): "did you mean 'simclr'",
    ("train", "digits", "--encoder", "resnet19"): "did you mean 'resnet18'",
    ("train", "digits", "--set", "loss.temprature=1"): "did you mean 'temperature'",
    ("train", "digits", "--set", "loss.temperature"): "path=value",
    ("train", "digits", "--temperature", "0"): "use a positive number",
    ("train", "digits", "--epochs", "-1"): "use a positive number",
    ("train", "digits", "--batch-size", "5000"): "fewer than a batch",
    ("train", "digits", "--size", "0"): "size=0: use a positive number",
    ("train", "digits", "--seed", "-1"): "seed=-1: use at least 0",
    ("train", "digits", "--seed", "1" + 30 * "0"): "to less than 2^63",
    ("train", "digits", "--groups", "(a)(b)"): "a pattern has one part in parentheses",
    ("train", "digits", "--groups", "none.csv"): "none.csv",
    ("train", ""): "an empty name",
    ("train", "~nobody-of-that-name/x"): "no such file or folder",
    ("train", "digits", "--device", "cuda:7"): "--device cuda:7",
    ("train", "digits", "--device", "tpu"): "auto, cpu, cuda",
    ("train", "digits", "--precision", "fp8"): "auto, fp32 or bf16",
    ("train", "digits", "--out", "."): "exists",
    ("train", "digits", "--resume", "nowhere", "--seed", "3"): "leave out --seed",
    ("train", "--resume", "nowhere"): "nowhere does not exist",
    ("train", "empty"): "empty",
    ("evaluate", "empty"): "recipe.json",
    ("diagnose", "nan.npy"): "NaN",
    ("diagnose", "good.npy", "--labels", "short.npy"): "7 labels for 20",
    ("embed", "nowhere", "digits", "--out", "x.txt"): "nowhere",
    ("report", "nowhere"): "nowhere",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = tmp_path_factory.mktemp("desk")
    (desk / "empty").mkdir()
    rows = np.random.default_rng(0).normal(size=(20, 4))
    np.save(desk / "good.npy", rows)
    np.save(desk / "short.npy", np.arange(7))
    rows[3, 2] = np.nan
    np.save(desk / "nan.npy", rows)
    return desk


def test_every_error_repeats_the_request_and_says_what_to_do(desk):
    """In one process, since each start of torch costs seconds; the messages are the same."""
    code = (
        "import contextlib, io, json, sys\nfrom contrapose.cli import main\nfound = []\n"
        "for arguments in json.load(sys.stdin):\n"
        "    sys.argv = ['contrapose', *arguments]; said = io.StringIO()\n"
        "    with contextlib.redirect_stderr(said):\n"
        "        try: main(); status = 0\n"
        "        except SystemExit as stop: status = stop.code\n"
        "    found.append([status, said.getvalue()])\n"
        "print('\\n' + json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(list(ERRORS)), capture_output=True,
        text=True, cwd=desk, env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for (arguments, says), (status, message) in zip(ERRORS.items(), found, strict=True):
        assert status == 2, (arguments, status, message)
        assert message.startswith("error: ") and says in message, (arguments, message)
        assert "Traceback" not in message
    assert not (desk / "runs").exists()


def test_a_verdict_is_wrapped_with_an_indent_and_no_word_is_lost(capsys):
    from contrapose.commands import console

    sentence = " ".join(f"word{i}" for i in range(60))
    console.print_findings([{"state": "no better", "level": "warn", "sentence": sentence}])
    _, first, *others = capsys.readouterr().out.rstrip().splitlines()
    assert first.startswith("  no better: word0") and len(others) > 2
    assert all(line.startswith("    word") for line in others)
    assert " ".join(line.strip() for line in (first, *others)) == f"no better: {sentence}"


def test_list_names_everything():
    done = contrapose("list")
    assert "…" not in done.stdout
    for name in ("simclr", "supcon", "cifar10", "digits", "resnet18", "small_conv", "nt_xent"):
        assert name in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_torchrun_is_refused_by_commands_that_would_run_whole_in_each_process():
    other = contrapose("transfer", "run", RANK="0", WORLD_SIZE="2")
    assert other.returncode == 2 and "error: contrapose transfer: torchrun" in other.stderr


def test_without_file_locks_as_on_windows_a_sentence_says_so(tmp_path):
    """Without `fcntl`, which Windows lacks: the command line and what locks a run folder say so."""
    lacking = "import sys; sys.modules['fcntl'] = None; "
    line = "from contrapose.cli import main; sys.argv = ['contrapose', 'train', 'digits']; main()"
    done = subprocess.run([sys.executable, "-c", lacking + line], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: contrapose does not support Windows; use WSL" in done.stderr
    call = "from contrapose.files import held; held(Path()).__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; {lacking}{call}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert "ImportError: contrapose does not support Windows; use WSL" in done.stderr


def test_how_pixels_are_read_can_be_told(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    values = np.random.default_rng(0).integers(-1024, 3000, (8, 16, 16)).astype(np.int32)
    for k, x in enumerate(values):
        Image.fromarray(x).save(folder / f"{k}.tif")
    sheet = ["show", folder, "--out", tmp_path / "sheet.png"]
    refused = contrapose(*sheet)
    assert refused.returncode == 2 and "--range -1024:2" in refused.stderr
    shown = contrapose(*sheet, "--range", "-1024:3071", "--max-pixels", "256")
    assert shown.returncode == 0 and "values -1024:3071 read as black to white" in shown.stdout
    huge = contrapose(*sheet, "--range", "-1024:3071", "--max-pixels", "255")
    assert huge.returncode == 2 and "--max-pixels 256 " in huge.stderr
