"""The run of the benchmark: cases, sizes and contenders in order, each in fresh processes.

The files are written after every size, so that a kill leaves the results until then.
"""

import itertools
import multiprocessing as mp
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contrapose.bench.cases import Case, Contender, chosen
from contrapose.bench.limits import DEADLINE, PACKAGES, SHARE, present, unfit
from contrapose.bench.measure import Measured, Settings, answer, ceiling, memory, once, times
from contrapose.bench.page import pages
from contrapose.bench.record import Record
from contrapose.errors import UserError
from contrapose.files import as_json_bytes, replace_file, said_of, unfinished
from contrapose.machine import choose_device, cores, environment, free_memory, multiplies_bf16
from contrapose.similarity import native

LONG = 10.0  # seconds: a step that takes longer is run once


def bench(
    only: Sequence[str] = (),
    *,
    sizes: Sequence[int] = (),
    repeats: int = 7,
    threads: int | None = None,
    device: str = "auto",
    quick: bool = False,
    large: bool = False,
    out: Path | None = None,
    watch: Callable[[str], None] = lambda doing: None,
    show: Callable[[Record, Case], None] = lambda record, case: None,
) -> Record:
    """Measure the cases named in `only`, or all, and write bench.json, bench.md and bench.html.

    sizes: instead of each case's own. quick: few and small ones. large: also 2 x 32,768 rows, and
    2 x 262,144 on CUDA. `watch` hears what is being measured, `show` when a case is done.
    Raises UserError for an unknown case or a size that makes no sense, FileExistsError for an
    `out` that is there.
    """
    cases = chosen(only)
    least = max(case.smallest for case in cases)
    if any(n < least or n % 2 for n in sizes):
        raise UserError(
            f"bench --sizes {','.join(map(str, sizes))}: use even sizes of at least {least}, which "
            f"every case asked for can do ({', '.join(case.name for case in cases)})"
        )
    if repeats < 1 or (threads is not None and threads < 1):
        raise UserError(f"bench --repeats {repeats} --threads {threads}: use at least 1")
    device = choose_device(device)
    settings = Settings(
        device=device,
        threads=threads or cores(),
        repeats=min(repeats, 3) if quick else repeats,
        seconds=3.0 if quick else 10.0,
    )
    where = environment(device, multiplies_bf16(device)) | {"peers": versions()}
    record = Record(new_folder(out), cases, settings, where)
    watch("starting")
    forks = Forks(sorted({c.needs for case in cases for c in case.contenders if c.needs}))
    record.ceiling = forks.run(ceiling, settings, sorted({"fp32", where["precision"]}))
    for case in cases:
        for size in sizes or sizes_of(case, device, quick, large):
            for doing in measure_case(record, forks, case, size):
                watch(f"{case.name}, {case.title(size)}: {doing}")
            write(record)
        show(record, case)
    record.native = native.LIBRARY.measured()
    record.complete = True
    write(record)
    return record


def sizes_of(case: Case, device: str, quick: bool, large: bool) -> tuple[int, ...]:
    if quick:
        return case.quick
    if device.startswith("cuda"):
        return case.cuda + (case.large_cuda if large else ())
    return case.sizes + (case.large if large else ())


def offered(case: Case, record: Record) -> list[Contender]:
    """The contenders that are for this device."""
    device, bf16 = record.settings.device, record.environment["precision"] == "bf16"
    return [
        c
        for c in case.contenders
        if (c.device is None or device.startswith(c.device)) and (bf16 or not c.low)
    ]


def measure_case(record: Record, forks: "Forks", case: Case, size: int) -> Iterator[str]:
    """One size of one case; says what comes next."""
    settings, found, slow = record.settings, dict[str, Measured](), list[str]()
    for contender in offered(case, record):
        one = Measured(case.name, size, contender.name)
        why = unfit(case, contender, size, settings.device, record.of(case, contender.name))
        if why is None and settings.device == "cpu":
            yield f"memory of {contender.name}"
            limit = int(SHARE * free_memory("cpu"))
            try:
                extra, seconds, why = forks.run(
                    memory, case.name, contender.name, size, settings, limit,
                    within=None if contender.ours else DEADLINE,
                )  # fmt: skip
                one = replace(one, extra=extra)
                slow += [contender.name] if seconds > LONG else []
            except ForkError as error:
                why = f"failed: {error}"
        found[contender.name] = replace(one, skipped=why)
    able = [name for name, one in found.items() if one.skipped is None]
    together = [name for name in able if name not in slow]
    for names, work in ((together, times), *(([name], once) for name in slow)):
        if not names:
            continue
        yield f"time of {', '.join(names)}"
        try:
            timed = forks.run(work, case.name, names, size, settings)
        except ForkError as error:
            timed = [replace(found[name], skipped=f"failed: {error}") for name in names]
        for one in timed:
            extra = found[one.contender].extra
            found[one.contender] = replace(one, extra=one.extra if extra is None else extra)
    record.results += found.values()


class ForkError(RuntimeError):
    """What a process died of."""


class Forks:
    """Fresh processes, forked from one that has imported the libraries and computed nothing."""

    def __init__(self, modules: Sequence[str]) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads leave the cores alone
        self.context = mp.get_context("forkserver")
        self.context.set_forkserver_preload(["contrapose.bench.measure", *modules])

    def run(self, work: Callable[..., Any], *args: Any, within: float | None = None) -> Any:
        """Its result; ForkError where there is none, or none within so many seconds."""
        mine, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=answer, args=(theirs, work, *args), daemon=True)
        process.start()
        theirs.close()
        try:
            if not mine.poll(within):
                process.kill()
                raise ForkError(f"stopped after {within:.0f} s")
            found, error = mine.recv()
        except EOFError:
            process.join()
            found, error = None, f"killed (exit code {process.exitcode}), out of memory?"
        process.join()
        if error is not None:
            raise ForkError(error)
        return found


def write(record: Record) -> None:
    replace_file(record.folder / "bench.json", as_json_bytes(record.as_json()))
    for name, text in pages(record).items():
        replace_file(record.folder / name, text.encode())


def new_folder(out: Path | None) -> Path:
    """`out`, or runs/bench-1 or the next number that is free; FileExistsError where it is there."""
    if out is None:
        numbered = (Path("runs") / f"bench-{number}" for number in itertools.count(1))
        out = next(path for path in numbered if not path.exists())
    if not unfinished(out):
        raise FileExistsError(f"--out {out} exists and is left as it is; name another folder")
    with said_of(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def versions() -> dict[str, str]:
    """Of the peers."""
    found = {}
    for module, package in PACKAGES.items():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "there" if present(module) else "not installed"
    return found
