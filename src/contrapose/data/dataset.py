"""An `ImageSet` as a `torch.utils.data.Dataset`, for use in other training loops."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrapose.data.composed.parts import features_of
from contrapose.data.images import ImageSet
from contrapose.errors import UserError


class Images(Dataset[tuple[Any, dict[str, int]]]):
    """A map-style dataset: item i is (image, {feature: label}) with a uint8 image [C, S, S].

    transform: a function of the channels that are a picture. It returns a tensor [C', H, W] or a
        tuple or list of them (views); constant channels of the image are appended to each, as 0 or
        1 to floats.
    features: names of the labels to return, by default all; a set with one label calls it `image`.
    The `num_workers` processes of a loader share the memory of the set if they are forked.
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
        """The items at several positions, composed or decoded together; loaders call this."""
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
