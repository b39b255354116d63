"""Jobs on Slurm by submitit: its executor, and a training whose ranks are the tasks of one job.

Before the time of a job is over, Slurm sends a signal (SIGUSR2; --resource slurm_signal_delay_s is
the time before). submitit's handler for it calls `checkpoint` on the first task, and has the job
queued again; its ranks then go on in their folder, from the same command. A job that is cancelled
or preempted gets SIGTERM, all its processes at once: the ranks save their step, and the tasks wait
for Slurm to end them, since a preempted job that ends by itself is not queued again.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contrapose.errors import UserError

DAY = 24 * 60  # min a job has where nobody asks for another time; then it is queued again
TIMEOUTS = 1000  # times that a job is queued again after its time was over
POLL = 0.2  # s between two looks at a rank
SAVING = 60.0  # s that ranks have to end their step and save it, before the job is queued again
INTERRUPTED = 130  # exit status of a rank that was stopped, and is saved
GRACE = 24 * 3600.0  # s that Slurm may leave a job that it cancels or preempts; it ends it before
# since Slurm 22.05 srun does not hand the CPUs of sbatch's --cpus-per-task on to tasks by itself
SETUP = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'


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
    if cluster == "slurm":
        first = [str(resources["slurm_setup"])] if "slurm_setup" in resources else []
        resources = {**resources, "slurm_setup": [SETUP, *first]}
    try:
        made.update_parameters(**resources)
    except (ValueError, NameError, TypeError) as error:
        asked = ", ".join(f"{k}={v}" for k, v in resources.items() if k != "slurm_setup")
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
    with submitting():
        job = jobs.submit(Training(), list(arguments), str(out.absolute()), os.getcwd())
    return str(job.job_id), Path(str(job.paths.stdout))


@contextlib.contextmanager
def submitting() -> Iterator[None]:
    """A context in which a job that Slurm does not accept raises UserError, with Slurm's words."""
    try:
        yield
    except (library("slurm").core.utils.FailedJobError, OSError) as error:
        raise UserError(
            f"--on slurm: the job was not accepted: {str(error).strip()}\n"
            "What there is: sinfo -o '%P %D %c %G %l' (partition, nodes, CPUs and GPUs of a node, "
            "time limit); ask for less, as with --resource cpus_per_task=1"
        ) from error


def is_queued(job: str) -> bool:
    """True if the job waits or runs, or Slurm does not answer."""
    asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True)
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())


class Training:
    """One rank of a training in a job of Slurm: a process of its own, so that it can be stopped."""

    process: "subprocess.Popen[bytes] | None" = None
    terminations = 0  # times that Slurm has sent SIGTERM to this task
    time_is_over = False  # Slurm has said so, and the first task has the job queued again

    def __call__(self, arguments: list[str], out: str, cwd: str) -> None:
        """Run the command to its end. Where the run has begun before, it goes on."""
        submitit = library("slurm")
        torch = submitit.helpers.TorchDistributedEnvironment()
        torch.export(set_cuda_visible_devices=False, overwrite=True)
        begun = (Path(out) / "recipe.json").exists()  # ranks meet before the first one makes it
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(int(begun))
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus_of_task(torch.local_world_size)))
        signal.signal(signal.SIGTERM, self._terminated)
        time_is_over = submitit.JobEnvironment._usr_sig()
        handler: Any = signal.signal(time_is_over, signal.SIG_IGN)  # the rank inherits that
        self.process = subprocess.Popen([sys.executable, "-m", "contrapose", *arguments], cwd=cwd)

        def queue_again(*of: Any) -> None:
            self.time_is_over = True
            handler(*of)

        signal.signal(time_is_over, queue_again)
        while (status := self.process.poll()) is None:
            time.sleep(POLL)
        if status in (INTERRUPTED, -signal.SIGTERM):
            if status == INTERRUPTED or not self.time_is_over:  # else it is queued again already
                self._wait_for_slurm()
            raise SystemExit(INTERRUPTED)
        if status:
            raise ChildProcessError(f"contrapose {arguments[0]} ended with status {status}")

    def _terminated(self, *_: object) -> None:
        self.terminations += 1

    def _wait_for_slurm(self) -> None:
        """Wait until Slurm ends this task; at most `SAVING` if nothing says that it will.

        Slurm sends SIGTERM when it cancels or preempts the job, and again when it ends it.
        """
        known = self.terminations
        until = time.monotonic() + (GRACE if known and not self.time_is_over else SAVING)
        while self.terminations == known and time.monotonic() < until:
            time.sleep(POLL)

    def checkpoint(self, arguments: list[str], out: str, cwd: str) -> Any:
        """Stop all ranks in the same step, which is saved; what is to be queued again."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + SAVING
            while self.process.poll() is None and time.monotonic() < until:
                time.sleep(POLL)
        return library("slurm").helpers.DelayedSubmission(Training(), arguments, out, cwd)


def cpus_of_task(tasks: int) -> int:
    """Number of CPUs that Slurm gave each of the tasks on this node."""
    if each := os.environ.get("SLURM_CPUS_PER_TASK"):
        return int(each)
    return max(1, int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) // tasks)
