"""Experiments: one file each, a figure or a table of a paper reproduced and its claims checked.

A file with `EXPERIMENT = Experiment(...)` is an experiment: `contrapose reproduce NAME`, where NAME
is the file's name, or the path of a file of your own.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

from contrapose.experiments.form import Claim as Claim
from contrapose.experiments.form import Experiment as Experiment
from contrapose.experiments.form import Figure as Figure
from contrapose.experiments.form import Job as Job
from contrapose.experiments.form import Published as Published
from contrapose.experiments.form import Results as Results
from contrapose.experiments.form import Verdict as Verdict
from contrapose.partials import unknown

_DEFINES = re.compile(r"^EXPERIMENT\b", re.MULTILINE)


def names() -> list[str]:
    """The experiments of this package, by file name."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem for f in files if _DEFINES.search(f.read_text(encoding="utf-8")))


def experiment(which: str) -> Experiment:
    """The experiment of that name, or of a file of your own, which is executed."""
    if which.endswith(".py"):
        path = Path(which)
        if not path.is_file():
            raise FileNotFoundError(f"reproduce {which}: there is no such file")
        spec = importlib.util.spec_from_file_location(f"experiment_file_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
    elif which in names():
        module = importlib.import_module(f"{__name__}.{which}")
    else:
        raise ValueError(
            f"reproduce {which}: there is no experiment {unknown(which, names())}; "
            "or give a Python file of your own"
        )
    found = getattr(module, "EXPERIMENT", None)
    if not isinstance(found, Experiment):
        raise ValueError(
            f"reproduce {which}: the file needs `EXPERIMENT = Experiment(...)`; "
            "see contrapose/experiments/swap.py"
        )
    if found.name != Path(which).stem:
        raise ValueError(
            f"reproduce {which}: its experiment calls itself {found.name!r}; name it as its file"
        )
    return found
