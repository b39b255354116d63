"""What the experiments of this lab share: SimCLR's recipe at three scales, jobs and measures.

The scale `paper` is ResNet-50 on ImageNet for 100 epochs at batch 4,096, as published; `cpu` is a
network of four convolutions on 5,000 images of CIFAR-10 at 16 px, which two cores train in half a
minute. Accuracy is that of a linear probe of h on the whole test set, solved (L-BFGS).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from contrapose import augment, losses, recipes
from contrapose.encoders import Stem, mlp, resnet50, small_conv
from contrapose.evaluation import probes
from contrapose.experiments.form import Job, Results
from contrapose.experiments.trained import ADAMW, Measure, Scale, Trained, trained
from contrapose.training.recipe import Recipe, supervised

SIMCLR, SUPERVISED, UNTRAINED = "SimCLR", "supervised", "untrained"
DIM = 64  # of z at the small scales; 128 as published

MEASURES = {
    "accuracy": "test accuracy of a linear probe of h",
    "n_train": "training images",
    "n_test": "test images",
    "train_seconds": "s of training",
    "measure_seconds": "s of measuring",
}

SCALES = {
    "smoke": Scale(
        data="digits", images=256, tested=128, width=16, epochs=2, taus={SIMCLR: 0.2},
        changes=ADAMW | {"batch_size": 64, "lr": 2e-3, "warmup": 0.2},
    ),
    # ten epochs of batch 64 teach this network nearly what 20 of batch 128 do (0.420 and 0.432;
    # untrained 0.307), at 8e-3, the best of rates from 5e-4 up, and tau 0.2 of 0.1, 0.2 and 0.5
    "cpu": Scale(
        data="cifar10", size=16, images=5000, tested=10_000, width=64, epochs=10,
        taus={SIMCLR: 0.2}, changes=ADAMW | {"batch_size": 64, "lr": 8e-3, "warmup": 1.0},
    ),
    "paper": Scale(data="imagenet", size=224, epochs=100, changes={"batch_size": 4096}),
}  # fmt: skip


def views_of(channels: int, size: int) -> Callable[..., Any]:
    """SimCLR's policy for this size; crops alone for glyphs, whose colour says nothing."""
    if channels == 1:
        return partial(augment.digits)
    return partial(augment.simclr) if size > 64 else partial(augment.simclr_cifar)


def recipe(
    size: int,
    channels: int,
    *,
    scale: str,
    method: str = SIMCLR,
    width: float = 1,
    repeats: int = 1,
    views: Callable[..., Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """SimCLR's recipe, scaled down as SCALES says, or its supervised control.

    width, repeats: multiples of the network's channels and layers. views: in place of `views_of`.
    changes: other fields of the recipe, which outrank those of the scale.
    """
    at = SCALES[scale]
    found = recipes.recipe_for("simclr", size, channels)
    if at.width is None:
        stem: Stem = "imagenet" if size > 64 else "cifar"
        net = partial(resnet50, channels=channels, stem=stem, width_multiple=int(width))
        found = dataclasses.replace(found, backbone=net)
    else:
        net = partial(small_conv, channels=channels, width=int(at.width * width), repeats=repeats)
        found = dataclasses.replace(found, backbone=net, head=partial(mlp, dim=DIM))
    own: dict[str, Any] = {
        "views": views or views_of(channels, size),
        "loss": partial(losses.nt_xent, temperature=at.tau(SIMCLR)),
        "epochs": at.epochs,
    }
    found = dataclasses.replace(found, **own | {**at.changes, **(changes or {})})
    return supervised(found) if method == SUPERVISED else found


def job(
    *,
    scale: str,
    seed: int,
    name: str,
    facts: Mapping[str, Any],
    measures: Sequence[Measure] = (),
    epochs: float = 1.0,
    method: str = SIMCLR,
    data: str | None = None,
    **options: Any,
) -> Job:
    """One run with `probed` and these measures; `options` go to `recipe`.

    epochs: a multiple of the scale's. method: of METHODS; UNTRAINED measures the encoder as it
    is drawn. data: another set than the scale's, tested on all its test images.
    """
    at = SCALES[scale]
    call = partial(
        trained,
        images=data or at.data,
        size=at.size,
        subset=at.images,
        test_subset=at.tested if data is None else None,
        recipe=partial(recipe, scale=scale, method=method, **options),
        epochs=0 if method == UNTRAINED else at.epochs * epochs,
        seed=seed,
        measures=(probed, *measures),
    )
    words = name.replace(" ", "-").replace(",", "").replace("/", "-")
    return Job(name=f"{words}-seed{seed}", call=call, facts=facts, seed=seed)


def probed(of: Trained) -> dict[str, float]:
    """Test accuracy of a linear probe of h."""
    return {"accuracy": probe_of(of, of.of_train.h, of.of_test.h)}


def probe_of(of: Trained, train: Any, test: Any) -> float:
    """Test accuracy of logistic regression on these features of the training and test images."""
    fitted = probes.linear_probe(train.to(of.device), of.labels(of.train), seed=of.seed)
    label = of.labels(of.test)
    return float((fitted.predict(test.to(of.device)) == label).double().mean())


def side_by_side(results: Results, measures: Mapping[str, str]) -> Results:
    """{word: measure} of each job as results of their own: an `accuracy` with the fact `of`."""
    return Results(
        rows=[
            {"seed": row["seed"], "n_test": row["n_test"], "of": word, "accuracy": row[name]}
            for row in results.rows
            for word, name in measures.items()
            if row.get(name) is not None
        ]
    )
