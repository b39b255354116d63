"""The command line: its commands, and the message for errors that a user can correct.

A command imports torch only when it runs, so that `--help` is quick.
"""

import inspect
import io
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from contrapose.commands.align import align
from contrapose.commands.bench import bench
from contrapose.commands.demo import demo
from contrapose.commands.diagnose import diagnose
from contrapose.commands.embed import embed
from contrapose.commands.evaluate import evaluate
from contrapose.commands.finetune import finetune
from contrapose.commands.list_ import list_
from contrapose.commands.report import report
from contrapose.commands.reproduce import reproduce
from contrapose.commands.robustness import robustness
from contrapose.commands.shortcuts import shortcuts
from contrapose.commands.show import show
from contrapose.commands.study import study
from contrapose.commands.train import train
from contrapose.commands.transfer import transfer
from contrapose.commands.tune_temperature import tune_temperature
from contrapose.commands.verify import verify
from contrapose.errors import (
    Interrupted,
    RanksEnded,
    UserError,
    check_one_process,
    check_platform,
    first_of_launched,
    printable,
)


def flowing(command: Callable[..., None]) -> str:
    """The help of a command without the line breaks of its docstring, for terminals of any width.

    A line that begins with a capital letter stays a line of its own.
    """
    return re.sub(r"(?<=\S)\n(?=[^A-Z\s])", " ", inspect.getdoc(command) or "")


app = typer.Typer(
    name="contrapose",
    help="Contrastive learning: train an encoder from images, measure it, explain it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train, evaluate, diagnose, embed, report, demo, verify, reproduce, tune_temperature, shortcuts,
    study, align, finetune, transfer, robustness, show, bench,
):  # fmt: skip
    app.command(help=flowing(command))(command)
app.command(name="list", help=flowing(list_))(list_)
ON_RANKS = ("train", "evaluate", "diagnose", "embed", "verify")


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from contrapose.version import __version__

        typer.echo(f"contrapose {__version__}")
        raise typer.Exit
    refuse_many_processes(context.invoked_subcommand or "")


def refuse_many_processes(command: str) -> None:
    """Exit with status 2, and a sentence from rank 0, if torchrun started several processes.

    Those of ON_RANKS share their work among them.
    """
    if command not in ON_RANKS:
        check_one_process(f"contrapose {command}")


def main() -> None:
    """The entry point: a UserError becomes one message, any other error keeps its traceback."""
    # OpenMP threads that spin while they wait make a shared machine two to three times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # what Apple's mps lacks torch then computes on the CPU, and warns of it once
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _warning
    if not first_of_launched():  # of the processes of torchrun the first one speaks
        sys.stdout = open(os.devnull, "w")
        warnings.simplefilter("ignore")
    try:
        check_platform()
        app(standalone_mode=True)
    except KeyboardInterrupt:
        _stop("interrupted", 130, "")
    except RanksEnded:
        raise
    except SystemExit as end:  # which typer makes of Ctrl-C, without a word
        if end.code == 130:
            _stop("interrupted", 130, "")
        raise
    except Exception as error:
        if os.environ.get("CONTRAPOSE_TRACEBACK"):
            raise
        if isinstance(error, Interrupted):
            _stop(str(error), 130, "", error)
        if _of_memory(error):
            first = str(error).strip().partition("\n")[0]
            _stop(
                f"there is not enough memory ({first}); use a smaller --batch-size, --size or "
                "--encoder, or --set chunk=64, which bounds a batch by time in place of memory",
                2,
                of=error,
            )
        if isinstance(error, UserError | OSError | ImportError | ArithmeticError):
            _stop(str(error), 2, of=error)
        traceback.print_exc()
        _stop(
            f"{type(error).__name__}: {error}. This is a fault of contrapose and not of yours: "
            "please report it with the lines above",
            70,
            of=error,
        )


def _warning(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as a line, without the place in the code that gave it."""
    return f"warning: {printable(str(message))}\n"


def _of_memory(error: Exception) -> bool:
    """True if memory ran out: Python's error, CUDA's, or that of torch's allocator on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and (
        "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )


def _stop(message: str, code: int, prefix: str = "error: ", of: Exception | None = None) -> Any:
    if not first_of_launched():  # what all ranks raise, the first one says
        if of is None or getattr(of, "shared", False) or not hasattr(of, "of_rank"):
            time.sleep(5)  # torchrun ends all once the first has ended: let rank 0 speak before
            sys.exit(code)
        prefix = f"{prefix}rank {os.environ['RANK']}: "
    from rich.text import Text

    from contrapose.commands.console import PlainConsole

    PlainConsole(stderr=True).print(Text(prefix, style="bold red") + Text(message), soft_wrap=True)
    # An interrupt that passed through exec() of a string, as while a dataclass is being defined,
    # leaves a mark for which `python -m` ends by the signal and not with `code`; this clears it.
    exec("")
    sys.exit(code)
