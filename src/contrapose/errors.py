"""Errors that a user can mend, told apart from faults of the library.

The command line turns a `UserError` into one line; any other error keeps its traceback.
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
    """What was asked for cannot be done; the message repeats the request and says what to do."""


class Interrupted(Exception):
    """Ctrl-C or a termination signal ended the work; the message says how to go on with it."""
