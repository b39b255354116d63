"""Processes that share a batch: started here on one machine, or before by torchrun.

Processes that are started here are supervised (`watch.py`): if one dies, or none makes progress,
all are ended.
"""

import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from contrapose.errors import UserError
from contrapose.machine import choose_device
from contrapose.processes.watch import Watch
from contrapose.threads import serial

# How long a process waits for others, in seconds, before it raises RuntimeError:
JOINING = 20  # once all have started, until they have found each other
TORCHRUN_JOINING = 60  # the same where torchrun starts them, each in its own time
ANSWERING = 60  # in a collective; the watch ends it earlier
TORCHRUN_ANSWERING = 25  # the same under torchrun, where nobody watches


@dataclass(frozen=True)
class Rank:
    """This process among those that share a batch: its number, their count, its device."""

    rank: int
    world: int
    device: str
    groups: "Groups"
    gets_on: Callable[[], None] = lambda: None  # to be called after each piece of work
    lost: Callable[[], str | None] = lambda: None  # what went wrong with the other processes

    def gathered(self, x: Any) -> list[Any]:
        """On the first process the list of every process's x; on the others an empty list."""
        if self.world == 1:
            return [x]
        found = [None] * self.world if self.rank == 0 else None
        dist.gather_object(x, found, group=self.groups[self.world])
        return found or []


@contextlib.contextmanager
def processes(count: int, device: str, work: Callable[..., Any], *args: Any) -> Iterator[Rank]:
    """A context with `count` processes: this one runs the block, the others work(me, *args).

    Under torchrun the processes exist already, all of them run the block, and `count` is that of
    torchrun. device: `auto` is one GPU for each process if there are any, else the CPU.
    Raises ChildProcessError if a process dies or stops answering before all have joined. If that
    happens later, a collective inside the block raises RuntimeError, and `me.lost()` says why.
    """
    with serial():
        if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            kind = _shared(device)
            device = f"cuda:{local}" if kind == "cuda" else kind
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            seconds = TORCHRUN_JOINING, TORCHRUN_ANSWERING
            with _joined(rank, world, device, "env://", *seconds) as groups:
                yield Rank(rank, world, device, groups)
            return
        devices = _devices(count, "cpu" if device == "auto" else _shared(device))
        with tempfile.TemporaryDirectory(prefix="contrapose-") as folder:
            store, context = f"file://{folder}/store", mp.get_context("spawn")
            beats = context.Array("d", len(devices), lock=False)
            others = [
                context.Process(
                    target=_worker, args=(rank, devices, store, beats, work, args), daemon=True
                )
                for rank in range(1, len(devices))
            ]
            with Watch(others, beats) as watch, contextlib.ExitStack() as joined:
                watch.wait_for_start()
                try:
                    groups = joined.enter_context(_joined(0, len(devices), devices[0], store))
                except RuntimeError as error:
                    why = watch.lost() or str(error)
                    raise ChildProcessError(f"verify: {why}, before all had joined") from error
                yield Rank(0, len(devices), devices[0], groups, watch.gets_on, watch.lost)


def _shared(device: str) -> str:
    """The device that processes compute on, which mps cannot be."""
    kind = choose_device(device)
    if kind != "mps":
        return kind
    if device == "auto":
        return "cpu"
    raise UserError(f"--device {device}: it neither has float64 nor exchanges rows; use cpu")


def _devices(count: int, device: str) -> list[str]:
    """The devices of at most `count` processes: one GPU each, since two cannot share a GPU."""
    if device == "cuda":
        return [f"cuda:{k}" for k in range(min(count, torch.cuda.device_count()))]
    return [device] if device.startswith("cuda") else [device] * count


def _worker(
    rank: int,
    devices: list[str],
    store: str,
    beats: Any,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    gets_on = partial(Watch([], beats).gets_on, rank)
    gets_on()
    with serial(), contextlib.ExitStack() as joined:
        try:
            groups = joined.enter_context(_joined(rank, len(devices), devices[rank], store))
            work(Rank(rank, len(devices), devices[rank], groups, gets_on), *args)
        except Exception as error:
            print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # without waiting for the others, who then hear of it at once


Groups = dict[int, dist.ProcessGroup | None]  # the first w processes; none for one alone


@contextlib.contextmanager
def _joined(
    rank: int,
    world: int,
    device: str,
    store: str,
    joining: int = JOINING,
    answering: int = ANSWERING,
) -> Iterator[Groups]:
    if world == 1:
        yield {1: None}
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=store,
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=joining),
    )
    try:
        groups: dict[int, Any] = {1: None}
        timeout = datetime.timedelta(seconds=answering)
        for w in sorted({2, 3, world}):
            if 1 < w <= world:
                groups[w] = dist.new_group(list(range(w)), timeout=timeout)
        yield groups
    finally:
        dist.destroy_process_group()
