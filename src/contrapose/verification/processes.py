"""The processes that share a batch: started here on one machine, or already there by torchrun."""

import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from contrapose.machine import choose_device

PATIENCE = datetime.timedelta(seconds=60)  # for the others, before a check is called stuck


@dataclass(frozen=True)
class Place:
    """One of the processes."""

    rank: int
    world: int
    device: str
    groups: dict[int, dist.ProcessGroup | None]  # the first w processes; none for one alone

    def gathered(self, x: Any) -> list[Any]:
        """On the first process what each has, elsewhere nothing."""
        if self.world == 1:
            return [x]
        found = [None] * self.world if self.rank == 0 else None
        dist.gather_object(x, found)
        return found or []


@contextlib.contextmanager
def processes(count: int, device: str, work: Callable[..., Any], *args: Any) -> Iterator[Place]:
    """`count` processes; the others run work(place, *args), this one what is inside the block.

    Under torchrun they are there already, all run what is inside the block and `count` is what
    torchrun says. `auto` is then a GPU each where there are any, else the CPU.
    """
    with _one_thread():
        if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            kind = choose_device(device)
            device = f"cuda:{local}" if kind == "cuda" else kind
            with _joined(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device) as place:
                yield place
            return
        devices = _devices(count, "cpu" if device == "auto" else choose_device(device))
        with tempfile.TemporaryDirectory(prefix="contrapose-") as folder:
            store, context = f"file://{folder}/store", mp.get_context("spawn")
            others = [
                context.Process(
                    target=_worker, args=(rank, devices, store, work, args), daemon=True
                )
                for rank in range(1, len(devices))
            ]
            for process in others:
                process.start()
            try:
                with _joined(0, len(devices), devices[0], store) as place:
                    yield place
            finally:
                for process in others:
                    process.join(timeout=10)
                    process.terminate()


def _devices(count: int, device: str) -> list[str]:
    """A GPU each, as far as they go; processes that share one cannot exchange rows."""
    if device == "cuda":
        return [f"cuda:{k}" for k in range(min(count, torch.cuda.device_count()))]
    return [device] if device.startswith("cuda") else [device] * count


def _worker(
    rank: int, devices: list[str], store: str, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    with _one_thread(), _joined(rank, len(devices), devices[rank], store) as place:
        try:
            work(place, *args)
        except Exception as error:
            print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # without waiting for the others, who then hear of it at once


@contextlib.contextmanager
def _joined(rank: int, world: int, device: str, store: str = "env://") -> Iterator[Place]:
    if world == 1:
        yield Place(0, 1, device, {1: None})
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=store,
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    try:
        groups: dict[int, Any] = {1: None}
        for w in sorted({2, 3, world}):
            if 1 < w <= world:
                groups[w] = dist.new_group(list(range(w)))
        yield Place(rank, world, device, groups)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Many processes on few cores, on small matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
