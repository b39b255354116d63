"""A study of shortcuts: easy features that the views of images share, and how to remove them.

    contrapose shortcuts digits

Contrastive learning can solve its task by a colour or a frame that all views of an image share, and
then need not learn the content of images. For each easy feature this study measures how well it
alone identifies the image of a view, how much of it h has after a brief training, and both again
with a suggested augmentation.
"""

import io
import math
import pprint
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from contrapose import adapt, api, augment, explain, recipes
from contrapose.data import ImageSet, Request, evenly
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation import easy_features as easy
from contrapose.evaluation.embed import embed_views
from contrapose.evaluation.scores import Score
from contrapose.explain.pictures import to_uint8
from contrapose.files import (
    RUNS,
    as_file_name,
    as_json_bytes,
    check_writable,
    clear,
    replace_file,
    said_of,
    unfinished,
)
from contrapose.machine import choose_device
from contrapose.partials import describe
from contrapose.progress import counted
from contrapose.report import write_shortcuts
from contrapose.studies.candidates import Candidate, candidates, with_suggestions
from contrapose.training import loop
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run
from contrapose.training.state import Progress
from contrapose.version import __version__

FORMAT = 1
FILE, PICTURES, RECIPE = "shortcuts.json", "shortcuts.npz", "hardened.py"


SIDE = 64  # px at most at which images are stored where no size is asked for
COUNT = 1000  # images whose views are compared


LEAST = 32  # images
CLEARLY, PARTLY = 2.0, 1.0  # bits about the image from which a feature counts as shared
QUERIES, SHOWN, THUMB = 6, 5, 64  # of the evidence: views asked with, found for each; px


def examine(
    data: Any,
    *,
    recipe: str = "simclr",
    encoder: str = "small_conv",
    steps: int = 200,
    images: int = 5000,
    changes: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    out: Path | str | None = None,
    command: str | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
    **how: Any,
) -> tuple[dict[str, Any], Path]:
    """(results, report page); both are written into the folder `out`.

    data: a source of `open_images`, a `Request` (how: its fields), or a run folder, whose encoder,
    recipe and images are then examined as they are. Otherwise `encoder` is trained for `steps`
    steps on at most `images` images, once by the recipe and once with the suggestions against all
    shared features.
    out: by default runs/shortcuts- and the name of the data.
    size: px, at which images are stored; by default at most 64.
    After a kill the same call continues. Raises UserError for too few images, and for a folder with
    another request.
    """
    if steps < 1 or images < LEAST:
        raise UserError(f"--steps {steps} --images {images}: use at least 1 step, {LEAST} images")
    check_writable(Path(out or RUNS))
    run = Path(data) if isinstance(data, str | Path) and _is_run(Path(data)) else None
    asked = device
    if run is not None:
        _refuse(run, how, changes)
        subject = explain.Subject.open(run, device=device)
        source, chosen, device = subject.train, subject.recipe, subject.device
        trained: Encoder | None = subject.encoder
    else:
        source, device = _opened(Request.of(data, **how)), choose_device(device)
        trained = None
        source = source if len(source) <= images else source.subset(evenly(len(source), images))
        _enough(source)
        chosen = _brief(recipe, source, encoder, steps, seed, changes)
        loop.check(chosen, source)
    _enough(source)
    folder = RUNS / f"shortcuts-{as_file_name(source.name)}" if out is None else Path(out)
    request = {
        "data": str(data) if isinstance(data, str | Path) else source.name, "how": describe(how),
        "fingerprint": source.fingerprint, "images": len(source), "size": source.size,
        "recipe": chosen.name if run else recipe, "run": str(run) if run else None,
        "encoder": None if run else encoder, "steps": None if run else steps,
        "changes": list(changes), "seed": chosen.seed,
    }  # fmt: skip
    _claim(folder, request)

    every = candidates(source)
    some = source.subset(evenly(len(source), COUNT))
    looking = counted(every, "what the views share")
    before = {c.name: shared_by_views(c, some, chosen.policy, chosen.seed) for c in looking}
    stronger = {
        c.name: replace(chosen, views=with_suggestions(chosen.views, source, [c])) for c in every
    }
    alone = {
        c.name: shared_by_views(c, some, stronger[c.name].policy, chosen.seed)
        for c in counted(every, "what stronger views would share")
    }
    taken = [c for c in every if before[c.name][0].bits.low >= PARTLY]
    hard = replace(chosen, views=with_suggestions(chosen.views, source, taken))
    again = None
    if trained is None:
        trained = api.encoder_in(folder / "as-it-is", chosen, source, asked, watch, begin)
        if taken:
            again = api.encoder_in(folder / "hardened", hard, source, asked, watch, begin)
    untrained = adapt.untrained(chosen, source, device)
    read = [
        read_from_h(every, some, of, policy, chosen.seed, device)
        for of, policy in ((trained, chosen.policy), (untrained, chosen.policy))
    ]
    after = (
        {} if again is None else read_from_h(every, some, again, hard.policy, chosen.seed, device)
    )
    repeated = easy.duplicates(source)
    rows = [
        _row(c, before[c.name][0], alone[c.name][0], read[0][c.name], read[1][c.name],
             after.get(c.name) if c in taken else None)
        for c in every
    ]  # fmt: skip
    rows.sort(key=lambda row: -row["bits"]["value"])
    found = {
        "format": FORMAT, "request": request, "command": command, "contrapose": __version__,
        "of": repr(source), "split": source.split, "compared": len(some),
        "at_most": math.log2(len(some)), "brief": run is None,
        "candidates": rows, "duplicates": _duplicates(source, repeated),
        "suggested": [c.suggestion for c in taken], "recipe_file": RECIPE if taken else None,
    }  # fmt: skip
    if taken:
        which = str(request["recipe"])
        text = _recipe_file(which, changes, source, taken) if run is None else _of_run(run, hard)
        replace_file(folder / RECIPE, text.encode())
    drawings = _drawings(every, before, alone, source, repeated)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **drawings)  # type: ignore[arg-type]
    replace_file(folder / PICTURES, buffer.getvalue())
    replace_file(folder / FILE, as_json_bytes(found))
    return found, write_shortcuts(folder)


