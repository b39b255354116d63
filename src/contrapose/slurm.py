"""Jobs on Slurm by submitit: its executor, and a training whose ranks are the tasks of one job.

Before a job is preempted or its time is over, Slurm sends a signal (SIGUSR2; the time before is
signal_delay_s). submitit's handler for it calls `checkpoint` on the first task, and has the job
queued again; its ranks then go on in their folder, from the same command.
"""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contrapose.errors import UserError

DAY = 24 * 60  # min a job has where nobody asks for another time; then it is queued again
TIMEOUTS = 1000  # times that a job is queued again after its time was over
POLL = 0.2  # s between two looks at a rank
SAVING = 60.0  # s that ranks have to end their step and save it, before the job is queued again
INTERRUPTED = 130  # exit status of a rank that was stopped, and is saved


def library(on: str) -> Any:
    """The library that runs jobs on this kind of cluster; ImportError that names its extra."""
    name = {"slurm": "submitit", "ray": "ray"}[on]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"--on {on} needs the library {name}: pip install 'contrapose[{on}]'"
        ) from error


def executor(
    folder: Path, cluster: str, parameters: Mapping[str, Any], resources: Mapping[str, Any]
) -> Any:
    """submitit's executor with these parameters, which writes its files into the folder.

    resources: what the user asks for besides, as --resource. Raises UserError for one that submitit
    does not know, and where no Slurm is here. cluster: "slurm", or "local" for this machine.
    """
    try:
        made = library("slurm").AutoExecutor(
            folder=folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS
        )
    except RuntimeError as error:
        raise UserError(
            f"--on slurm: this machine has no Slurm ({error}); submit where sbatch and srun are"
        ) from error
    made.update_parameters(**parameters)
    try:
        made.update_parameters(**resources)
    except (ValueError, NameError, TypeError) as error:
        asked = ", ".join(f"{name}={value}" for name, value in resources.items())
        raise UserError(f"--resource {asked}: {error}") from error
    return made


def executor_of(
    out: Path, *, nodes: int, per_node: int, gpus: int, resources: Mapping[str, Any]
) -> Any:
    """submitit's executor for the job of a training into `out`; its files are in OUT-slurm.

    per_node: ranks on each node; gpus: those of each node. Raises UserError for a folder that only
    this machine has, and as `executor` does.
    """
    out = out.absolute()
    own = Path(tempfile.gettempdir()).absolute()
    if own in out.parents:
        raise UserError(
            f"--out {out}: {own} is this machine's alone; name a folder that all nodes share"
        )
    parameters = {"name": out.name, "nodes": nodes, "tasks_per_node": per_node}
    parameters |= {"timeout_min": DAY} | ({"gpus_per_node": gpus} if gpus else {})
    return executor(out.with_name(f"{out.name}-slurm"), "slurm", parameters, resources)


def submit(jobs: Any, arguments: Sequence[str], out: Path) -> tuple[str, Path]:
    """Submit `contrapose ARGUMENTS`, a training into `out`: (job, the first rank's log).

    jobs: of `executor_of`. Raises UserError if Slurm refuses the job.
    """
    submitit = library("slurm")
    try:
        job = jobs.submit(Training(), list(arguments), str(out.absolute()), os.getcwd())
    except (submitit.core.utils.FailedJobError, OSError) as error:
        raise UserError(f"--on slurm: the job was not accepted: {error}") from error
    return str(job.job_id), Path(str(job.paths.stdout))


class Training:
    """One rank of a training in a job of Slurm: a process of its own, so that it can be stopped."""

    process: "subprocess.Popen[bytes] | None" = None

    def __call__(self, arguments: list[str], out: str, cwd: str) -> None:
        """Run the command to its end. Where the run has begun before, it goes on."""
        submitit = library("slurm")
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        begun = (Path(out) / "recipe.json").exists()  # ranks meet before the first one makes it
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(int(begun))
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ.setdefault("OMP_NUM_THREADS", cpus)
        queued_again = submitit.JobEnvironment._usr_sig()
        handler = signal.signal(queued_again, signal.SIG_IGN)  # Slurm sends it to the rank as well
        self.process = subprocess.Popen([sys.executable, "-m", "contrapose", *arguments], cwd=cwd)
        signal.signal(queued_again, handler)
        while (status := self.process.poll()) is None:
            time.sleep(POLL)
        if status == INTERRUPTED:  # Slurm is about to end or to requeue the job
            time.sleep(SAVING)
        if status:
            raise ChildProcessError(f"contrapose {arguments[0]} ended with status {status}")

    def checkpoint(self, arguments: list[str], out: str, cwd: str) -> Any:
        """Stop all ranks in the same step, which is saved; what is to be queued again."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + SAVING
            while self.process.poll() is None and time.monotonic() < until:
                time.sleep(POLL)
        return library("slurm").helpers.DelayedSubmission(Training(), arguments, out, cwd)
