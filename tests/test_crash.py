"""What is left of a run after a kill, damage or a full disk, and that the way back is exact."""

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.quick_recipe import quick

import contrapose
from contrapose import api
from contrapose.bench.run import new_folder
from contrapose.data import open_images
from contrapose.data.composed import write_sheet
from contrapose.encoders import Encoder, read_weights
from contrapose.errors import UserError
from contrapose.experiments.form import Job
from contrapose.experiments.running.folders import JobFolder, begin, finish, note_progress
from contrapose.explain.embeddings import write_embeddings
from contrapose.files import HeldElsewhere, held, replace_file, unfinished, was_killed
from contrapose.report import write_report
from contrapose.studies import shortcuts, tuning
from contrapose.training.loop import InterruptedTraining
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def digits():
    return open_images("digits").subset(torch.arange(256))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    """A finished run of ten steps with checkpoints of steps 9 and 10."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return contrapose.train(tiny(), digits, out=out, device="cpu").path


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def tiny(**changes) -> Recipe:
    few = {"batch_size": 32, "epochs": 1.25, "warmup": 0}
    return quick(name="tiny", width=8, dim=8, **few | changes)


def weights(path: Path) -> bytes:
    return (path / "encoder.safetensors").read_bytes()


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def say_running(run: Path, process: int = 2**22 - 1, **changes) -> None:
    """The status of a process that is gone; its number is above the system's largest."""
    status = json.loads((run / "status.json").read_text())
    changes = {"state": "running", "pid": process} | changes
    (run / "status.json").write_text(json.dumps(status | changes))


def killed_at_operations(folder: Path, every: int) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / "support" / "killing.py"), str(folder), str(every)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_killed_at_file_operations_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path):
    assert killed_at_operations(tmp_path, 10).startswith("13 of ")


@pytest.mark.slow
def test_a_run_killed_at_every_file_operation_and_again_on_the_way_back(tmp_path):
    tried, _, made = killed_at_operations(tmp_path, 1).split()
    assert tried == made and int(made) > 100


def test_a_kill_between_checkpoint_and_encoder_file_leaves_no_earlier_weights(
    run, finished, digits
):
    shutil.copy(run / "checkpoints/step-00000009/weights.safetensors", run / "encoder.safetensors")
    say_running(run)
    newest = Run.open(run).load_checkpoint()[0]
    assert all(torch.equal(newest[k], v) for k, v in Encoder.load(run).state_dict().items())
    contrapose.resume(run, recipe=tiny(), images=digits, device="cpu")
    assert weights(run) == weights(finished)
    assert Run.open(run).status()["state"] == "finished"


def test_an_interrupted_run_inside_a_study_names_no_inner_folder(tmp_path, digits):
    def press(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedTraining, match=r"stopped at step 2 of 10, saved; the same comm"):
        api.encoder_in(tmp_path / "inner", tiny(), digits, "cpu", press)


def test_training_state_that_cannot_be_read_falls_back_to_the_older_checkpoint_once_and_is_kept(
    run, finished, digits, capsys
):
    torch.save({"step": 10}, run / "checkpoints/step-00000010/training.pt")
    contrapose.resume(run, recipe=tiny(), images=digits, device="cpu")
    said = capsys.readouterr().err
    assert said.count("going on from step-00000009") == 1 and "step-00000010 (KeyError" in said
    assert steps(run) == ["damaged-step-00000010", "step-00000009", "step-00000010"]
    assert weights(run) == weights(finished)
    rows, want = ([row["step"] for row in Run.open(path).metrics()] for path in (run, finished))
    assert rows == want == list(range(1, 11))


def test_where_no_checkpoint_can_be_read_one_message_says_so_and_nothing_is_changed(run, digits):
    for name in steps(run):
        (run / "checkpoints" / name / "training.pt").write_bytes(b"half")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"no checkpoint of .*step-00000010.*step-00000009.*resto"):
        contrapose.resume(run, recipe=tiny(), images=digits, device="cpu")
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {"environment.json", ".lock"} and not unfinished(run)


def test_damaged_weights_are_read_from_the_file_that_is_good(run, finished, capsys):
    newest = run / "checkpoints/step-00000010/weights.safetensors"
    (run / "encoder.safetensors").write_bytes(b"half")
    found, _, file = read_weights(run)
    assert file == newest and found.keys() == Encoder.load(finished).state_dict().keys()
    shutil.copy(newest, run / "encoder.safetensors")  # as after a longer training
    want = Encoder.load(run).state_dict()
    newest.write_bytes(b"half")
    found = Encoder.load(run).state_dict()
    assert all(torch.equal(want[k], v) for k, v in found.items())
    assert "step-00000010/weights.safetensors is damaged" in capsys.readouterr().err
    for file in run.rglob("*.safetensors"):
        file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"encoder\.safetensors is damaged"):
        Encoder.load(run)