Compared = tuple[easy.Shared, Float[Tensor, "V B C S S"]]


def shared_by_views(c: Candidate, images: ImageSet, policy: Any, seed: int) -> Compared:
    """How well the feature identifies the image of a view, and the views."""
    generator = torch.Generator().manual_seed(seed)
    everything = torch.split(torch.arange(len(images)), 256)
    views = torch.cat(
        [augment.views(policy, images.batch(i).cpu(), generator, n=2) for i in everything], dim=1
    )
    a, b = (c.feature(view) for view in views)
    found = easy.shared(a, b, what=c.words, split=images.split, seed=seed, shown=SHOWN)
    return found, views[:, :, : images.channels]


def read_from_h(
    every: Sequence[Candidate], images: ImageSet, encoder: Encoder, policy: Any, seed: int,
    device: str,
) -> dict[str, Score]:  # fmt: skip
    """R^2 of each feature of an image, predicted from h of a view of it."""
    h, _ = embed_views(encoder, images, policy, n=1, features="h", seed=seed, device=device)
    plain = augment.center(images.batch(torch.arange(len(images))).cpu(), images.size)
    return {
        c.name: easy.readable(h, c.asked(plain), what=c.words, split=images.split, seed=seed)
        for c in counted(every, "what h holds")
    }


