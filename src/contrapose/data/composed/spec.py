"""Composed sets written as text: `random-bits(digits-on-images(cifar10, mnist), bits=10)`.

The text is a call of one of the functions in `COMPOSED`. Its sets are any text that `open_images`
accepts; its options are those of the function.
"""

import inspect
import os
import re
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrapose.data.composed.sets import (
    coloured,
    digits_on_images,
    many_digits,
    random_bits,
    two_digits,
)
from contrapose.data.images import ImageSet, NoSuchSplit
from contrapose.data.shards import expanded, is_pattern
from contrapose.data.split import hold_out
from contrapose.data.values import RGB, ValueRange
from contrapose.errors import UserError
from contrapose.partials import arguments, parse, unknown

COMPOSED: dict[str, Callable[..., ImageSet]] = {
    function.__name__.replace("_", "-"): function
    for function in (many_digits, digits_on_images, two_digits, random_bits, coloured)
}
_CALL = re.compile(r"\s*([A-Za-z][\w-]*)\s*\((.*)\)\s*", re.DOTALL)
_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)


def is_call(text: str) -> bool:
    """True if the text has the form of a call, even if it cannot be opened."""
    return _CALL.fullmatch(text) is not None


def usage(name: str) -> str:
    """The call with its options, `digits-on-images(IMAGES, GLYPHS, unique=none, ...)`."""
    function = COMPOSED[name]
    options = [
        f"{p.name}={'none' if p.default is None else p.default}"
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    return f"{name}({', '.join([*(s.upper() for s in _sets(function)), *options])})"


def open_call(
    text: str,
    split: str,
    open_set: Callable[..., ImageSet],
    *,
    size: int | None = None,
    channels: int | None = None,
    rgb: RGB | None = None,
    value_range: ValueRange | None = None,
) -> ImageSet:
    """The set that the text describes; `open_set(text, split=, size=, channels=)` opens its parts.

    size, channels: of the composed images. value_range: of the first part, on which glyphs are
    pasted. Raises what `open_set` raises, and UserError, with the nearest name, for a call that
    cannot be read.
    """
    name, parts, options = _parsed(text)
    function = COMPOSED[name]
    sets, settable = _sets(function), arguments(function)
    if len(parts) != len(sets):
        wanted = " and ".join(s.upper() for s in sets)
        raise UserError(f"{text}: {name} takes {wanted}, got {len(parts)}; write {usage(name)}")
    given: dict[str, Any] = {}
    for key, value in options.items():
        if key not in settable:
            raise UserError(f"{text}: {name} has no {unknown(key, settable)}")
        given[key] = parse(value, settable[key], f"{text}: {key}={value}")
    for key, asked in (("canvas", size), ("channels", channels)):
        if key in settable and asked is not None and given.setdefault(key, asked) != asked:
            raise UserError(f"{text}: {key}={given[key]}, but {asked} is asked for; use one")
    opened: list[ImageSet] = []
    for role, part in zip(sets, parts, strict=True):
        if role == "images":
            under = None if function is coloured else channels  # three come out of any
            how: dict[str, Any] = {"split": split, "size": size, "channels": under, "rgb": rgb}
        else:
            # the same K glyphs in every split: a feature is whether an encoder tells them apart
            same = given.get("unique") is not None
            how = {"split": "train" if same else split, "channels": 1}
        if not opened:
            how["value_range"] = value_range
        opened.append((_glyphs if role == "glyphs" else _opened)(name, role, part, open_set, how))
    made = function(*opened, **given)
    if channels not in (None, made.shown):
        raise UserError(f"{text}: channels={channels}, but its images have {made.shown}")
    return replace(made, name=text.strip())


def absolute(text: str, keep: Container[str] = ()) -> str:
    """The text with absolute paths, for other working directories; names in `keep` stay as they
    are."""
    if text in keep:
        return text
    if is_pattern(text) and Path(expanded(text)[0]).exists():
        return os.path.abspath(text)
    found = _CALL.fullmatch(text)
    if found is None or Path(text).exists():
        return str(Path(text).resolve()) if Path(text).exists() else text
    parts = [p if _OPTION.fullmatch(p) else absolute(p, keep) for p in _split(found[2])]
    return f"{found[1]}({', '.join(parts)})"


def _opened(
    name: str, role: str, part: str, open_set: Callable[..., ImageSet], how: dict[str, Any]
) -> ImageSet:
    try:
        return open_set(part, **how)
    except (ValueError, FileNotFoundError) as error:
        if type(error) not in (ValueError, UserError, FileNotFoundError, NoSuchSplit):
            raise
        raise type(error)(f"{name}: its {role}: {error}") from error


def _glyphs(
    name: str, role: str, part: str, open_set: Callable[..., ImageSet], how: dict[str, Any]
) -> ImageSet:
    """The glyphs of a split; if the set has no test split, a fifth of its glyphs are held out for
    test, since the canvases of both splits would show the same glyphs otherwise."""
    try:
        found = _opened(name, role, part, open_set, how)
    except NoSuchSplit:
        if how["split"] != "test":
            raise
        found = _opened(name, role, part, open_set, how | {"split": "train"})
        if len(found) < 2:
            raise
    if found.split != "all" or len(found) < 2:
        return found
    kept, held = hold_out(found)
    return held if how["split"] == "test" else kept


def _parsed(text: str) -> tuple[str, list[str], dict[str, str]]:
    found = _CALL.fullmatch(text)
    assert found is not None
    name = found[1].replace("_", "-")
    if name not in COMPOSED:
        raise UserError(
            f"{text}: no such file or folder, and no composed set {unknown(name, COMPOSED)}"
        )
    parts: list[str] = []
    options: dict[str, str] = {}
    for part in _split(found[2]):
        option = _OPTION.fullmatch(part)
        if option is None:
            parts.append(part)
        elif option[1] in options:
            raise UserError(f"{text}: {option[1]} is given twice")
        else:
            options[option[1]] = option[2].strip()
    return name, parts, options


def _split(text: str) -> list[str]:
    """The text split at the commas outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _sets(function: Callable[..., ImageSet]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
