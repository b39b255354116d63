"""Training as a job of Slurm: real processes, with scripts for sbatch, srun and scontrol."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.command import contrapose

from contrapose.commands.train import submit
from contrapose.errors import UserError
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
    done = contrapose(*train, "--resource", "signal_delay_s=120", cwd=tmp_path, **slurm)
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
            submit(on, out, ranks, nodes, gpus, resource)
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
        submit("slurm", out, None, None, None, ())
    assert not out.exists()
