"""Measurements of one process: peak memory of a computation, or times of all contenders in turn.

These functions run in processes of their own. They are forked from one that has imported the
libraries and computed nothing, so that each is fresh and starts quickly.
"""

import ctypes
import math
import resource
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrapose.bench.cases import CASES, Case, Contender
from contrapose.bench.contenders import Computation

SHORT = 0.01  # seconds: a step that is quicker is timed several times over
EXACT = 2**25  # pairs up to which the gradient is compared with float64


@dataclass(frozen=True)
class Measured:
    """One contender at one size."""

    case: str
    size: int
    contender: str
    seconds: tuple[float, ...] = ()  # of each repeat
    extra: int | None = None  # bytes beyond the inputs and the gradient
    loss: float | None = None
    gradient_error: float | None = None  # |g - g64| / |g64| on the sphere, for topk of the values
    skipped: str | None = None  # why there are no times


@dataclass(frozen=True)
class Settings:
    device: str
    threads: int
    repeats: int
    seconds: float  # of all repeats of one size; three repeats where they take longer


def memory(
    case: str, contender: str, size: int, settings: Settings, limit: int
) -> tuple[int | None, float, str | None]:
    """(extra bytes of one computation in this process, its seconds, a failed allocation or
    None)."""
    prepare(settings)
    give_back_what_is_freed()
    chosen, of = CASES[case], contender_of(CASES[case], contender)
    for n in sorted({chosen.smallest, max(chosen.smallest, min(size // 2, 256))}):
        Work(chosen, of, n, settings.device).run()  # libraries load their kernels
    work = Work(chosen, of, size, settings.device)
    work.keep_gradients()
    with _at_most(limit):
        forget_peak()
        before = peak()
        start = time.perf_counter()
        try:
            work.run()
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error) and not isinstance(error, MemoryError):
                raise
            return None, 0.0, f"wanted more than {limit / 1e9:.1f} GB: {_first(error)}"
        return max(0, peak() - before), time.perf_counter() - start, None


def times(case: str, names: Sequence[str], size: int, settings: Settings) -> list[Measured]:
    """Times of all contenders in turn, `repeats` times after a first one for warm-up and values."""
    prepare(settings)
    chosen = CASES[case]
    exact = in_float64(chosen, size, settings.device) if chosen.pairs(size) <= EXACT else None
    found: dict[str, Measured] = {}
    work: dict[str, Work] = {}
    often: dict[str, int] = {}
    for name in names:
        try:
            one = Work(chosen, contender_of(chosen, name), size, settings.device)
            first, result = warm_up(one, settings.device, exact)
            work[name], often[name] = one, max(1, math.ceil(SHORT / first))
        except Exception as error:  # of a library that cannot do it here
            result = Measured(case, size, name, skipped=f"failed: {_first(error)}")
        found[name] = replace(result, case=case, size=size, contender=name)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order, begin = list(work), time.perf_counter()
    for repeat in range(settings.repeats):
        for name in order:
            seconds[name].append(seconds_of(work[name].run, often[name], settings.device))
        order = order[1:] + order[:1]
        spent = time.perf_counter() - begin
        if repeat >= 2 and spent * (repeat + 2) / (repeat + 1) > settings.seconds:
            break
    return [replace(m, seconds=tuple(seconds.get(name, ()))) for name, m in found.items()]


def once(case: str, names: Sequence[str], size: int, settings: Settings) -> list[Measured]:
    """A single computation of each contender, for those that take long."""
    prepare(settings)
    chosen, found = CASES[case], []
    for name in names:
        Work(chosen, contender_of(chosen, name), chosen.smallest, settings.device).run()
        work = Work(chosen, contender_of(chosen, name), size, settings.device)
        first, result = warm_up(work, settings.device)
        found.append(replace(result, case=case, size=size, contender=name, seconds=(first,)))
    return found


def ceiling(settings: Settings, precisions: Sequence[str]) -> dict[str, float]:
    """FLOP/s of a plain matrix product on this device, by precision: the median of five."""
    prepare(settings)
    n = 8192 if settings.device.startswith("cuda") else 1024
    found = {}
    for name in precisions:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a = torch.randn(n, n, device=settings.device).to(dtype)

        def product(a: Tensor = a) -> Tensor:
            return a @ a

        seconds_of(product, 2, settings.device)
        seconds = [seconds_of(product, 3, settings.device) for _ in range(5)]
        found[name] = 2 * n**3 / statistics.median(seconds)
    return found


class Work:
    """A contender on inputs of its own, ready to run."""

    def __init__(self, case: Case, contender: Contender, size: int, device: str) -> None:
        dtype = torch.bfloat16 if contender.low else torch.float32
        self.inputs = inputs_of(case, size, device, dtype)
        self.learned = [self.inputs[name] for name in case.learned]
        self.step = contender.make(**self.inputs)

    def keep_gradients(self) -> None:
        """Gradients have their place already: what comes on top is the step's own."""
        for x in self.learned:
            x.grad = torch.zeros_like(x)

    def run(self) -> Tensor:
        return run_step(self.step, self.learned)


def inputs_of(case: Case, size: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for name, x in case.inputs(size).items():
        x = x.to(device, dtype if x.is_floating_point() else x.dtype)
        found[name] = x.requires_grad_() if name in case.learned else x
    return found


def run_step(step: Computation, learned: Sequence[Tensor]) -> Tensor:
    value = step()
    if learned:
        torch.autograd.backward(value)
    return value.detach()


def along(learned: Sequence[Tensor], value: Tensor) -> Tensor:
    """Gradients without their component along the rows, which normalisation removes.

    Without inputs that get a gradient, the values.
    """
    parts = [value.double()] if not learned else []
    for x in learned:
        z = x.detach().double()
        grad = torch.zeros_like(z) if x.grad is None else x.grad.double()
        parts.append(grad - (grad * z).sum(dim=1, keepdim=True) * z)
    return torch.cat(parts)


def in_float64(case: Case, size: int, device: str) -> Tensor:
    """The plain form in float64."""
    plain = next(c for c in case.contenders if c.name == "plain torch")
    inputs = inputs_of(case, size, device, torch.float64)
    learned = [inputs[name] for name in case.learned]
    return along(learned, run_step(plain.make(**inputs), learned))


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.to(exact) - exact).norm() / exact.norm())


def warm_up(work: Work, device: str, exact: Tensor | None = None) -> tuple[float, Measured]:
    """Seconds of a step, after a first one where that did not take long, and what it gives."""
    cuda = device.startswith("cuda")
    value: list[Tensor] = []
    seconds = seconds_of(lambda: value.append(work.run()), 1, device)
    found = Measured("", 0, "", loss=float(value[0].double().mean()))
    if exact is not None:
        found = replace(found, gradient_error=off(along(work.learned, value[0]), exact))
    if seconds < 2 or cuda:  # there the first one compiles
        seconds = seconds_of(work.run, 1, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.run()
        torch.cuda.synchronize()
        found = replace(found, extra=torch.cuda.max_memory_allocated() - before)
        torch.cuda.empty_cache()
    return seconds, found


def seconds_of(step: Callable[[], Any], often: int, device: str) -> float:
    """Of one step, the mean of `often`."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(often):
        step()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / often


def peak() -> int:
    """Greatest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def forget_peak() -> None:
    """Let the peak be what is resident now, where the system can: what made the inputs is over."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back_what_is_freed() -> None:
    """Let the C library return freed blocks to the system: else a step reuses the warm-up's."""
    with suppress(OSError, AttributeError):  # glibc alone has this
        ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD, which then no longer grows


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Inside, asking for more than `limit` bytes is an error instead of the end of the process."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def contender_of(case: Case, name: str) -> Contender:
    return next(c for c in case.contenders if c.name == name)


def prepare(settings: Settings) -> None:
    warnings.simplefilter("ignore")  # a peer's advice on its own use
    torch.set_num_threads(settings.threads)
    if settings.device.startswith("cuda"):
        torch.cuda.set_device(settings.device)


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:80] if str(error) else type(error).__name__


def answer(to: Connection, work: Callable[..., Any], *args: Any) -> None:
    """In a process of its own: the result, or the error in words."""
    if sys.platform == "linux":  # not outlive the one who asked
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    try:
        to.send((work(*args), None))
    except Exception as error:
        to.send((None, f"{type(error).__name__}: {_first(error)}"))
