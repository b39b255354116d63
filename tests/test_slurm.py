"""Training as a job of Slurm: real processes, with scripts for sbatch, srun and scontrol; and on a
real Slurm where one answers."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command import contrapose

from contrapose import api
from contrapose import slurm as slurm_jobs
from contrapose.commands.train import submit
from contrapose.errors import UserError
from contrapose.slurm import Training
from contrapose.training.run import Run

SBATCH = """#!/bin/bash
export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=2 SLURM_JOB_NODELIST=localhost
cp "$1" $SLURM/script
echo Submitted batch job 7
setsid bash -c 'while rm -f $SLURM/requeued; do
    bash $SLURM/script; [ -e $SLURM/requeued ] || break
done; touch $SLURM/ended' > $SLURM/batch.log 2>&1 < /dev/null &
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in --output) out=$2; shift;; --error) err=$2; shift;; esac; shift
done
for k in 0 1; do
    out_k=${out//%j/7}; err_k=${err//%j/7}
    SLURM_PROCID=$k SLURM_LOCALID=$k SLURM_NODEID=0 "$@" \\
        >> ${out_k//%t/$k} 2>> ${err_k//%t/$k} &
    echo $! > $SLURM/task$k
done
wait
"""
SCONTROL = """#!/bin/bash
touch $SLURM/requeued
kill -KILL $(cat $SLURM/task1)
"""
QUICK = [
    "digits", "--encoder", "small_conv", "--set", "backbone.width=16", "--batch-size", "100",
    "--epochs", "8", "--device", "cpu", "--no-explain", "--precision", "fp32",
]  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """The environment in which a Slurm of two tasks is on the path; its state is in SLURM."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    own = tmp_path / "of this machine"
    own.mkdir()
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM": str(tmp_path), "TMPDIR": str(own), "OMP_NUM_THREADS": "1", "COLUMNS": "200",
    }  # fmt: skip


def until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def tasks(folder: Path) -> list[int]:
    """The processes of the job: its tasks, and the ranks that they started."""
    first = [int((folder / f"task{k}").read_text()) for k in (0, 1)]
    lists = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in first]
    return [*first, *(int(pid) for children in lists for pid in children)]


def test_a_job_whose_time_is_over_is_saved_queued_again_and_goes_on(tmp_path, slurm):
    train = ["train", *QUICK, "--out", "run", "--on", "slurm", "--ranks", "2"]
    done = contrapose(*train, "--resource", "slurm_signal_delay_s=120", cwd=tmp_path, **slurm)
    assert done.returncode == 0, done.stderr
    assert "Submitted: job 7, 2 ranks" in done.stdout and "scancel 7" in done.stdout
    script = (tmp_path / "script").read_text()
    assert "--signal=USR2@120" in script and "--ntasks-per-node=2" in script
    run = tmp_path / "run"
    until(lambda: [*run.glob("checkpoints/step-*")])
    for process in tasks(tmp_path):
        os.kill(process, signal.SIGUSR2)
    until(lambda: (tmp_path / "ended").exists())
    logs = {path.name: path.read_text() for path in (tmp_path / "run-slurm").glob("*_log.*")}
    assert Run.open(run).status()["state"] == "finished", logs
    rows = Run.open(run).metrics()
    assert [row["step"] for row in rows] == [*range(1, 113)]
    resumed = Run.open(run).read("environment.json")["resumed"]
    assert [again["ranks"] for again in resumed] == [2]
    assert "stopped at step" in logs["7_0_log.err"], "the step was not saved before"
    assert logs["7_0_log.out"].count("Trained:") == 1


