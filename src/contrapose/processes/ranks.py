"""Processes that share a batch: started here on one machine, or before by torchrun.

Processes that are started here are supervised (`watch.py`): if one dies, or none makes progress,
all are ended. Those of torchrun that train together give signs of life (`pulse.py`).
"""

import contextlib
import datetime
import json
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from contrapose.errors import UserError
from contrapose.machine import choose_device
from contrapose.processes.pulse import Pulse
from contrapose.processes.watch import Watch
from contrapose.threads import serial

# How long a process waits for others, in seconds, before it raises RuntimeError:
JOINING = 20  # once all have started, until they have found each other
TORCHRUN_JOINING = 60  # the same where torchrun starts them, each in its own time
ANSWERING = 60  # in a collective; the watch ends it earlier
TORCHRUN_ANSWERING = 25  # the same under torchrun, where nobody watches
TRAINING_JOINING = 300  # until all ranks of a training are there; CONTRAPOSE_JOIN_SECONDS
ASKING = 0.1  # between two looks at who is there
MEETING = "contrapose/meeting"  # in the key-value store
FIRST_SPEAKS = 5  # for rank 0 to say what all would, whereupon torchrun ends them
TRAINING_ANSWERING = 3600  # while one writes a checkpoint the others wait; the pulse watches

