"""`--ranks N`: torchrun's agent, which starts processes of a command on this machine."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from contrapose.machine import cores

LAST_STEP = 600  # seconds in which ranks end their step and save it, after Ctrl-C or SIGTERM


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Run `contrapose ARGUMENTS` in so many processes that share its work; its exit status.

    Each has its part of the cores, unless OMP_NUM_THREADS says otherwise. The ranks say themselves
    what went wrong with one of them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
    logging.disable(logging.CRITICAL)  # of the agent's own words
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=LAST_STEP,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "contrapose", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        how = signal.Signals(-failure.exitcode).name  # before it joined nobody else knows of it
        print(f"rank {rank} (process {failure.pid}) was ended by {how}", file=sys.stderr)
        return 1
    except SignalException:
        return 130
    return 0
