"""Functions with their arguments as JSON, read back from it, and changed by a path.

A recipe contains `functools.partial` objects. `describe` writes one as {"call": name, argument:
value}; `revive` reads it back and only returns public functions of this package, so that a run
folder from an unknown source executes nothing. `assign` implements `--set loss.temperature=0.1`.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contrapose.errors import UserError

HOMES = (
    "contrapose.losses",
    "contrapose.keys",
    "contrapose.augment",
    "contrapose.encoders",
    "contrapose.training.batches",
    "contrapose.training.in_time",
    "contrapose.training.optim",
    "contrapose.training.stages",
)

_LABS = {  # experiments that were files of one folder
    "suppression": (
        "batch_size", "digit_sizes", "digits_on_images", "generalised_losses", "local_features",
        "multiple_objects", "random_bits", "random_bits_details", "random_bits_notebook",
        "remedies", "who_keeps_both",
    ),
    "temperature": (
        "perplexity", "relations", "swap", "temperature_gradients", "temperature_limits",
        "temperature_sweep",
    ),
}  # fmt: skip
_FUNCTIONS = {  # (module before, module now) -> functions that moved alone
    ("experiments.trained", "experiments.measures"): (
        "linear_probe", "sgd_probe", "knn", "uniformity", "tolerance", "effective_rank",
        "local_separation",
    ),
    ("experiments.random_bits_notebook", "experiments.suppression.notebook"): (
        "cell", "Details", "cross_view",
    ),
}  # fmt: skip
MOVED = {  # names that older recipes, encoder files and job folders hold, and where they are now
    "contrapose.experiments.temperature.relations.neighbours": "contrapose.keys.sources.support",
    "contrapose.experiments.chen_luo_li": "contrapose.experiments.suppression.protocol",
    "contrapose.experiments.wang_liu": "contrapose.experiments.temperature.protocol",
    "contrapose.experiments.temperature_claims": "contrapose.experiments.temperature.claims",
    "contrapose.shortcuts": "contrapose.studies.shortcuts",
    "contrapose.tuning": "contrapose.studies.tuning",
    "contrapose.similarity.everyone": "contrapose.similarity.gather_rows",
    "contrapose.augment.chance": "contrapose.augment.bernoulli",
    "contrapose.augment.Step": "contrapose.augment.Operation",
    "contrapose.evaluation.local.told": "contrapose.evaluation.local.uncertainty_coefficient",
    "contrapose.training.rehearsal": "contrapose.training.dry_run",
    **{
        f"contrapose.{before}.felt": "contrapose.studies.tuning.effective_negatives"
        for before in ("tuning", "studies.tuning")
    },
    **{
        f"contrapose.experiments.{before}.readable": (
            "contrapose.experiments.suppression.protocol.feature_accuracies"
        )
        for before in ("chen_luo_li", "suppression.protocol")
    },
    **{
        f"contrapose.experiments.{name}": f"contrapose.experiments.{lab}.{name}"
        for lab, names in _LABS.items()
        for name in names
    },
    **{
        f"contrapose.{before}.{name}": f"contrapose.{now}.{name}"
        for (before, now), names in _FUNCTIONS.items()
        for name in names
    },
}

EITHER = (("temperature", "perplexity"),)  # setting one leaves the other out


def describe(value: Any) -> Any:
    """The value as JSON, for run folders and reports."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, functools.partial):
        if value.args:
            raise UserError(f"{value}: give its arguments by name; positions have none to note")
        return {"call": describe(value.func), **{k: describe(v) for k, v in value.keywords.items()}}
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    if isinstance(value, tuple | list):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {k: describe(v) for k, v in value.items()}
    return value


def revive(described: Any, own: types.ModuleType | None = None) -> Any:
    """The function or partial that `describe` wrote.

    ValueError for a function that is neither in HOMES nor in `own`, a module of the caller.
    """
    if isinstance(described, str):
        return _function(described, own)
    if isinstance(described, dict) and isinstance(described.get("call"), str):
        function = _function(described["call"], own)
        known = arguments(function)
        keywords = {}
        for name in (name for name in described if name != "call"):
            if name not in known and not _takes_any(function):
                raise UserError(f"{described['call']} has no {unknown(name, known)}")
            kind = known.get(name, Any)
            try:
                keywords[name] = value = _plain(described[name], own, kind)
            except ValueError as error:
                raise UserError(f"{described['call']}: {name}: {error}") from error
            if not any(_fits(value, each) for each in _kinds(kind)):
                raise UserError(f"{described['call']}: {name} is {value!r}, not {_words(kind)}")
        return functools.partial(function, **keywords)
    raise UserError(f"{described!r} describes no function: expected a name, or {{'call': name}}")