NAMED = '{"backbone": "%s", "head": "contrapose.encoders.none"}'


@pytest.mark.parametrize(
    "written, says",
    [
        ("{", "Expecting property name"),
        ("[]", "not an object"),
        ('{"backbone": "x"}', "lacks head"),
        (NAMED % "os.system", "not a function of this"),
        (NAMED % "contrapose.encoders.resnet18", "holds other weights than its backbone"),
    ],
)
def test_an_encoder_file_of_another_shape_is_named(run, written, says):
    weights, _, _ = read_weights(run)
    file = run.parent / "other.safetensors"
    save_file(weights, file, metadata={"encoder": written})
    with pytest.raises(UserError, match=rf"other\.safetensors.*{says}"):
        Encoder.load(file)


def test_a_finished_run_whose_checkpoints_were_removed_is_finished(run, finished, digits):
    Run.open(run).remove_checkpoints()
    contrapose.resume(run, recipe=tiny(), images=digits, device="cpu")
    assert weights(run) == weights(finished)
    say_running(run, steps=99, state="finished")
    with pytest.raises(ValueError, match="checkpoints were removed"):
        contrapose.resume(run, recipe=tiny(), images=digits, device="cpu")


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".recipe.json.4194303.new"]])
def test_a_start_that_was_killed_before_its_recipe_is_taken_over(tmp_path, digits, left):
    out = tmp_path / "run"
    out.mkdir()
    for name in left:
        (out / name).write_text("{")
    with pytest.raises(FileNotFoundError, match="nothing was begun in it"):
        Run.open(out)
    contrapose.train(tiny(epochs=0.125), digits, out=out, device="cpu")
    assert not list(out.glob("*.new")) and (out / "recipe.json").is_file()


def test_a_process_that_was_killed_is_no_longer_called_running(run, digits, capsys):
    say_running(run, step=7)
    assert was_killed(run, json.loads((run / "status.json").read_text())) is True
    status = Run.open(run).status()
    assert status["state"] == "killed" and "memory" in status["reason"]
    verdict = contrapose.diagnose(run, digits, recipe=None, device="cpu")["verdict"]
    assert any("killed" in v["state"] and "step 7 of 10" in v["evidence"] for v in verdict)
    page = write_report([run]).read_text()
    assert "killed" in page and "--resume" in page
    contrapose.resume(run, recipe=tiny(), images=digits, device="cpu")
    assert "was killed after step 7 of 10" in capsys.readouterr().err


def test_a_process_that_lives_or_lives_elsewhere_is_not_called_killed(run):
    say_running(run, process=os.getpid())
    status = json.loads((run / "status.json").read_text())
    with held(run):
        assert was_killed(run, status) is False
        assert was_killed(run, status | {"pid": os.getpid() + 1}) is True  # it would hold the lock
    assert was_killed(run, status) is True
    assert was_killed(run, status | {"host": "another-machine"}) is None
    (run / ".lock").unlink()
    assert was_killed(run, status) is None


def test_the_second_process_at_a_run_folder_is_told_which_is_the_first(run, digits):
    with held(run):
        for work in (
            partial(contrapose.resume, run, recipe=tiny(), images=digits, device="cpu"),
            partial(contrapose.evaluate, run, digits, device="cpu"),
            partial(contrapose.diagnose, run, digits, device="cpu"),
            partial(contrapose.suppression_of, run, images=digits, device="cpu"),
        ):
            with pytest.raises(HeldElsewhere, match=rf"another process.*process {os.getpid()} on"):
                work()


GONE = "(the field is deleted)"
DAMAGE = [
    ("recipe.json", "data.size", "x", r'data\.size is "x", not a whole number'),
    ("recipe.json", "data.fingerprint", GONE, r"data lacks fingerprint"),
    ("recipe.json", "data", [], r"data is \[\], not an object"),
    ("recipe.json", "data.held_out", -1, r"data: held_out=-1"),
    ("recipe.json", "recipe", None, r"recipe is null, not an object"),
    ("recipe.json", "recipe.lr", math.inf, r"recipe\.lr is Infinity, not a finite number"),
    ("recipe.json", "recipe.epochs", True, r"recipe\.epochs is true, not a finite number"),
    ("recipe.json", "recipe.batch_size", -1, r"batch_size=-1: use at least 2"),
    ("recipe.json", "recipe.loss", GONE, r"the recipe lacks loss"),
    ("recipe.json", "recipe.lss", 1, r"a recipe has no 'lss'; did you mean 'loss'"),
    ("recipe.json", "recipe.loss", [], r"\[\] describes no function"),
    ("recipe.json", "recipe.loss.temperature", "x", r"nt_xent: temperature is 'x', not float"),
    ("recipe.json", "recipe.backbone.width", {}, r"describes no function"),
    ("recipe.json", "format", GONE, r"run format None, this version reads 1"),
    ("environment.json", "precision", "x", r'precision is "x", not bf16 or fp32'),
    ("environment.json", "resumed", 3, r"resumed is 3, not a list"),
]


