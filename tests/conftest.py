"""Without a GPU, kernels run under Triton's interpreter: to be said before anything imports it."""

import os
import signal

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes by the argument's name: those of an archive hold the time, and differ by process."""
    return argname if isinstance(val, bytes) else None
