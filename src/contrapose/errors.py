"""Errors that a user can correct, as a type of their own.

The command line prints a `UserError` as one line; any other error is a fault of the library and
keeps its traceback.
"""

import importlib.util


def check_platform() -> None:
    """Raise ImportError on Windows, whose Python has no module of the file locks used here."""
    if importlib.util.find_spec("fcntl") is None:
        raise ImportError(
            "contrapose does not support Windows; use WSL, the Windows Subsystem for Linux: "
            "`wsl --install`, then install contrapose in there"
        )


class UserError(ValueError):
    """A request that cannot be carried out; the message repeats it and says what to do."""


class Interrupted(Exception):
    """The work was ended by Ctrl-C or a termination signal; the message says how to continue."""
