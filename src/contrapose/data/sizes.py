"""A check that the content which a file announces fits into memory, before it is allocated."""

from contrapose.errors import UserError
from contrapose.machine import free_memory

BOMB = 200  # times the bytes in the file: more is no data, which hardly compresses
SMALL = 2**28  # bytes that are let through whatever the file holds


def check_size(what: str, size: float, stored: float) -> None:
    """UserError if `size` bytes in memory, read from `stored` bytes of a file, are too many.

    Too many are more than there is memory, or, above SMALL, more than BOMB times the stored bytes.
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
