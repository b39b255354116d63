"""What long work says of itself, on a terminal and in a file; and what an interrupt leaves."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from support.command import contrapose

from contrapose import api, explain
from contrapose.commands import console as look
from contrapose.data import open_images
from contrapose.data.threads import each
from contrapose.progress import counted, listening, stage


def test_stages_lie_within_one_another_and_end_with_their_block():
    said = []
    with listening(said.append):
        with stage("probes"):
            assert list(counted("ab", "pixels")) == ["a", "b"]
        assert each(str, range(3), "decoding") == ["0", "1", "2"]
    list(counted("ab", "nobody listens any more"))
    assert said == [
        "probes", "probes: pixels, 0%", "probes: pixels, 50%", "probes", "",
        "decoding, 0%", "decoding, 33%", "decoding, 67%", "",
    ]  # fmt: skip


@pytest.fixture
def file(monkeypatch):
    """Standard output as a file, where a minute is 20 ms."""
    written = io.StringIO()
    monkeypatch.setattr(look, "console", Console(file=written, width=80, highlight=False))
    monkeypatch.setattr(look, "EVERY", 0.02)
    return written


def test_in_a_file_training_and_evaluation_say_where_they_are(file, tmp_path):
    images = open_images("digits")
    with look.TrainingProgress() as watching:
        run = api.train(
            "simclr", images, epochs=2, out=tmp_path / "run", device="cpu", held_out=0.2,
            watch=watching.step, begin=watching.begin,
        )  # fmt: skip
    lines = file.getvalue().splitlines()
    steps = [line.split() for line in lines if line.strip().startswith("step")]
    assert len(steps) > 2 and all(line[0] == "step" for line in steps)
    assert all("loss" in line and "images/s" in line for line in steps)
    assert all(line[-1] == "left" for line in steps[:-1])
    done, steps_of_all = steps[-1][1].split("/")
    assert done == steps_of_all  # the end is said, however short the run
    with look.working("evaluating"):
        explain.evaluate(explain.Subject.open(run, images, "cpu"))
    said = file.getvalue()
    for what in ("h: linear probe", "the encoder before training", "raw pixels", "so far)"):
        assert what in said, what


def test_on_a_terminal_one_line_changes_and_none_is_left(monkeypatch):
    written = io.StringIO()
    terminal = Console(file=written, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(look, "console", terminal)
    with look.working("evaluating"), stage("raw pixels"):
        time.sleep(0.25)  # it is drawn ten times a second
    assert "evaluating: raw pixels" in written.getvalue()
    assert written.getvalue().endswith("\x1b[2K")


def test_an_interrupt_within_code_from_a_string_ends_with_the_status_of_any_other(tmp_path):
    module = "from contrapose import cli\n"
    module += "cli.app = lambda **_: exec('raise KeyboardInterrupt')\ncli.main()\n"
    (tmp_path / "interrupted.py").write_text(module)
    command = [sys.executable, "-m", "interrupted"]  # python FILE has no such case
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip() == "interrupted", done


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_training_says_what_stands_and_how_to_go_on(tmp_path, kind):
    x = np.random.default_rng(0).integers(0, 255, (600, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", x_train=x, y_train=np.arange(600) % 20)
    command = [sys.executable, "-m", "contrapose", "train", "noise.npz", "--epochs", "0.1"]
    command += ["--batch-size", "32", "--out", "run", "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"COLUMNS": "80"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    status = tmp_path / "run" / "status.json"
    while not status.exists() or json.loads(status.read_text())["state"] != "finished":
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "the encoder is trained and saved in run" in err
    assert "contrapose train --resume run" in err and "Traceback" not in err
    assert not (tmp_path / "run" / "report.html").exists()
    if kind == signal.SIGTERM:
        return
    done = contrapose("train", "--resume", "run", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "run" / "report.html").exists(), done.stderr
