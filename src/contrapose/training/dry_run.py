"""A dry run: one step on a few images before anything is written, to find errors at once."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from contrapose import losses
from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.keys.contrast import Contrast, InBatch, Matched, fits
from contrapose.partials import describe, given, public_functions
from contrapose.training.batches import drawn, shuffled
from contrapose.training.objective import (
    Batch,
    Classification,
    Contrastive,
    Joint,
    Rows,
    contrast_of,
    in_batch,
    lasting_groups,
    learned_label,
    objective_of,
)
from contrapose.training.recipe import Recipe, classifies

FEW = 4  # images that go through the network


def dry_run(recipe: Recipe, images: ImageSet, network: Encoder) -> None:
    """Call every function of a recipe once, with a copy of the network and a few images, on the
    CPU.

    Raises UserError with the field of the recipe that fails, before a folder is made. The random
    state is not changed.
    """
    trial = copy.deepcopy(network).train()
    index = shuffled(len(images), recipe.seed, 0, recipe.batch_size)[0]
    label = learned_label(recipe, images)[0][index] if recipe.learns_from_labels else None
    several = images.labels[index] if images.labels is not None else None
    few = Batch(
        images.batch(index[:FEW]).cpu(), index[:FEW], None if label is None else label[:FEW]
    )
    generator = Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        with _part("scaling"):
            lr = recipe.scaling(recipe.lr, recipe.batch_size)
        with _part("schedule"):
            recipe.schedule(0.0, recipe.epochs, warmup=recipe.warmup)
        with _part("views"):
            rows = Contrastive(recipe).rows(few, generator)
        with _part("backbone and head"):
            width = trial(rows.image)[1].shape[1]
        with _part("keys"):
            objective = objective_of(recipe, trial, len(images))
        beside = isinstance(objective, Joint)
        contrastive = objective.contrastive if isinstance(objective, Joint) else objective
        if isinstance(contrastive, Contrastive):
            number = torch.arange(len(index))
            whole = contrast_of(recipe, label, number, several=several)
            _try_contrast(contrastive, images, trial, rows, width, whole)
        classification = objective.classification if isinstance(objective, Joint) else objective
        if isinstance(classification, Classification):
            _try_classifier(classification, trial, few, generator, beside)
        with _part("optimizer"):
            recipe.optimizer(trial, lr=lr)
        if recipe.second_stage is not None:
            with _part("second_stage"):
                second = recipe.second_stage(recipe)
                if not classifies(second.loss):
                    raise UserError("it trains a loss that is no classifier's; use linear_stage")
                trial.freeze(second.freeze)
                after = Classification(second, second.loss, len(trial.classes))
                told = learned_label(second, images)[0][index[:FEW]]
                few = replace(few, label=told)
                _try_classifier(after, trial, few, generator, beside=True)
                second.optimizer(trial, lr=second.scaling(second.lr, second.batch_size))


def _try_contrast(
    objective: Contrastive,
    images: ImageSet,
    trial: Encoder,
    rows: Rows,
    width: int,
    batch: InBatch,
) -> None:
    """The loss of random rows of a whole batch against each other, or against keys of a few."""
    recipe, source, few = objective.recipe, objective.source, rows.batch
    kind = next(trial.parameters()).dtype
    z = _random_rows(len(batch.group), width, kind)
    held: Contrast = batch
    if source is not None:
        with _part("keys"):
            z = _random_rows(len(source.queries(rows.view)) * len(few.image), width, kind)
            lasting = lasting_groups(recipe, few.label, few.index)
            entries = source.entries(rows.view, z, few.index, lasting)
            source.update(trial, entries)
            held = source.contrast(len(z), entries)
    with _part("batches"):
        batches = (recipe.batches or drawn)(len(images), recipe.batch_size)
        if sizes := batches.possible_sizes(recipe):
            part = torch.arange(2 * min(sizes)) // min(sizes)
            number = torch.arange(len(part))
            held = in_batch(number, number, part, recipe.number_of_views)
            z = _random_rows(len(part) * recipe.number_of_views, width, kind)
    with _part("loss"):
        _fitting(recipe, held)
        _try(held.loss(recipe.loss, z))


def _try_classifier(
    objective: Classification, trial: Encoder, few: Batch, generator: Generator, beside: bool
) -> None:
    """The loss of the classifier's logits of a few images, mixed where the recipe mixes."""
    recipe = objective.recipe
    if not beside and any(True for _ in trial.head.parameters()):
        raise UserError(
            f"the loss of recipe {recipe.name!r} teaches a classifier on h, and the weights of its "
            "head would stay as they are drawn; use --recipe cross_entropy, or --set head=none"
        )
    with _part("views" if recipe.mixing is None else "mixing"):
        rows = objective.rows(few, generator)
    with _part("classifier" if beside else "loss"):
        h, z = trial(rows.image)
        _try(objective.loss(objective.compare(trial, rows, h, z), z))


def _try(value: Tensor) -> None:
    value.backward()  # type: ignore[no-untyped-call]
    if not value.isfinite():
        raise UserError(f"it is {float(value)} on random embeddings")


def _random_rows(rows: int, width: int, kind: torch.dtype) -> Tensor:
    drawn = torch.randn(rows, width, dtype=kind)
    return torch.nn.functional.normalize(drawn, dim=1).requires_grad_()


def _fitting(recipe: Recipe, contrast: Contrast) -> None:
    """UserError, with the losses that fit, if the loss does not have the arguments of the
    contrast."""
    if isinstance(contrast, Matched) and recipe.of_labels:
        raise UserError(
            f"positives={recipe.positives} with keys of which one is an image's positive: classes "
            "would go unseen; use --set positives=image, or --set keys=memory "
            "--set loss=supcon_memory"
        )
    if fits(recipe.loss, contrast):
        return
    fit = [name for name, f in public_functions(losses).items() if fits(f, contrast)]
    name, source = (
        None if f is None else describe(getattr(f, "func", f)).rpartition(".")[2]
        for f in (recipe.loss, recipe.keys)
    )
    raise UserError(
        f"{name} takes ({', '.join(given(recipe.loss))}), and with keys={source} a loss is given "
        f"({', '.join(contrast.takes)}) by these names; use --set loss=NAME with one of "
        f"{', '.join(fit)}"
    )


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise UserError(f"the recipe's {name} cannot run: {error}") from error