def _row(
    c: Candidate, before: easy.Shared, alone: easy.Shared, h: Score, untrained: Score,
    after: Score | None,
) -> dict[str, Any]:  # fmt: skip
    """The record of one feature in shortcuts.json, with its sentences."""
    bits, n = before.bits, before.found.n
    clearly, partly = bits.low >= CLEARLY, bits.low >= PARTLY
    state = "shared" if clearly else "partly shared" if partly else "hardly shared"
    held = h.value == h.value and h.value >= 0.5
    sentence = (
        f"{c.words[0].upper()}{c.words[1:]} alone finds an image's other view among {n:,} in "
        f"{_percent(before.found)} of cases (chance {100 / n:.2g} %) and carries {bits.value:.1f} "
        f"of the {math.log2(n):.1f} bits that name it."
    )
    if h.value == h.value:
        sentence += f" From h of a view it is read with R² {h.value:.2f}, from an untrained"
        sentence += f" encoder's with {untrained.value:.2f}."
    instead = f"With {c.suggestion}: {alone.bits.value:.1f} bits, found in {_percent(alone.found)}"
    if after is not None and after.value == after.value:
        instead += "; after as brief a training with all suggestions h reads it with R² "
        instead += f"{after.value:.2f}"
    return {
        "name": c.name, "title": c.title,
        "level": "bad" if clearly and held else "warn" if partly else "good",
        "state": state, "sentence": sentence, "instead": f"{instead}.",
        "suggestion": c.suggestion, "suggested": partly, "found": asdict(before.found),
        "bits": asdict(bits), "h": asdict(h),
        "untrained": asdict(untrained), "found_after": asdict(alone.found),
        "bits_after": asdict(alone.bits), "h_after": None if after is None else asdict(after),
    }  # fmt: skip


def _percent(score: Score) -> str:
    return f"{100 * score.value:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _duplicates(images: ImageSet, repeated: Any) -> dict[str, Any]:
    """Repeated images, which are negatives of themselves."""
    groups, near = repeated
    more = sum(len(group) - 1 for group in groups)
    words = (
        f"Of {len(images):,} images {_count(more, 'repeats', 'repeat')} another exactly, and "
        f"{_count(len(near), 'pair is', 'pairs are')} nearly the same. Views of both show one "
        "thing, and the loss pushes them apart."
    )
    return {
        "exact": more, "groups": len(groups), "near": len(near),
        "level": "warn" if more + len(near) else "good",
        "state": "duplicates" if more + len(near) else "no duplicates",
        "files": [images.subset(torch.tensor(pair)).files for pair in _pairs(repeated)],
        "sentence": words if more + len(near) else
        f"None of {len(images):,} images repeats another, exactly or nearly.",
        "suggestion": "keep one of each" if more + len(near) else "",
    }  # fmt: skip


def _pairs(repeated: Any) -> list[list[int]]:
    """The pairs of repeated images to show, exact copies first."""
    groups, near = repeated
    return [*([*group[:2]] for group in groups), *near.tolist()][: 2 * QUERIES]


def _count(n: int, one: str, more: str) -> str:
    return f"{n:,} {one if n == 1 else more}"


