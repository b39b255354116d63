"""A policy for each view: the first view of an image by one, the others by another."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float, UInt8
from torch import Generator, Tensor


def branches(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    generator: Generator,
    *,
    size: int,
    first: Callable[..., Tensor],
    second: Callable[..., Tensor],
) -> Float[Tensor, "B C size size"]:
    """The first view of each image by the policy `first`, every other view by `second`.

    SimCLR's study of augmentations leaves one branch alone so (section 3.1). `views` asks each for
    its share; a single view, as this function itself gives, is one of `first`. Draws follow in that
    order from the one generator.
    """
    return first(image, generator, size=size)


def on_each_branch(
    policy: Callable[..., Any], change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """change(policy), or for `branches` the same with each of its two policies changed."""
    if getattr(policy, "func", None) is not branches:
        return change(policy)
    given = policy.keywords  # type: ignore[attr-defined]
    changed = {n: change(given[n]) for n in ("first", "second") if n in given}
    return partial(branches, **given | changed)