def test_what_a_job_cannot_be_is_said_before_anything_is_submitted(tmp_path, monkeypatch):
    out = tmp_path / "run"

    def refused(on="slurm", out=out, ranks=None, nodes=None, gpus=None, resource=()):
        with pytest.raises(UserError) as found:
            submit(on, out, ranks, nodes, gpus, resource, pytest.fail)
        return str(found.value)

    assert "--nodes, --gpus: of a job on Slurm; add --on slurm" in refused("local", nodes=2, gpus=8)
    assert "did you mean 'slurm'?" in refused("slrm")
    assert "leave --ranks out" in refused(ranks=2, gpus=8)
    assert "name the run with --out" in refused(out=None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert "is this machine's alone; name a folder that all nodes share" in refused()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    monkeypatch.setenv("PATH", "")
    assert "this machine has no Slurm" in refused()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install 'contrapose\[slurm\]'"):
        submit("slurm", out, None, None, None, (), pytest.fail)
    assert not out.exists()


SETTINGS = {
    "encoder": "small_conv", "epochs": 1, "batch_size": 100, "temperature": None, "seed": None,
    "changes": ["backbone.width=16"],
}  # fmt: skip


def test_what_training_would_refuse_is_refused_before_the_job_is_queued_in_the_same_words(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    (tmp_path / "labels.csv").write_text("a\nb\n")
    wrong = [
        ({"recipe": "simclrr"}, {}),
        ({"recipe": str(tmp_path / "own.py")}, {}),
        ({"images": "digitz"}, {}),
        ({"images": str(tmp_path / "there")}, {}),
        ({"changes": ["los.temperature=0.1"]}, {}),
        ({"changes": ["keys=queue", "keys.size=none"]}, {}),
        ({"changes": ["views=mine"]}, {}),
        ({"batch_size": 2000}, {}),
        ({"temperature": -1.0}, {}),
        ({"encoder": "resnet19"}, {}),
        ({"start": str(tmp_path / "no run")}, {}),
        ({"freeze": ["bakbone"]}, {}),
        ({"out": tmp_path / "there"}, {}),
        ({"precision": "fp8"}, {}),
        ({"device": "gpu"}, {}),
        ({}, {"labels": tmp_path / "labels.csv"}),
        ({}, {"size": -1}),
        ({"recipe": "supcon", "images": f"{tmp_path / 'there'}"}, {}),
    ]
    for changes, how in wrong:
        asked = {"images": "digits", "recipe": "simclr", **SETTINGS, **changes}
        with pytest.raises((UserError, OSError)) as here:
            api.train(**{"out": tmp_path / "run", "device": "cpu"} | asked, **how)
        with pytest.raises((UserError, OSError)) as before:
            api.check(**asked, how=how)
        assert (before.type, str(before.value)) == (here.type, str(here.value)), changes
    assert not (tmp_path / "run").exists()


def test_a_device_and_ranks_of_another_machine_are_allowed_as_far_as_they_can_be(tmp_path):
    api.check("moco", "digits", ranks=50, device="cuda:7", how={}, **SETTINGS)
    with pytest.raises(UserError, match="101 ranks for a batch of 100 images: each needs one"):
        api.check("simclr", "digits", ranks=101, device="cuda", how={}, **SETTINGS)
    run = api.train("simclr", "digits", out=tmp_path / "run", device="cpu", **SETTINGS)
    api.check_resumed(run.path, ranks=50, epochs=2, device="cuda")
    with pytest.raises(UserError, match=r"--epochs 0\.5: .*stands at epoch 1 already"):
        api.check_resumed(run.path, epochs=0.5)
    with pytest.raises(UserError, match="101 ranks for a batch of 100"):
        api.check_resumed(run.path, ranks=101, epochs=2)


def test_a_wrong_word_costs_no_time_in_the_queue(tmp_path, slurm):
    (tmp_path / "bin" / "sbatch").write_text(
        "#!/bin/bash\ncp $1 $SLURM/script\necho Submitted batch job 7\n"
    )
    train = ["train", "digits", "--out", "run", "--on", "slurm", "--gpus", "2"]
    wrong = contrapose(*train, "--set", "loss.temprature=0.1", cwd=tmp_path, **slurm)
    assert wrong.returncode == 2 and "temprature" in wrong.stderr, wrong.stderr
    assert not (tmp_path / "script").exists() and not (tmp_path / "run-slurm").exists()
    right = contrapose(*train, "--set", "loss.temperature=0.1", cwd=tmp_path, **slurm)
    assert right.returncode == 0 and "Submitted: job 7, 2 ranks" in right.stdout, right.stderr
    script = (tmp_path / "script").read_text()
    assert "--gpus-per-node=2" in script and "export SRUN_CPUS_PER_TASK=" in script
    assert not (tmp_path / "run").exists()
    (submitted,) = (tmp_path / "run-slurm").glob("*_submitted.pkl")
    assert b"--device" in (found := submitted.read_bytes()) and b"cuda" in found


def test_a_task_that_slurm_preempts_waits_for_slurm_to_end_it(monkeypatch):
    monkeypatch.setattr(slurm_jobs, "SAVING", 0.3)
    begun, task = time.monotonic(), Training()
    task._terminated()
    threading.Timer(1, task._terminated).start()  # as Slurm does when the grace time is over
    task._wait_for_slurm()
    assert time.monotonic() - begun >= 1
    begun = time.monotonic()
    Training()._wait_for_slurm()  # stopped by hand: nobody ends it
    assert 0.3 <= time.monotonic() - begun < 1


# ---- on a real Slurm -----------------------------------------------------------------------------

IN_FLOAT64 = """
from dataclasses import replace
from contrapose.verification.training import recipe_of
recipe = replace(recipe_of("simclr", "fp64", 1, 8, 100), epochs=12)
"""


def slurm_says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def cluster():
    """(number of nodes, at most 2, a folder that all share): CONTRAPOSE_SHARED, or the home."""
    pytest.importorskip("submitit")
    try:
        idle = int(slurm_says("timeout", "5", "sinfo", "-h", "-t", "idle", "-o", "%D") or 0)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no Slurm answers here (sinfo)")
    if not idle:
        pytest.skip("no node of Slurm is idle (sinfo -t idle)")
    shared = os.environ.get("CONTRAPOSE_SHARED", Path.home())
    with tempfile.TemporaryDirectory(dir=shared, prefix="contrapose-") as folder:
        yield min(idle, 2), Path(folder)


@pytest.mark.slow
def test_a_real_slurm_trains_what_one_process_does_also_after_its_time_is_over(cluster):
    nodes, folder = cluster
    (folder / "own.py").write_text(IN_FLOAT64)
    run = folder / "run"
    train = ["train", "digits", "--recipe", "own.py", "--device", "cpu", "--no-explain"]
    no_such = ["--on", "slurm", "--resource", "slurm_partition=no-such"]
    refused = contrapose(*train, "--out", "none", *no_such, cwd=folder, COLUMNS="200")
    assert refused.returncode == 2 and "What there is: sinfo" in refused.stderr, refused.stderr
    job_of = [*train, "--out", "run", "--on", "slurm", "--nodes", str(nodes)]
    done = contrapose(*job_of, "--ranks", "1" if nodes > 1 else "2", cwd=folder, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    job = re.search("job ([0-9]+), 2 ranks", done.stdout)[1]
    try:
        until(lambda: [*run.glob("checkpoints/step-*")])
        assert slurm_jobs.is_queued(job) and not slurm_jobs.is_queued("4000000000")
        slurm_says("scancel", "--signal=USR2", job)  # what Slurm sends before the time limit
        alone = api.train(str(folder / "own.py"), "digits", out=folder / "alone", device="cpu")
        until(lambda: not slurm_jobs.is_queued(job), 400)
    finally:
        subprocess.run(["scancel", job])
    logs = {path.name: path.read_text() for path in (folder / "run-slurm").glob("*_log.*")}
    assert Run.open(run).status()["state"] == "finished", logs
    assert [row["step"] for row in Run.open(run).metrics()] == [x["step"] for x in alone.metrics()]
    environment = Run.open(run).read("environment.json")
    assert len(environment["hosts"]) == nodes and len(environment["resumed"]) == 1, logs
    assert "stopped at step" in logs[f"{job}_0_log.err"]
    assert not any("Traceback" in text for text in logs.values()), logs
    weights, others = (load_file(x / "encoder.safetensors") for x in (folder / "alone", run))
    for name, x in weights.items():
        torch.testing.assert_close(others[name], x, rtol=1e-10, atol=1e-10)