def damage(file: Path, where: str, new: object) -> None:
    """The JSON file with a field changed or deleted."""
    value = inner = json.loads(file.read_text())
    *above, name = where.split(".")
    for field in above:
        inner = inner[int(field) if field.isdecimal() else field]
    name = int(name) if name.isdecimal() else name
    if new == GONE:
        del inner[name]
    else:
        inner[name] = new
    file.write_text(json.dumps(value))


@pytest.mark.parametrize("file, where, new, says", DAMAGE, ids=lambda x: str(x)[:24])
def test_a_damaged_field_of_a_run_is_one_message_with_file_and_field(
    run, digits, file, where, new, says
):
    damage(run / file, where, new)
    with pytest.raises(UserError, match=rf"{file}.*{says}".replace(".json.*", r"\.json.*")):
        contrapose.resume(run, images=digits, device="cpu")


def test_damage_that_does_no_harm_is_said_and_passed_over(run, finished, digits, capsys):
    (run / "status.json").write_text("")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2], lines[4] = '{"step": 3, "loss": "x"}', '{"loss": 1}'
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 11, "lo')
    contrapose.resume(run, images=digits, device="cpu")
    said = capsys.readouterr().err
    assert "status.json is damaged" in said
    assert "metrics.jsonl: 2 of 11 lines cannot be read and are left out, first line 3" in said
    assert weights(run) == weights(finished)
    (run / "pictures.npz").write_bytes(b"half")
    contrapose.diagnose(run, digits, device="cpu")
    assert "pictures.npz is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "where, new", [("0", 3), ("0.metric", GONE), ("0.value", "x"), ("0.n", -1.5)]
)
def test_damaged_scores_are_named_by_diagnose(run, digits, where, new):
    scores = [{"metric": "kNN accuracy", "features": "h", "n": 9, "split": "test", "seed": 0}]
    scores[0] |= {"value": 0.5, "low": 0.4, "high": 0.6, "confidence": 0.95, "protocol": "votes"}
    (run / "evaluation.json").write_text(json.dumps(scores))
    damage(run / "evaluation.json", where, new)
    with pytest.raises(UserError, match=r"evaluation\.json\[0\].*evaluate again"):
        contrapose.diagnose(run, digits, device="cpu")
    damage(run / "evaluation.json", "0", scores[0] | {"value": None})
    assert Run.open(run).scores() == []


def test_images_that_are_gone_or_too_few_for_the_batch_say_what_a_run_can_still_do(run, digits):
    with pytest.raises(UserError, match=r"batches of 32.*16 images.*new run with a smaller"):
        contrapose.resume(run, images=digits.subset(torch.arange(16)), device="cpu")
    damage(run / "recipe.json", "data.source", "moved-away")
    with pytest.raises(UserError, match=r"recipe\.json names images that cannot.*give DATA again"):
        contrapose.resume(run, device="cpu")


@pytest.mark.parametrize(
    "name, where, new, says",
    [
        ("job.json", "fingerprint", GONE, "lacks fingerprint; delete it"),
        ("result.json", "measures", [], r"measures is \[\], not an object; delete it"),
        ("result.json", "seconds", None, "seconds is null, not a finite number"),
        ("running.json", "pid", "x", 'pid is "x", not a whole number'),
        ("progress.json", "share", math.inf, "share is Infinity"),
    ],
)
def test_a_damaged_file_of_a_job_is_named(tmp_path, name, where, new, says):
    folder = JobFolder(Job(name="one", call=partial(measured), facts={}, seed=0), tmp_path)
    with folder.locked():
        begin(folder, "me")
        shutil.copytree(tmp_path, tmp_path / "begun")
        note_progress(tmp_path, 0.5)
        kept = {n: (tmp_path / n).read_bytes() for n in ("running.json", "progress.json")}
        finish(folder, {"a": 1}, 2.0, {})
    for left, content in kept.items():
        (tmp_path / left).write_bytes(content)
    assert folder.read(name)
    damage(tmp_path / name, where, new)
    with pytest.raises(UserError, match=rf"{name}.*{says}"):
        folder.read(name)


