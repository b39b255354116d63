"""A worker: a process that runs those jobs of a list that are neither finished nor locked.

Workers need no dispatcher. Each goes through the whole list, and the locks of the folders decide
which worker runs which job, also between machines with a common disk.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from contrapose.experiments.running.folders import JobFolder
from contrapose.experiments.running.task import PATIENCE, STOPPED, Task, job_folders


class Stopped(BaseException):
    """The process was asked to end by a signal."""


def work(task: Task) -> None:
    """Run every unfinished job of the task. An error of a job is recorded, and the next one
    runs."""
    import torch

    torch.set_num_threads(task.threads)
    for folder in job_folders(task):
        if task.jobs and folder.job.name not in task.jobs:
            continue
        attempt(folder, task)


def attempt(folder: JobFolder, task: Task) -> None:
    """Run one job, unless it is finished, locked, or has failed in this invocation."""
    import numpy as np
    import torch

    from contrapose.experiments.running.folders import begin, fail, finish
    from contrapose.files import HeldElsewhere
    from contrapose.machine import choose_bf16, choose_device, environment
    from contrapose.training.loop import InterruptedTraining

    with contextlib.suppress(HeldElsewhere), folder.locked():
        error = folder.read("error.json") or {}
        if folder.state in ("finished", "changed") or error.get("invocation") == task.invocation:
            return
        begin(folder, task.invocation)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(folder.job.seed)
        begun, asked = time.monotonic(), folder.job.call.keywords
        try:
            with _logged(folder.path / "log.txt"):
                measured = folder.job.call(folder.path)
            seconds = time.monotonic() - begun
            device = choose_device(asked.get("device", "auto"))
            bf16 = choose_bf16(asked.get("precision", "auto"), device)
            finish(folder, measured, seconds, environment(device, bf16))
        except InterruptedTraining:
            raise Stopped from None
        except Exception as error:
            words = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            fail(folder, task.invocation, words, traceback.format_exc())


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """A context in which all output, also of C libraries, is appended to the file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(path, "a", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


def _end_with_parent() -> None:
    """Stop, as by SIGTERM, when standard input closes because the parent process has ended."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def main() -> None:
    task = Task.of(sys.argv[1])
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _end_with_parent()
    try:
        work(task)
    except Stopped:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
