"""Experiments: one file each, which reproduces a figure or a table of a paper and tests its claims.

An experiment is a Python file with `EXPERIMENT = Experiment(...)`. `contrapose reproduce NAME` runs
it, with NAME the name of the file or the path of your own. The experiments of each paper are in a
folder of their own (a lab), whose `__init__` lists them.
"""

import importlib
from pathlib import Path
from types import ModuleType

from contrapose.errors import UserError
from contrapose.experiments import simclr, supervised, suppression, temperature
from contrapose.experiments.form import Claim as Claim
from contrapose.experiments.form import Experiment as Experiment
from contrapose.experiments.form import Figure as Figure
from contrapose.experiments.form import Job as Job
from contrapose.experiments.form import Published as Published
from contrapose.experiments.form import Results as Results
from contrapose.experiments.form import Verdict as Verdict
from contrapose.partials import expected, module_of_file, unknown

LABS = (suppression, temperature, supervised, simclr)


def names() -> list[str]:
    """The experiments of this package, by file name."""
    return sorted(name for lab in LABS for name in lab.EXPERIMENTS)


def expectation(name: str) -> str:
    """What to expect of an experiment, in results and time: a paragraph of its docstring."""
    return expected(_module(name))


def experiment(which: str) -> Experiment:
    """The experiment with this name, or of a file of your own, which is executed."""
    if which.endswith(".py"):
        module = module_of_file(which, request=f"reproduce {which}", prefix="experiment_file")
    elif which in names():
        module = _module(which)
    else:
        raise UserError(
            f"reproduce {which}: there is no experiment {unknown(which, names())}; "
            "or give a Python file of your own"
        )
    found = getattr(module, "EXPERIMENT", None)
    if not isinstance(found, Experiment):
        raise UserError(
            f"reproduce {which}: the file needs `EXPERIMENT = Experiment(...)`; "
            "see contrapose/experiments/temperature/swap.py"
        )
    if found.name != Path(which).stem:
        raise UserError(
            f"reproduce {which}: its experiment calls itself {found.name!r}; name it as its file"
        )
    return found


def _module(name: str) -> ModuleType:
    """The module of an experiment of this package."""
    lab = next(lab for lab in LABS if name in lab.EXPERIMENTS)
    return importlib.import_module(f"{lab.__name__}.{name}")