def measured(folder: Path) -> dict[str, int]:
    return {"a": 1}


SLOW = """
import hashlib
from dataclasses import replace

import torch
from contrapose import losses
from contrapose.recipes import simclr

calls = []

class Slow(torch.autograd.Function):
    @staticmethod
    def forward(context, z):
        return z.clone()

    @staticmethod
    def backward(context, gradient):
        calls.append(0)
        if len(calls) == 3:  # after the dry run and a step
            print("in backward", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000_000)  # minutes in one call
        return gradient

def slow(z, group, *, temperature: float = 0.2):
    return losses.nt_xent(Slow.apply(z), group, temperature=temperature)

def recipe(size, channels):
    return replace(simclr.recipe(size, channels), loss=slow, epochs=2, warmup=0, batch_size=256)
"""


def test_ctrl_c_is_answered_while_torch_computes_and_a_second_one_stops_at_once(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "contrapose", "train", "digits", "--recipe", tmp_path / "slow.py",
         "--encoder", "small_conv", "--device", "cpu", "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stderr
    try:
        assert any("in backward" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert any("stopping after this step" in line for line in process.stderr)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert time.monotonic() - begun < 10  # the call itself takes minutes
    assert process.returncode == 130 and f"--resume {out}" in said
    status = Run.open(out).status()
    assert status["state"] == "interrupted" and status["step"] == 1


def test_a_second_ctrl_c_between_two_operations_is_an_interruption_too(tmp_path, digits):
    def stop(progress):
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTraining, match=r"at once, after step 3 of 10; .*step-00000002"):
        contrapose.train(tiny(), digits, out=tmp_path / "run", device="cpu", watch=stop)
    assert Run.open(tmp_path / "run").status()["state"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextlib.contextmanager
def full_disk(room: int):
    """No file may grow above so many bytes: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_names_the_file_that_could_not_be_written_and_leaves_the_old_one(run, digits):
    images = open_images("digits")
    works = {
        "report.html": lambda: write_report([run]),
        "mine.html": lambda: write_report([run], run / "mine.html"),
        "e.npz": lambda: write_embeddings(Run.open(run), images, run / "e.npz", device="cpu"),
        "e.parquet": lambda: write_embeddings(Run.open(run), images, run / "e.parquet"),
        "pictures.npz": lambda: contrapose.diagnose(run, digits, device="cpu"),
        "sheet.png": lambda: write_sheet(images, run / "sheet.png"),
        "out.json": lambda: replace_file(run / "out.json", bytes(5000)),
    }
    contrapose.diagnose(run, digits, device="cpu")
    before = (run / "pictures.npz").read_bytes()
    for name, work in works.items():
        with full_disk(4000), pytest.raises(OSError, match=rf"{name} could not be written"):
            work()
    assert (run / "pictures.npz").read_bytes() == before
    assert not list(run.rglob(".*.new")) and not (run / "e.npz").exists()


def test_a_place_that_cannot_be_written_is_named(run):
    (run / "file").write_text("")
    with pytest.raises(OSError, match=r"file/report\.html could not be written|run/file could not"):
        write_report([run], run / "file" / "report.html")


LEFT = {"nothing": [], "half a file": [".request.json.4194303.new", ".lock"]}


@pytest.mark.parametrize("left", LEFT)
def test_other_folders_that_a_kill_left_begun_are_taken_over(tmp_path, digits, left):
    """Of shortcuts, of a search, of a control, of a benchmark."""
    for name in ("shortcuts", "tune", "control", "bench"):
        (tmp_path / name).mkdir()
        for file in LEFT[left]:
            (tmp_path / name / file).write_text("{")
    shortcuts._claim(tmp_path / "shortcuts", {"data": "digits"})
    search = tuning.prepared("digits", out=tmp_path / "tune", encoder="small_conv", epochs=0.5)
    assert search.is_file()
    recipe = tiny(epochs=0.125)
    for _ in range(2):  # trained, then found
        encoder = api.encoder_in(tmp_path / "control", recipe, digits, device="cpu")
    assert isinstance(encoder, Encoder) and new_folder(tmp_path / "bench").is_dir()
    names = [
        p.name for name in ("shortcuts", "tune", "control") for p in (tmp_path / name).iterdir()
    ]
    assert not any(name.endswith(".new") for name in names)
