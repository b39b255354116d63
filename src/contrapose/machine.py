"""The machine of a run: its device, its precision, and what the run folder records of it."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from contrapose.errors import UserError
from contrapose.version import __version__


def environment(device: str, bf16: bool) -> dict[str, Any]:
    """Machine, software versions, device and precision of a run, for its recipe.json."""
    return {
        "contrapose": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpuinfo("model name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "precision": "bf16" if bf16 else "fp32",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def choose_device(device: str) -> str:
    """The device: `auto` is CUDA if there is one; UserError for a device that is missing."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "cuda" or (":" in device and not number.isdecimal())):
        raise UserError(f"--device {device}: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: there are {torch.cuda.device_count()}, from 0")
    return device


def choose_bf16(precision: str, device: str) -> bool:
    """True for bf16; `auto` is bf16 if the hardware multiplies it natively."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {precision}: use auto, fp32 or bf16")
    if precision != "auto":
        return precision == "bf16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


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