def up_to_date(described: Any) -> Any:
    """What `describe` wrote, with the present names of functions that were moved or renamed."""
    if isinstance(described, dict):
        return {name: up_to_date(value) for name, value in described.items()}
    if isinstance(described, list):
        return [up_to_date(value) for value in described]
    if isinstance(described, str) and described.startswith("contrapose."):
        if described in MOVED:
            return MOVED[described]
        module, _, name = described.rpartition(".")
        if module in MOVED:
            return f"{MOVED[module]}.{name}"
        with contextlib.suppress(ValueError):  # no function of HOMES: it stays as it is
            return describe(_function(described, None))
    return described


def module_of_file(which: str | Path, *, request: str, prefix: str) -> types.ModuleType:
    """The module of a user's Python file, which is executed.

    request: what was asked for, for messages of errors. prefix: of the module's name.
    """
    path = Path(which)
    if not path.is_file():
        raise FileNotFoundError(f"{request}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"{prefix}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        named = re.search(r"cannot import name '(\w+)'", str(error))
        wanted = f"{error.name}.{named[1]}" if named else str(error.name)
        now = up_to_date(wanted)
        hint = f"; it is {now} now" if now != wanted else ""
        raise UserError(f"{request}: {which} imports what is not there ({error}){hint}") from error
    return module


def expected(module: types.ModuleType) -> str:
    """The paragraph of the module's docstring that begins with "Expect", as one line; or ""."""
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    return " ".join(next((p for p in paragraphs if p.startswith("Expect ")), "").split())


def assign(recipe: Any, path: str, text: str) -> Any:
    """A copy of the recipe with the value at `path` ("loss.temperature") read from `text`.

    The last name may be an argument of a function the recipe holds, or a field; a field that is a
    function takes another function's name. Raises ValueError that lists the names that exist.
    """
    name, _, argument = path.partition(".")
    fields = [f.name for f in dataclasses.fields(recipe)]
    if name not in fields:
        raise UserError(f"--set {path}={text}: the recipe has no {unknown(name, fields)}")
    value = getattr(recipe, name)
    if not argument:
        field = next(f for f in dataclasses.fields(recipe) if f.name == name)
        if field.default is None and text.lower() == "none":
            new = None
        elif callable(value) or "like" in field.metadata:
            new = _other_function(value, path, text, field.metadata)
        else:
            annotation = typing.get_type_hints(type(recipe))[name]
            new = parse(text, annotation, f"--set {path}={text}")
        return dataclasses.replace(recipe, **{name: new})
    if not callable(value):
        field = next(f for f in dataclasses.fields(recipe) if f.name == name)
        like = field.metadata.get("like", "").rpartition(".")[2]
        hint = f"; put --set {name}={like} before it, for instance" if like else ""
        raise UserError(
            f"--set {path}={text}: {name} is a value ({value!r}) without arguments{hint}"
        )
    partial = value if isinstance(value, functools.partial) else functools.partial(value)
    settable = arguments(partial.func)
    if argument not in settable and not _takes_any(partial.func):
        raise UserError(
            f"--set {path}={text}: {partial.func.__name__} has no {unknown(argument, settable)}"
        )
    kind = settable.get(argument, Any)
    if any(typing.get_origin(k) is Callable for k in _kinds(kind)):
        family = partial.keywords.get(argument, partial.func)
        new = _other_function(family, path, text, {"keep": False})
    else:
        new = parse(text, kind, f"--set {path}={text}")
    keywords = dict(partial.keywords)
    for pair in EITHER:
        if argument in pair:
            keywords = {k: v for k, v in keywords.items() if k not in pair}
    replaced = functools.partial(partial.func, **(keywords | {argument: new}))
    return dataclasses.replace(recipe, **{name: replaced})


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that a recipe may set, with their annotations."""
    return {
        name: p.annotation
        for name, p in inspect.signature(function, eval_str=True).parameters.items()
        if p.kind is p.KEYWORD_ONLY or p.default is not p.empty
    }


def parse(text: str, annotation: Any, request: str) -> Any:
    """`text` as the annotated type; ValueError that repeats the request and names the type, or the
    values that there are."""
    for kind in _alternatives(annotation):
        found = _read(text, kind)
        if found is not _WRONG:
            return found
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in _alternatives(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        values = map(str, typing.get_args(annotation))
        raise UserError(f"{request}: there is no {unknown(text, values)}")
    raise UserError(f"{request}: {text!r} is not of type {wanted}")


def unknown(name: str, known: Iterable[str]) -> str:
    """`'temprature'; did you mean 'temperature'? It has: temperature, weight`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{name!r}{hint} Available: {', '.join(known) or '(none)'}"


def given(function: Callable[..., Any]) -> list[str]:
    """The names of positional parameters without a default, which the caller passes."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]


def alike(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The public functions that can replace it, since they are called with the same values."""
    home = _home(function)
    assert home is not None
    found = public_functions(importlib.import_module(home))
    return {name: f for name, f in found.items() if given(f) == given(function)}


def public_functions(module: types.ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a module exports, in its order."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and _home(value) is not None
    }


_WRONG = object()


def _read(text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is types.NoneType:
            return None if text.lower() == "none" else _WRONG
        if kind in (int, str):
            return kind(text)
        if kind is float:
            number = float(text)
            return number if math.isfinite(number) else _WRONG
        if typing.get_origin(kind) is typing.Literal:
            return next((v for v in typing.get_args(kind) if str(v) == text), _WRONG)
        if typing.get_origin(kind) in (tuple, Sequence):
            inner = [a for a in typing.get_args(kind) if a is not ...]
            parts = [part for part in text.strip("()").split(",") if part.strip()]
            fixed = typing.get_origin(kind) is tuple and ... not in typing.get_args(kind)
            kinds = inner if fixed else inner * len(parts)
            read = [_read(p.strip(), k) for p, k in zip(parts, kinds, strict=True)]
            return _WRONG if any(r is _WRONG for r in read) else tuple(read)
    except (ValueError, KeyError):
        pass
    return _WRONG


def _alternatives(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        # None and numbers before text, so that "none" and "3" are not read as strings
        return sorted(typing.get_args(annotation), key=lambda kind: kind is str)
    return [float, str] if annotation in (inspect.Parameter.empty, Any) else [annotation]


def _other_function(value: Any, path: str, text: str, metadata: Mapping[str, Any]) -> Any:
    """`--set loss=dcl`: a function of the same module family, keeping the arguments it shares.

    Metadata of the field: `like` names a function that stands for a value of None, `any` permits
    functions of the family that are called otherwise, `keep` = False drops the old arguments.
    """
    value = _function(metadata["like"], None) if value is None else value
    current = value.func if isinstance(value, functools.partial) else value
    kept = value.keywords if isinstance(value, functools.partial) else {}
    home = _home(current)
    if home is None:
        raise UserError(f"--set {path}={text}: {path} is your own function; change it in your file")
    choices = alike(current)
    if metadata.get("any"):
        choices |= public_functions(importlib.import_module(home))
    if text not in choices:
        raise UserError(f"--set {path}={text}: {home} has no {unknown(text, choices)}")
    names = arguments(choices[text]) if metadata.get("keep", True) else {}
    return functools.partial(choices[text], **{k: v for k, v in kept.items() if k in names})


def _home(function: Callable[..., Any]) -> str | None:
    module = function.__module__ or ""
    return next((h for h in HOMES if module == h or module.startswith(h + ".")), None)


def _function(name: str, own: types.ModuleType | None) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    for value in _named_in(own) if own is not None else ():
        if inspect.isfunction(value) and f"{value.__module__}.{value.__qualname__}" == name:
            return value
    if any(module == h or module.startswith(h + ".") for h in HOMES):
        function = getattr(importlib.import_module(module), attribute, None)
        if inspect.isfunction(function) and not attribute.startswith("_") and _home(function):
            return function
    raise UserError(
        f"{name!r} is not a function of this library, so it is not called from a file. "
        "If it is your own, give the recipe file again with --recipe FILE.py; where `recipe` is a "
        "function there, the file must define it, or import it by name"
    )


def _named_in(own: types.ModuleType) -> Iterator[Any]:
    """The values that a user's module names, and those in its recipe, whatever they come from."""
    values, recipe = [*vars(own).values()], getattr(own, "recipe", None)
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        values += [getattr(recipe, field.name) for field in dataclasses.fields(recipe)]
    while values:
        value = values.pop()
        if isinstance(value, functools.partial):
            values += [value.func, *value.keywords.values()]
        yield value


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _plain(value: Any, own: types.ModuleType | None, kind: Any = Any) -> Any:
    """The value of an argument of this kind, from what `describe` wrote."""
    takes_function = any(typing.get_origin(k) is Callable for k in _kinds(kind))
    if isinstance(value, dict) or (isinstance(value, str) and takes_function):
        return revive(value, own)
    return tuple(_plain(v, own) for v in value) if isinstance(value, list) else value


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _words(annotation: Any) -> str:
    return " or ".join(getattr(kind, "__name__", str(kind)) for kind in _kinds(annotation))


def _fits(value: Any, kind: Any) -> bool:
    """True if a value read from a file is valid for this annotation."""
    if kind in (float, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind is float and isinstance(value, float) and math.isfinite(value))
    if kind in (Any, inspect.Parameter.empty):
        return True
    if isinstance(kind, type):
        return isinstance(value, kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in inner
    if origin in (tuple, Sequence):
        if not isinstance(value, tuple):
            return False
        if origin is tuple and ... not in inner:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(any(_fits(v, each) for each in _kinds(inner[0])) for v in value)
    return callable(value) if origin is Callable else True
