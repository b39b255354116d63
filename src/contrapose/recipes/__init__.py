"""Named recipes: one file each, in the same form as a recipe file of your own.

A recipe file defines `recipe`, which is a `Recipe` or a function (size, channels) -> Recipe. The
docstring of a named recipe has a paragraph that begins with "Expect": accuracy and time, measured.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from contrapose.errors import UserError
from contrapose.partials import expected, module_of_file, unknown
from contrapose.training.recipe import Recipe


def names() -> list[str]:
    """The recipes of this package, by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def recipe_for(which: str | Path | Recipe, size: int, channels: int) -> Recipe:
    """The recipe of that name or file, for images of this size (px) and number of channels."""
    if isinstance(which, Recipe):
        return which
    found = getattr(module(str(which)), "recipe", None)
    if callable(found):
        found = found(size=size, channels=channels)
    if not isinstance(found, Recipe):
        raise UserError(
            f"--recipe {which}: the file needs `recipe = Recipe(...)` or "
            "`def recipe(size, channels) -> Recipe`; see contrapose/recipes/simclr.py"
        )
    return found


def summary(name: str) -> str:
    """The first line of a recipe's docstring."""
    return (module(name).__doc__ or "").strip().partition("\n")[0]


def expectation(name: str) -> str:
    """What to expect of a recipe, in accuracy and time: a paragraph of its docstring."""
    return expected(module(name))


def module(which: str | Path) -> ModuleType:
    """The module of a named recipe, or of a file, which is executed."""
    which = str(which)
    if which.endswith(".py"):
        return module_of_file(which, request=f"--recipe {which}", prefix="recipe_file")
    if which not in names():
        raise UserError(
            f"--recipe {which}: there is no recipe {unknown(which, names())}; "
            "or give a Python file of your own"
        )
    return importlib.import_module(f"{__name__}.{which}")