def _brief(
    which: str, images: ImageSet, encoder: str, steps: int, seed: int, changes: Sequence[str]
) -> Recipe:
    """The recipe with a small encoder for `steps` steps; `changes` are applied last."""
    found = recipes.recipe_for(which, images.size, images.shown)
    batch = max(2, min(found.batch_size, 256, len(images) // 2))
    epochs = (steps + 1e-6) / (len(images) // batch)
    found = adapt.changed(found, images, encoder, epochs, batch, None, seed, changes)
    return adapt.beside_constants(found, images)


def _opened(asked: Request) -> ImageSet:
    """The training images, stored at SIDE px at most if no size was asked for."""
    found = asked.open("train")
    if asked.named and asked.size is None and found.size > SIDE:
        found = replace(asked, size=SIDE).open("train")
    return found


def _refuse(run: Path, how: Mapping[str, Any], changes: Sequence[str]) -> None:
    given = [*how, *(["set"] if changes else [])]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{run} is a run: it has its images and recipe; leave out {flag}")


def _enough(images: ImageSet) -> None:
    if len(images) < LEAST:
        raise UserError(
            f"{images.name} has {len(images)} images; {LEAST} at least are needed to see what "
            "tells them apart"
        )
    if images.shown not in (1, 3) and images.rgb is None:
        raise UserError(
            f"{images.name} has {images.shown} channels, and what is looked at, grey levels and"
            " colours, is of one or three; name three of them with --rgb 3,2,1 (rgb=(3, 2, 1))"
        )


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Write the request into the folder; UserError if it belongs to another request."""
    file = folder / "request.json"
    text = as_json_bytes(request)
    if file.exists() and file.read_bytes() != text:
        raise UserError(
            f"--out {folder} holds another request than this one; name another folder, or remove it"
        )
    if not file.exists() and not unfinished(folder):
        raise FileExistsError(f"--out {folder} is not empty; name another folder")
    with said_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    replace_file(file, text)


def _is_run(path: Path) -> bool:
    return (path / "recipe.json").is_file()


def _of_run(run: Path, hard: Recipe) -> str:
    """A complete recipe file: that of a run, with the suggestions added to its views."""
    lines = [
        f'"""{as_file_name(run.name)} with what `contrapose shortcuts` suggests on top of its '
        "views.",
        "",
        f"contrapose train DATA --recipe {RECIPE}",
        '"""',
        "",
        "from contrapose.training.recipe import recipe_from",
        "",
        "recipe = recipe_from(",
        f"    {pprint.pformat(describe(hard), width=96, indent=1, sort_dicts=False)}",
        ")",
    ]
    return "\n".join([*lines, ""])


def _recipe_file(
    which: str, changes: Sequence[str], images: ImageSet, taken: Sequence[Candidate]
) -> str:
    """A recipe file for the user: the named recipe with `changes`, and the suggestions added to its
    views."""
    settings = "".join(f", {k}={v!r}" for c in taken for k, v in c.settings.items())
    blank = tuple(k for c in taken for k in c.blank)
    name = str(Path(which).resolve()) if which.endswith(".py") else which
    lines = [
        f'"""{as_file_name(which)} with what `contrapose shortcuts` suggests on top of its views.',
        "",
        f"For images stored at {images.size} px. contrapose train DATA --recipe {RECIPE}",
        '"""',
        "",
        "from dataclasses import replace",
        "from functools import partial",
        "",
        "from contrapose import augment, recipes",
        *(["from contrapose.partials import assign"] if changes else []),
        "",
        "",
        "def recipe(size, channels):",
        f"    found = recipes.recipe_for({name!r}, size, channels)",
    ]
    for path, _, text in (change.partition("=") for change in changes):
        lines.append(f"    found = assign(found, {path.strip()!r}, {text.strip()!r})")
    lines.append("    views = found.views")
    if settings:
        lines.append(f"    views = partial(augment.hardened, views=views{settings})")
    if images.constant:
        lines.append("    views = partial(augment.on_channels, views=views, channels=channels)")
    if blank:
        lines.append(f"    views = partial(augment.blanked, views=views, channels={blank!r})")
    return "\n".join([*lines, "    return replace(found, views=views)", ""])


def _drawings(
    every: Sequence[Candidate],
    before: dict[str, Compared],
    alone: dict[str, Compared],
    images: ImageSet,
    repeated: Any,
) -> dict[str, NDArray[Any]]:
    """Query views and the views that the feature finds for them, with and without suggestions."""
    found: dict[str, NDArray[Any]] = {}
    for c in every:
        for when, (shared, views) in (("before", before[c.name]), ("after", alone[c.name])):
            asked = evenly(len(shared.nearest), QUERIES)
            nearest = shared.nearest[asked]
            found[f"{c.name}_{when}_query"] = _thumbs(views[0][asked], images, c)
            flat = _thumbs(views[1][nearest.flatten()], images, c)
            found[f"{c.name}_{when}_found"] = flat.reshape(*nearest.shape, *flat.shape[1:])
            found[f"{c.name}_{when}_right"] = (nearest == asked[:, None]).numpy()
    if pairs := _pairs(repeated):
        index = torch.tensor(pairs).flatten()
        thumbs = _thumbs(images.batch(index).cpu().float() / 255, images, None)
        found["duplicates"] = thumbs.reshape(-1, 2, *thumbs.shape[1:])
    return found


def _thumbs(
    view: Float[Tensor, "B C S S"], images: ImageSet, c: Candidate | None
) -> NDArray[np.uint8]:
    """Pictures of views; constant channels are a row of squares below, white for 1."""
    side = min(THUMB, view.shape[2])
    small = torch.nn.functional.adaptive_avg_pool2d(view, side)
    picture = images.picture(small)
    if c is not None and c.blank:
        level = small[:, list(c.blank)].mean(dim=(2, 3))
        wide = torch.nn.functional.interpolate(level[:, None], side, mode="nearest")
        band = wide[:, :, None].expand(-1, picture.shape[1], max(2, side // 5), -1)
        picture = torch.cat([picture, band], dim=2)
    return to_uint8(picture)
