"""Errors that a user can correct, as a type of their own.

The command line prints a `UserError` as one line; any other error is a fault of the library and
keeps its traceback.
"""

import importlib.util
import os
import re

_ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def check_platform() -> None:
    """Raise ImportError on Windows, whose Python has no module of the file locks used here."""
    if importlib.util.find_spec("fcntl") is None:
        raise ImportError(
            "contrapose does not support Windows; use WSL, the Windows Subsystem for Linux: "
            "`wsl --install`, then install contrapose in there"
        )


def check_one_process(what: str) -> None:
    """UserError where torchrun started several processes, and each would do the whole of it.

    what: that is asked for, as the message repeats it.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if "RANK" not in os.environ or not world.isdecimal() or int(world) < 2:
        return
    raise UserError(
        f"{what}: torchrun started it {world} times (WORLD_SIZE={world}), and it would run whole "
        "in each process, all of which would write the same files. Start it once, without "
        "torchrun; it uses one GPU, or all cores. What runs under torchrun: `contrapose train`, "
        "`evaluate`, `diagnose RUN`, `embed`, `verify`, and the losses in a loop of your own"
    )


def first_of_launched() -> bool:
    """True unless torchrun gave this process another rank than 0: the first one speaks."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


class UserError(ValueError):
    """A request that cannot be carried out; the message repeats it and says what to do."""


class RanksEnded(SystemExit):
    """The exit status of processes that were started here, which have said why they end."""


class Interrupted(Exception):
    """The work was ended by Ctrl-C or a termination signal; the message says how to continue."""


def printable(text: str) -> str:
    """The text with the characters escaped that would act on a terminal: ESC, carriage return,
    marks that turn the direction of writing. Tabs and ends of lines stay.

    Names of files and classes are other people's, and may hold any.
    """
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
