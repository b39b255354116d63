"""An `ImageSet` as a `torch.utils.data.Dataset`, for any loader and anybody's training loop."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrapose.data.composed.parts import features_of
from contrapose.data.images import ImageSet
from contrapose.errors import UserError


class Images(Dataset[tuple[Any, dict[str, int]]]):
    """Item i is (image, {feature: label}): uint8 [C S S], or what `transform` makes of it.

    transform: called with the channels that are a picture; a tensor [C' H W] that it returns, or
    each of a tuple or list of them (two views), gets the constant channels of the image appended,
    as 0 or 1 behind floats. features: those to give, by default all. A plain set's label is called
    `image`. With a loader, `num_workers` copies of the set live in memory once, by fork.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Tensor], Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        every = features_of(images)
        missing = sorted(set(features or ()) - every.keys())
        if missing:
            raise UserError(
                f"{images.name}: no feature {missing[0]!r}; it has {', '.join(every) or 'none'}"
            )
        self.images, self.transform = images, transform
        self.features = {name: every[name] for name in (every if features is None else features)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, dict[str, int]]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.images.name}: asked for image {i} of {len(self)}")
        return self.__getitems__([i % len(self)])[0]

    def __getitems__(self, index: list[int]) -> list[tuple[Any, dict[str, int]]]:
        """Several at once, which is how a loader asks: composed or decoded together."""
        batch = self.images.batch(torch.tensor(index))
        return [
            (self._made(image), {name: int(label[i]) for name, label in self.features.items()})
            for i, image in zip(index, batch, strict=True)
        ]

    def _made(self, image: Tensor) -> Any:
        if self.transform is None:
            return image
        shown = self.images.shown
        made, bits = self.transform(image[:shown]), image[shown:, :1, :1]
        if not self.images.constant:
            return made
        if isinstance(made, tuple | list):
            return type(made)(_with_constants(view, bits) for view in made)
        return _with_constants(made, bits)


def _with_constants(view: Tensor, bits: Tensor) -> Tensor:
    value = bits.to(view.dtype) / 255 if view.is_floating_point() else bits.to(view.dtype)
    return torch.cat([view, value.expand(-1, *view.shape[1:]).to(view.device)])
