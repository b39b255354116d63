"""Errors that a user can mend, told apart from faults of the library.

The command line turns a `UserError` into one line; any other error keeps its traceback.
"""


class UserError(ValueError):
    """What was asked for cannot be done; the message repeats the request and says what to do."""


class Interrupted(Exception):
    """Ctrl-C or a termination signal ended the work; the message says how to go on with it."""
