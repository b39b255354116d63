"""One step on a few images before anything is written, so that what cannot run says so at once."""

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from contrapose import losses
from contrapose.augment import views as make_views
from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.keys.contrast import Contrast, Matched, fits
from contrapose.partials import describe, given, public_functions
from contrapose.training.batches import drawn, shuffled
from contrapose.training.loop import source_of_keys
from contrapose.training.recipe import Recipe
from contrapose.training.step import in_batch, lasting_groups, positive_groups


def rehearse(recipe: Recipe, images: ImageSet, network: Encoder) -> None:
    """Call everything a recipe holds once, on a copy and a few images, on the CPU.

    What cannot run says so here, before a folder is made: ValueError that names the recipe's field.
    The random state is left as it was.
    """
    trial = copy.deepcopy(network).train()
    index = shuffled(len(images), recipe.seed, 0, recipe.batch_size)[0]
    few = index[:4]
    label = None if images.label is None else images.label[index]
    group = positive_groups(recipe, label, len(index), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        with _part("scaling"):
            lr = recipe.scaling(recipe.lr, recipe.batch_size)
        with _part("schedule"):
            recipe.schedule(0.0, recipe.epochs, warmup=recipe.warmup)
        with _part("views"):
            policy, generator = recipe.policy, torch.Generator().manual_seed(0)
            view = make_views(policy, images.batch(few).cpu(), generator, n=recipe.number_of_views)
        with _part("backbone and head"):
            width = trial(view.flatten(0, 1))[1].shape[1]
        labels = images.labels if recipe.positives == "shared" else None
        labels = None if labels is None else labels[index]
        contrast: Contrast = in_batch(group, None, recipe.number_of_views, labels)
        z = _random_rows(len(index) * recipe.number_of_views, width)
        with _part("keys"):
            source = source_of_keys(recipe, trial, len(images))
            if source is not None:
                z = _random_rows(len(source.queries(view)) * len(few), width)
                lasting = lasting_groups(recipe, None if label is None else label[:4], few)
                entries = source.entries(view, z, few, lasting)
                source.update(trial, entries)
                contrast = source.contrast(len(z), entries)
        with _part("batches"):
            batches = (recipe.batches or drawn)(len(images), recipe.batch_size)
            if sizes := batches.rehearse(recipe):
                part = torch.arange(2 * min(sizes)) // min(sizes)
                contrast = in_batch(torch.arange(len(part)), part, recipe.number_of_views)
                z = _random_rows(len(part) * recipe.number_of_views, width)
        with _part("loss"):
            _fitting(recipe, contrast)
            value = contrast.loss(recipe.loss, z)
            value.backward()  # type: ignore[no-untyped-call]
            if not value.isfinite():
                raise UserError(f"it is {float(value)} on random embeddings")
        with _part("optimizer"):
            recipe.optimizer(trial, lr=lr)


def _random_rows(rows: int, width: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width), dim=1).requires_grad_()


def _fitting(recipe: Recipe, contrast: Contrast) -> None:
    """Refuse a loss whose arguments are not what it will be given, with names of those that fit."""
    if isinstance(contrast, Matched) and recipe.positives == "class":
        raise UserError(
            "positives=class with keys of which one is an image's positive: classes would go "
            "unseen; use --set positives=image, or --set keys=memory --set loss=supcon_memory"
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
