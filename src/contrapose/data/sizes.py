"""Whether what a file says that it holds can be held: asked before memory is taken."""

from contrapose.errors import UserError
from contrapose.machine import free_memory

BOMB = 200  # times the bytes in the file: more is no data, which hardly compresses
SMALL = 2**28  # bytes that are let through whatever the file holds


def check_size(what: str, size: float, stored: float) -> None:
    """Raise UserError for `size` bytes in memory out of `stored` bytes in a file, if too many.

    Too many: above SMALL and BOMB times those in the file, or more than there is memory.
    """
    if size <= SMALL:
        return
    if size > BOMB * max(1, stored):
        raise UserError(
            f"{what} would take {_gb(size)} of memory out of {_gb(stored)} in the file, which no "
            "measured numbers do; if it is meant, save it without compression"
        )
    if size > (free := free_memory("cpu")):
        raise UserError(
            f"{what} takes {_gb(size)} of memory, and {_gb(free)} are free; give fewer rows"
        )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"
