"""The suppression score of a run, relative to supervised control encoders trained for it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from contrapose import api
from contrapose.data.composed import features_of
from contrapose.errors import UserError
from contrapose.evaluation.suppression import Suppression, suppression
from contrapose.explain.subject import Subject, written_about
from contrapose.files import as_json_bytes, replace_file
from contrapose.partials import unknown
from contrapose.training.recipe import FEATURE, supervised
from contrapose.training.run import START_FILE, Run


def suppression_of(
    run: Subject | Run | Path | str,
    *,
    features: Sequence[str] | None = None,
    images: Any = None,
    device: str = "auto",
    recipe: Any = None,
) -> dict[str, Suppression]:
    """{feature: suppression score}: how much of each feature the run's encoder suppresses.

    features: of those that the images have, by default all; a set with one label calls it `image`.
    A feature is read by linear probes on the run's h, on h before training, and on h of a
    supervised control: the run's recipe with a linear classifier of this feature on h, trained by
    cross-entropy, as its loss and head, with the same network, views, optimiser and steps. Controls
    are trained once and kept in RUN/controls, which costs one training for each feature. Writes
    suppression.json into the run. Raises UserError for features that the images do not have.
    """
    with written_about(run, images, device, recipe) as subject:
        return _suppression(subject, features)


def _suppression(subject: Subject, features: Sequence[str] | None) -> dict[str, Suppression]:
    label = features_of(subject.train)
    names = list(label) if features is None else list(features)
    for name in names:
        if name not in label:
            raise UserError(f"{subject.train.name} has no feature {unknown(name, label)}")
    if not names:
        raise UserError(f"{subject.train.name} has no labels, so nothing is known to suppress")
    controls, recipe = {}, subject.recipe
    if recipe.start is not None:
        recipe = replace(recipe, start=str(subject.run.path / START_FILE))
    for name in names:
        taught = supervised(recipe, positives=f"{FEATURE}{name}")
        folder = subject.run.path / "controls" / f"taught-{'-'.join(name.split())}"
        control = api.encoder_in(folder, taught, subject.train, subject.device)
        controls[name] = control.to(subject.device)
    found = suppression(
        subject.encoder, subject.train, subject.test, supervised=controls,
        untrained=subject.untrained,
        size=subject.recipe.size, device=subject.device, seed=subject.recipe.seed,
    )  # fmt: skip
    written = {n: asdict(s) | {"score": s.score, "error": s.error} for n, s in found.items()}
    replace_file(subject.run.path / "suppression.json", as_json_bytes(written))
    return found
