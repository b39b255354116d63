"""One step on a few images before anything is written, so that what cannot run says so at once."""

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch

from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.training.loop import shuffled
from contrapose.training.recipe import Recipe
from contrapose.training.step import positive_groups


def rehearse(recipe: Recipe, images: ImageSet, network: Encoder) -> None:
    """Call everything a recipe holds once, on a copy and a few images, on the CPU.

    What cannot run says so here, before a folder is made: ValueError that names the recipe's field.
    The random state is left as it was.
    """
    few = images.batch(torch.arange(min(4, len(images)))).cpu()
    trial = copy.deepcopy(network).train()
    index = shuffled(len(images), recipe.seed, 0)[: recipe.batch_size]
    label = None if images.label is None else images.label[index]
    group = positive_groups(recipe, label, len(index), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        with _part("scaling"):
            lr = recipe.scaling(recipe.lr, recipe.batch_size)
        with _part("schedule"):
            recipe.schedule(0.0, recipe.epochs, warmup=recipe.warmup)
        with _part("views"):
            view = recipe.policy(few, torch.Generator().manual_seed(0))
        with _part("backbone and head"):
            z = trial(view)[1]
        with _part("loss"):
            rows = len(index) * recipe.number_of_views
            many = torch.nn.functional.normalize(torch.randn(rows, z.shape[1]), dim=1)
            many.requires_grad_()
            value = recipe.loss(many, group.repeat(recipe.number_of_views))
            value.backward()
            if not value.isfinite():
                raise ValueError(f"it is {float(value)} on random embeddings")
        with _part("optimizer"):
            recipe.optimizer(trial, lr=lr)


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"the recipe's {name} cannot run: {error}") from error