T = TypeVar("T")
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Rank:
    """This process among those that share work: its number, their count, its device."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    groups: "Groups" = field(default_factory=lambda: {1: None})
    gets_on: Callable[[], None] = lambda: None  # to be called after each piece of work
    lost: Callable[[], str | None] = lambda: None  # what went wrong with the other processes
    pulse: Pulse | None = None
    again: bool = False  # these processes were started in place of others

    @property
    def first(self) -> bool:
        """True for the process that writes files and speaks."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        return self.groups[self.world]

    def among(self, world: int) -> "Rank":
        """This process as one of the first `world` only."""
        return replace(self, world=world)

    def first_does(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first process, on all of them; its error is raised on all."""
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        error: Exception | None = None
        if self.first:
            try:
                outcome[0] = work()
            except Exception as found:
                outcome[1], error = _portable(found), found
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise shared(error or outcome[1])
        return outcome[0]  # type: ignore[no-any-return]

    def all_do(self, work: Callable[[], T]) -> T:
        """What `work` returns on this process; an error on one of them is raised on all."""
        if self.world == 1:
            return work()
        found: T | None = None
        error: Exception | None = None
        try:
            found = work()
        except Exception as raised:
            if getattr(raised, "shared", False):  # all of them have it
                raise
            error = raised
        mine = None if error is None else _portable(error), socket.gethostname()
        every = self.every(mine)
        failed = [(rank, of, host) for rank, (of, host) in enumerate(every) if of is not None]
        if not failed:
            return found  # type: ignore[return-value]
        rank, of, host = failed[0]
        if len(failed) < self.world or len({str(of) for _, of, _ in failed}) > 1:
            of.args = (f"rank {rank} on {host}: {of}",)
        raise shared(of) from error

    @contextlib.contextmanager
    def first_holds(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """The context on the first process, for all; an error as it begins is raised on all."""
        with contextlib.ExitStack() as stack:
            self.first_does(lambda: stack.enter_context(context) and None)
            yield

    def dealt(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each of the works returns, on all processes; each is done by one, in turn."""
        mine = self.all_do(lambda: [work() for work in works[self.rank :: self.world]])
        found = self.every(mine)
        return [found[k % self.world][k // self.world] for k in range(len(works))]

    def rows_of(
        self, pieces: Sequence[Piece], work: Callable[[Sequence[Piece]], Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """The rows that `work` makes of the pieces, in their order, on all processes.

        work: some of the pieces -> tensors on the CPU, whose rows are those of the pieces one after
        the other. Each process works on as many pieces in a row as the others, or one more, maybe
        on none. In the end every process holds all rows, and for a moment its own ones twice.
        """
        if self.world == 1:
            return list(work(pieces))
        first, last = (len(pieces) * k // self.world for k in (self.rank, self.rank + 1))
        mine = self.all_do(lambda: list(work(pieces[first:last])) if last > first else [])
        shapes = self.every([(tuple(x.shape), x.dtype) for x in mine])
        whole = []
        for k, (shape, kind) in enumerate(next(filter(None, shapes))):
            sizes = [made[k][0][0] if made else 0 for made in shapes]
            whole.append(torch.empty(sum(sizes), *shape[1:], dtype=kind))
            for rank, part in enumerate(torch.split(whole[k], sizes)):
                if rank == self.rank and mine:
                    part.copy_(mine[k])
                if len(part):
                    dist.broadcast(part, src=rank, group=self.group)
        return whole

    def every(self, x: T) -> list[T]:
        """The x of every process, in order of rank, on all of them."""
        if self.world == 1:
            return [x]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, x, group=self.group)
        return found

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on any process; exchanged by way of the CPU."""
        if self.world == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return [bool(x) for x in found.tolist()]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over processes of a tensor without gradient."""
        if self.world == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total / self.world

    def why_lost(self, error: BaseException) -> str | None:
        """What happened to another process, for an error that says it is gone; else None."""
        if self.world == 1 or getattr(error, "shared", False) or not _of_collective(error):
            return None
        return self.lost()

    def without(self, reason: str) -> Exception:
        """The error that ends the ranks that are left; the first of them says it."""
        error = ChildProcessError(reason)
        return _of_rank(self.rank, error) if reason.startswith("rank 0 ") else shared(error)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """A context in which `launched` gives this rank: the launcher's processes, or some."""
        token = _in_force.set(self)
        try:
            yield
        finally:
            _in_force.reset(token)

    def gathered(self, x: Any) -> list[Any]:
        """On the first process the list of every process's x; on the others an empty list."""
        if self.world == 1:
            return [x]
        found = [None] * self.world if self.rank == 0 else None
        dist.gather_object(x, found, group=self.groups[self.world])
        return found or []


@contextlib.contextmanager
def processes(
    count: int,
    device: str,
    work: Callable[..., Any],
    *args: Any,
    answering: int | None = None,
) -> Iterator[Rank]:
    """A context with `count` processes: this one runs the block, the others work(me, *args).

    Under torchrun the processes exist already, all of them run the block, and `count` is that of
    torchrun. device: `auto` is one GPU for each process if there are any, else the CPU.
    answering: seconds in which a process waits for others, where some have nothing to do for long.
    Raises ChildProcessError if a process dies or stops answering before all have joined. If that
    happens later, a collective inside the block raises RuntimeError, and `me.lost()` says why.
    """
    with serial():
        if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            kind = _shared(device)
            device = f"cuda:{local}" if kind == "cuda" else kind
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            seconds = TORCHRUN_JOINING, answering or TORCHRUN_ANSWERING
            store = _met(rank, world, seconds[0])[0] if world > 1 else "env://"
            with _joined(rank, world, device, store, *seconds) as groups:
                yield Rank(rank, world, device, groups)
            return
        devices = _devices(count, "cpu" if device == "auto" else _shared(device))
        limits = JOINING, answering or ANSWERING
        with tempfile.TemporaryDirectory(prefix="contrapose-") as folder:
            store, context = f"file://{folder}/store", mp.get_context("spawn")
            beats = context.Array("d", len(devices), lock=False)
            others = [
                context.Process(
                    target=_worker,
                    args=(rank, devices, store, limits, beats, work, args),
                    daemon=True,
                )
                for rank in range(1, len(devices))
            ]
            with Watch(others, beats) as watch, contextlib.ExitStack() as joined:
                watch.wait_for_start()
                try:
                    meeting = _joined(0, len(devices), devices[0], store, *limits)
                    groups = joined.enter_context(meeting)
                except RuntimeError as error:
                    why = watch.lost() or str(error)
                    raise ChildProcessError(f"verify: {why}, before all had joined") from error
                yield Rank(0, len(devices), devices[0], groups, watch.gets_on, watch.lost)


def rank_in_force() -> Rank:
    """This process among those that share what is being done (`launched`); else alone."""
    return _in_force.get() or Rank()


def is_launched() -> bool:
    """True if torchrun, or a launcher like it, started this process among several."""
    named = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return named and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def launched(device: str) -> Iterator[Rank]:
    """A context with this process among those that torchrun started to share work; else alone.

    device: `auto` is one GPU for each process if there are any, else the CPU. Raises UserError
    for a device, a library of collectives or a process that is not there, and ChildProcessError
    if another one is lost.
    """
    if (rank := _in_force.get()) is not None:
        yield rank
        return
    if not is_launched():
        yield Rank(device=choose_device(device), again=_restarts() > 0)
        return
    rank_, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        where = _device_of(device, world)
    except UserError as error:  # maybe of this machine alone; others do not hear of it
        time.sleep(0 if rank_ == 0 else FIRST_SPEAKS)
        raise _of_rank(rank_, error) from None
    seconds = int(os.environ.get("CONTRAPOSE_JOIN_SECONDS", TRAINING_JOINING))
    with contextlib.ExitStack() as joined:
        try:
            store, name, again = _met(rank_, world, seconds)
            groups = joined.enter_context(
                _joined(rank_, world, where, store, seconds, TRAINING_ANSWERING, (world,))
            )
        except (RuntimeError, ValueError) as error:
            first = str(error).partition("\n")[0][:200]
            at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            why = UserError(
                f"rank {rank_} waited {seconds} s for {world} processes (WORLD_SIZE={world}) at "
                f"{at}, and not all came ({first}); start every rank, with the same addresses. "
                "CONTRAPOSE_JOIN_SECONDS sets another time"
            )
            raise _of_rank(rank_, why) from error
        pulse = joined.enter_context(Pulse(rank_, world, f"contrapose/{name}"))
        me = Rank(rank_, world, where, groups, lost=pulse.lost, pulse=pulse, again=again)
        joined.enter_context(me.in_force())
        with _losses_named(me, pulse):
            yield me
            me.every(None)  # none leaves before all are done


@contextlib.contextmanager
def _losses_named(me: Rank, pulse: Pulse) -> Iterator[None]:
    """A context that tells other ranks why this one ends, and names the one that was lost."""
    try:
        yield
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to those that are left
        if not hasattr(error, "of_rank") and (why := me.why_lost(error)) is not None:
            raise me.without(why) from error
        _told(me, pulse, error)
        raise


def _of_rank(rank: int, error: Exception) -> Exception:
    """The error, marked as this rank's own: it prints it, whichever it is."""
    error.of_rank = rank  # type: ignore[attr-defined]
    return error


def _told(me: Rank, pulse: Pulse, error: BaseException) -> None:
    if not getattr(error, "shared", False) and not hasattr(error, "of_rank"):
        if isinstance(error, Exception):
            _of_rank(me.rank, error)
        words = str(error) or type(error).__name__
        pulse.say(f"rank {me.rank} on {socket.gethostname()}: {words}")


def _of_collective(error: BaseException) -> bool:
    """True for what torch.distributed raises when another process is gone."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        part in words for part in ("gloo", "nccl", "connection", "timed out", "peer", "socket")
    )


def shared(error: Exception) -> Exception:
    """The error, marked as one that every rank raises: the first one alone prints it."""
    error.shared = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception) -> Exception:
    """The error, or one of its kind and words that other processes can be sent."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            error.__cause__ = error.__context__ = None
            return error
    except Exception:
        pass
    for kind in (UserError, OSError, ArithmeticError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def _device_of(device: str, world: int) -> str:
    """The device of this process of torchrun. UserError for one that is not there."""
    kind = _shared(device)
    if not dist.is_available():
        raise UserError(f"{world} processes: this torch has no torch.distributed; start one")
    if kind.startswith("cuda"):
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= (there := torch.cuda.device_count()):
            raise UserError(
                f"rank {os.environ['RANK']} is process {local} of this machine, which has {there} "
                "GPU(s): start one process for each, or use --device cpu"
            )
        if not dist.is_nccl_available():
            raise UserError("--device cuda on several ranks: this torch has no NCCL; use cpu")
        kind = f"cuda:{local}"
    if not dist.is_gloo_available():
        raise UserError(f"{world} processes: this torch has no gloo, which they talk by; start one")
    return kind


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
    limits: tuple[int, int],
    beats: Any,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    gets_on = partial(Watch([], beats).gets_on, rank)
    gets_on()
    with serial(), contextlib.ExitStack() as joined:
        try:
            meeting = _joined(rank, len(devices), devices[rank], store, *limits)
            groups = joined.enter_context(meeting)
            work(Rank(rank, len(devices), devices[rank], groups, gets_on), *args)
        except Exception as error:
            print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # without waiting for the others, who then hear of it at once


_in_force: ContextVar[Rank | None] = ContextVar("rank", default=None)
Groups = dict[int, dist.ProcessGroup | None]  # the first w processes; none for one alone


@contextlib.contextmanager
def _joined(
    rank: int,
    world: int,
    device: str,
    store: Any,
    joining: int = JOINING,
    answering: int = ANSWERING,
    sizes: Sequence[int] = (2, 3),
) -> Iterator[Groups]:
    if world == 1:
        yield {1: None}
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=joining)
    how = {"init_method" if isinstance(store, str) else "store": store}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        rank=rank,
        world_size=world,
        timeout=limit,
        **how,
    )
    try:
        groups: dict[int, Any] = {1: None}
        timeout = datetime.timedelta(seconds=answering)
        for w in sorted({*sizes, world}):
            if 1 < w <= world:
                groups[w] = dist.new_group(list(range(w)), timeout=timeout)
        yield groups
    finally:
        dist.destroy_process_group()


@cache
def _kept_store(rank: int, world: int, seconds: int) -> Any:
    """The key-value store at MASTER_ADDR, which stays open as long as this process lives."""
    limit = datetime.timedelta(seconds=seconds)
    return next(dist.rendezvous("env://", rank, world, timeout=limit))[0]  # type: ignore[attr-defined]


def _met(rank: int, world: int, seconds: int) -> tuple[Any, str, bool]:
    """(store of this meeting alone, its name, whether it follows others) once all ranks are there.

    torchrun's store may outlive a restart, with addresses of the dead, and each node counts its own
    restarts (TORCHELASTIC_RESTART_COUNT), so neither names a start. Each process writes who it is;
    rank 0 names those that it sees, anew when another one comes, until all have answered.
    """
    store = _kept_store(rank, world, seconds)
    mine = f"{uuid.uuid4().hex} {_restarts()}"
    here: list[str | None] = [None] * world
    store.set(f"{MEETING}/here/{rank}", mine)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if rank == 0:
            here = [_found(store, f"here/{k}") for k in range(world)]
            if None not in here and _found(store, "named") != json.dumps(here):
                store.set(f"{MEETING}/named", json.dumps(here))
        named = _found(store, "named") or "[]"
        there = json.loads(named)
        if len(there) == world and there[rank] == mine:
            name = there[0].split()[0]
            store.set(f"{MEETING}/{name}/{rank}", named)
            answers = [f"{name}/{k}" for k in range(1, world)] if rank == 0 else [f"{name}/all"]
            if all(_found(store, answer) == named for answer in answers):
                store.set(f"{MEETING}/{name}/all", named)
                again = any(int(of.split()[1]) > 0 for of in there)
                return dist.PrefixStore(name, store), name, again  # type: ignore[attr-defined]
        time.sleep(ASKING)
    missing = [f"rank {k}" for k in range(1, world) if rank == 0 and here[k] is None]
    raise RuntimeError(f"without {', '.join(missing)}" if missing else "timed out")


def _restarts() -> int:
    """Number of times that this node of torchrun, or a job of Slurm, has started processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _found(store: Any, key: str) -> str | None:
    """The value of a key of the meeting, or None; it does not wait for one."""
    key = f"{MEETING}/{key}"
    return store.get(key).decode() if store.check([key]) else None
