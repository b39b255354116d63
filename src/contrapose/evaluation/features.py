"""Linear probes of every feature of a composed set, with intervals."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.data import ImageSet
from contrapose.data.composed import features_of
from contrapose.data.video import TIME
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation import probes, scores
from contrapose.evaluation.embed import embed
from contrapose.evaluation.scores import Score
from contrapose.processes import Rank
from contrapose.progress import stage


def probes_of_features(
    encoder: Encoder,
    train: ImageSet,
    test: ImageSet,
    *,
    size: int | None = None,
    features: Sequence[str] | None = None,
    l2: float | Sequence[float] = probes.DECADES,
    device: torch.device | str = "cpu",
    seed: int = 0,
    split: str | None = None,
    of: scores.Features = "h",
    me: Rank | None = None,
) -> dict[str, Score]:
    """{feature: accuracy on `test` of a linear probe of h fitted on `train`}.

    size: px of the images for the encoder, by default as they are stored. features: by default all
    that both sets have; a set with one label calls it `image`. A feature with fewer than two
    classes in training, or without test images of them, is left out with a warning; UserError if it
    was asked for by name, and for an unknown name. me: this process among those that share the
    images and the probes, each of which calls this.
    """
    size = train.size if size is None else size
    h, of_test = (
        embed(encoder, images, size=size, device=device, me=me).h for images in (train, test)
    )
    return read_features(
        h, train, of_test, test, names=features, l2=l2, seed=seed, split=split or test.split,
        of=of, me=me,
    )  # fmt: skip


def read_features(
    x: Float[Tensor, "N D"],
    train: ImageSet,
    x_test: Float[Tensor, "M D"],
    test: ImageSet,
    *,
    names: Sequence[str] | None = None,
    l2: float | Sequence[float] = probes.DECADES,
    seed: int = 0,
    split: str = "test",
    of: scores.Features = "h",
    me: Rank | None = None,
) -> dict[str, Score]:
    """As `probes_of_features`, from rows x, x_test: of another encoder, of pixels, of a control."""
    label, test_label = features_of(train), features_of(test)
    for name in names or ():
        if name not in label or name not in test_label:
            both = [known for known in label if known in test_label]
            raise UserError(
                f"features: {train.name} has no {name!r} in train and test; it has "
                f"{', '.join(both) or 'none'}"
            )
    works: dict[str, Callable[[], Score]] = {}
    for name in names or [n for n in label if n in test_label and n != TIME]:  # no class
        seen, rows = torch.unique(label[name][label[name] >= 0], return_counts=True)
        known, strange = _known(test_label[name], seen)
        if names is None and (len(seen) < 2 or bool((known < 0).all())):
            warnings.warn(
                f"{train.name}: nothing to tell apart in {name!r}, left out", stacklevel=3
            )
            continue
        single = len(rows) > 0 and int(rows.min()) < 2  # then nothing can be held out to choose l2
        often = float((known[known >= 0] == seen[rows.argmax()]).double().mean())
        left = f"; {strange:,} of classes without a training row left out" if strange else ""

        works[name] = partial(
            _score, name, x, label[name], x_test, known, l2=1.0 if single else l2, of=of,
            beside=f"{left}; the most common class alone: {often:.3f}", split=split, seed=seed,
        )  # fmt: skip
    return dict(zip(works, (me or Rank()).dealt([*works.values()]), strict=True))


def _score(
    name: str,
    x: Float[Tensor, "N D"],
    label: Int[Tensor, " N"],
    x_test: Float[Tensor, "M D"],
    known: Int[Tensor, " M"],
    *,
    l2: float | Sequence[float],
    of: scores.Features,
    beside: str,
    split: str,
    seed: int,
) -> Score:
    """The accuracy of a linear probe of one feature; beside: what its protocol says further."""
    with stage(f"feature {name}"):
        probe = probes.linear_probe(x, label, l2=l2, seed=seed)
    return scores.accuracy(
        probe.scores(x_test), known, metric=f"{name}: linear probe accuracy",
        protocol=f"{probe.protocol}{beside}", split=split, seed=seed, features=of,
        chosen=probe.chosen,
    )  # fmt: skip


def _known(label: Int[Tensor, " M"], seen: Int[Tensor, " C"]) -> tuple[Int[Tensor, " M"], int]:
    """(the labels with -1 for classes that are not in training, the number of these)."""
    strange = ~torch.isin(label, seen) & (label >= 0)
    return torch.where(strange, -1, label), int(strange.sum())
