"""The machine of a run: its device, its precision, and what the run folder records of it."""

import ctypes
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from contrapose.errors import UserError
from contrapose.version import __version__

T = TypeVar("T")
_UNITS = {"amx_bf16", "bf16"}  # flags of processors that multiply bf16 twice as fast (x86, ARM)


def environment(
    device: str, bf16: bool, asked: tuple[str, str] | None = None, measured: str = ""
) -> dict[str, Any]:
    """Machine, software versions, device and precision of a run, for its environment.json.

    asked: the device and precision that were asked for, of which it says why they are so.
    measured: what decided the precision, where that was measured.
    """
    found = {
        "contrapose": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "precision": "bf16" if bf16 else "fp32",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if asked is None:
        return found
    precision = measured or why_precision(asked[1], device, bf16)
    return found | {"why": {"device": why_device(asked[0], device), "precision": precision}}


def choose_device(device: str) -> str:
    """The device: `auto` is CUDA if there is one, else Apple's mps if there is one, else the CPU.

    UserError for a device that is missing.
    """
    check_device_name(device)
    if device == "auto":
        return next((kind for kind in ("cuda", "mps") if _is_there(kind)), "cpu")
    kind, _, number = device.partition(":")
    if kind != "cpu" and not _is_there(kind):
        what = "CUDA device" if kind == "cuda" else "Metal (mps)"
        raise UserError(f"--device {device}: torch sees no {what} here; use --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: there are {torch.cuda.device_count()}, from 0")
    return device


def check_device_name(device: str) -> None:
    """UserError for what names no device; one that another machine may have is not asked for."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", device):
        raise UserError(f"--device {device}: use auto, cpu, cuda, cuda:N or mps")


def _is_there(kind: str) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


def has_float64(device: torch.device | str) -> bool:
    """Whether a device computes in float64: mps does not, so what needs it is done on the CPU."""
    return torch.device(device).type != "mps"


def as_float64(x: torch.Tensor) -> torch.Tensor:
    """The values in float64, on the CPU where their device has none."""
    return (x if has_float64(x.device) else x.cpu()).double()


def on_device(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the host on a device; the host does not wait until the device has copied it.

    It waits on mps, where torch may copy from memory that is freed by then.
    """
    return x.to(device, non_blocking=torch.device(device).type != "mps")


def on_cpu(value: T) -> T:
    """The dataclass with every tensor in it, in dicts and dataclasses too, on the CPU."""
    assert is_dataclass(value) and not isinstance(value, type)
    moved: dict[str, Any] = {}
    for field in fields(value):
        found = getattr(value, field.name)
        if isinstance(found, torch.Tensor):
            moved[field.name] = found.cpu()
        elif isinstance(found, dict):
            moved[field.name] = {name: x.cpu() for name, x in found.items()}
        elif is_dataclass(found):
            moved[field.name] = on_cpu(found)
    return replace(value, **moved)


def why_device(asked: str, device: str) -> str:
    """Why a run computes there, in words, and what it cannot do there."""
    if asked != "auto":
        why = f"asked for by --device {asked}"
    else:
        why = "torch sees no GPU here" if device == "cpu" else "torch sees it here"
    if device == "mps":
        why += "; signals in float64, and operations that it lacks, are computed on the CPU"
    return why


def why_precision(asked: str, device: str, bf16: bool) -> str:
    """Why a run computes in bf16 or fp32, in words."""
    if asked != "auto":
        return f"asked for by --precision {asked}"
    if device == "mps":
        return "bf16 is only used on mps where it is asked for"
    if device == "cpu" and not bf16 and multiplies_bf16(device):
        return "whether bf16 is faster here was not measured, as for so short a run"
    what = "processor" if device == "cpu" else "GPU"
    return f"this {what} multiplies bf16" if bf16 else f"this {what} does not multiply bf16 itself"


def choose_bf16(precision: str, device: str) -> bool:
    """True for bf16; `auto` is bf16 if the hardware multiplies it in units of its own.

    A processor with AVX-512's bf16 instructions but without AMX is slower in bf16 as often as not
    (`training.precision` measures it), so `auto` is fp32 there.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {precision}: use auto, fp32 or bf16")
    if precision != "auto":
        return precision == "bf16"
    return multiplies_bf16(device) and (device != "cpu" or bool(_cpu_flags() & _UNITS))


def multiplies_bf16(device: str) -> bool:
    """Whether the hardware has instructions for products of bf16; of mps it is not known."""
    if device == "mps":
        return False
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_cpu_flags() & {"avx512_bf16", *_UNITS})


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given: its clock then means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """A context in which the C library keeps freed memory for what this process needs next.

    glibc gives blocks above 32 MB back to the system at once and asks for new pages at the next
    step, each of which the kernel clears: 50,000 to 135,000 page faults in a step of ResNet-18 (32
    px, batch 64), which takes 7 % less time without them. The memory, up to a tenth more, is given
    back at the end. Other C libraries are left as they are.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        yield
        return
    mmap_max, trim, mmap_threshold = -4, -1, -3  # M_MMAP_MAX and so on in malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim, -1)
    try:
        yield
    finally:
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 2**25)  # what glibc arrives at by itself with large blocks
        libc.mallopt(trim, 2**26)
        libc.malloc_trim(0)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: str) -> float:
    """Bytes of free memory of a device: of the GPU, or of this machine or container."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container may be allowed less
        group = Path("/sys/fs/cgroup")
        left = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return float(available)
    return float(min(available, left))


def processor() -> str:
    """The name of the CPU."""
    return _cpuinfo("model name") or platform.processor()


def instructions() -> str:
    """The processor's name and every instruction set it says it has: what a library is made for."""
    return " ".join([processor(), *sorted(_cpu_flags())])


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == field), "")


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
