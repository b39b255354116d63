"""Two videos side by side in the embedding of a run: which frames are most alike, and when.

align("runs/clip", "a.mp4", "b.mp4")     two recordings of one action
align("runs/clip", "a.mp4")              a clip and its altered copy: mirrored and darker
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrapose import adapt
from contrapose.augment import center
from contrapose.data import ImageSet, Request
from contrapose.data.images import InMemory
from contrapose.data.video import APART, of_clip, times_of
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation.alignment import Alignment
from contrapose.evaluation.alignment import align as align_rows
from contrapose.evaluation.embed import embed
from contrapose.files import as_file_name, check_writable
from contrapose.machine import choose_device
from contrapose.report.alignment import write_alignment
from contrapose.training.run import Run

SHOWN = 12  # frames whose matches are drawn
THUMB = 96  # px
MATRIX = 120  # rows and columns of the similarity matrix that are drawn, at most
DARKER = 0.7  # factor of the altered copy


def align(
    run: Run | Path | str,
    video: Any,
    other: Any = None,
    *,
    tolerance: float = 200.0,
    device: str = "auto",
    recipe: Any = None,
    out: Path | str | None = None,
    command: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """How well a run's embedding matches two videos in time; (the numbers, the page).

    video, other: what `Request` takes; one clip each. Without `other` it is the clip mirrored and
    darker. tolerance: in ms. Beside z stand h, and z of the encoder before training. Also in
    RUN/align-NAMES.json. Raises UserError for images without times or of several clips.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    check_writable(run.path)
    chosen, encoder = run.recipe(_module(recipe)), Encoder.load(run.path, _module(recipe))
    device = choose_device(device)
    size = run.read("recipe.json")["data"]["size"]
    one = _opened(video, size)
    two = altered(one) if other is None else _opened(other, size)
    before = adapt.untrained(chosen, one, device, like=encoder)
    found: dict[str, Alignment] = {}
    for words, network, which in (
        ("z", encoder, "z"), ("h", encoder, "h"), ("z before training", before, "z"),
    ):  # fmt: skip
        rows = [
            getattr(embed(network, side, size=chosen.size, device=device), which)
            for side in (one, two)
        ]
        found[words] = align_rows(
            rows[0], times_of(one), rows[1], times_of(two), tolerance=tolerance
        )
    numbers = {
        "format": 1, "of": [side.name.rpartition("/")[2] for side in (one, two)],
        "frames": [len(one), len(two)],
        "tolerance": tolerance, "command": command,
        "notes": dict(one.notes) if other is None else {
            f"{side.name}: {note}": n for side in (one, two) for note, n in side.notes.items()
        },
        "left_out": [
            f"{s.path}: {s.reason}"
            for side in ((one,) if other is None else (one, two)) for s in side.skipped
        ],
        "by": {words: _numbers(a) for words, a in found.items()},
    }  # fmt: skip
    seconds = "altered" if other is None else as_file_name(Path(two.name).stem)
    names = f"{as_file_name(Path(one.name).stem)}-{seconds}"
    with run.locked():
        run.write(f"align-{names}.json", numbers)
    page = Path(out) if out is not None else run.path / f"align-{names}.html"
    return numbers, write_alignment(numbers, _drawn(found["z"], one, two), page)


def _module(recipe: Any) -> Any:
    from contrapose import recipes

    return None if recipe is None else recipes.module(recipe)


def _opened(video: Any, size: int) -> ImageSet:
    """One clip, its frames in the order of time."""
    asked = Request.of(video)
    images = (replace(asked, size=size) if asked.named else asked).open("train")
    time = times_of(images)
    if len(torch.unique(of_clip(time))) > 1:
        count = int(of_clip(time).max()) + 1
        raise UserError(f"{images.name} holds {count} clips; name the folder of one")
    return images.subset(time.argsort(stable=True))


def altered(images: ImageSet) -> ImageSet:
    """The frames mirrored and darker, at the same times."""
    seen = images.batch(torch.arange(len(images)))
    changed = seen.flip(-1).float().mul(DARKER).round().to(torch.uint8)
    return replace(images, name=f"{images.name}, mirrored and darker", pixels=InMemory(changed))


def _numbers(a: Alignment) -> dict[str, Any]:
    return {
        "error": a.error, "random": a.random, "within": a.within, "low": a.low, "high": a.high,
        "random_within": a.random_within, "n": a.n,
    }  # fmt: skip


def _drawn(a: Alignment, one: ImageSet, two: ImageSet) -> dict[str, Any]:
    """Pictures of frames and their matches, and the similarities, as arrays."""
    shown = torch.linspace(0, len(one) - 1, min(SHOWN, len(one))).round().long()
    rows, columns = (
        torch.linspace(0, len(side) - 1, min(MATRIX, len(side))).round().long()
        for side in (one, two)
    )
    times = [(times_of(side) % APART).double() / 1000 for side in (one, two)]
    times = [t - t.min() for t in times]
    return {
        "frame": _pictures(one, shown), "matched": _pictures(two, a.match[shown]),
        "frame_time": times[0][shown].numpy(), "matched_time": times[1][a.match[shown]].numpy(),
        "similarity": a.similarity[rows][:, columns].numpy(),
        "row_time": times[0][rows].numpy(), "column_time": times[1][columns].numpy(),
        "match_time": times[1][a.match].numpy(), "time": times[0].numpy(),
    }  # fmt: skip


def _pictures(images: ImageSet, index: Tensor) -> Any:
    picture = images.picture(images.batch(index)).cpu()
    small = center(picture, min(images.size, THUMB), proportion=1.0)
    return small.mul(255).round().byte().movedim(1, -1).contiguous().numpy()
