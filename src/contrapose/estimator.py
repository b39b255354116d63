"""A scikit-learn transformer: from images, or rows of pixels, to representations."""

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    check_random_state,
    validate_data,
)

from contrapose import adapt, api
from contrapose.data import ImageSet, open_images
from contrapose.data.labels import encode
from contrapose.data.values import ValueRange, as_range, learnt_range, scaled
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation.embed import embed
from contrapose.machine import choose_device
from contrapose.recipes import recipe_for

LEAST_SIDE = 8  # px: a row of fewer pixels than 64 is padded with zeros


class ContrastiveEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer that learns a representation of images; `transform` returns h (or z).

    X: [n, pixels] (one grey image a row, square, or padded with black to the next square),
        [n, H, W], [n, H, W, C] or [n, C, H, W].
    y: used only by recipes whose positives are classes; -1, NaN, None and the like are images
        without a label.
    recipe: a name, a file or a `Recipe`.
    epochs, batch_size, temperature: None is the recipe's; a batch is never larger than the number
        of images.
    value_range: (low, high), the values of black and white, since images are stored in 8 bits.
        Without it uint8 is used as it is; for other numbers `fit` learns the range of its values
        without the most extreme 0.1 % (`range_`), and `transform` uses the same. Values far outside
        are clipped, with a warning.
    rgb: the channels that are red, green and blue, if there are other numbers than one or three.
    features: "h" [n, F] or "z" [n, D].
    As scikit-learn requires, parameters are checked in `fit`.
    """

    def __init__(
        self,
        recipe: Any = "simclr",
        *,
        epochs: Any = 20,
        batch_size: Any = None,
        temperature: Any = None,
        value_range: Any = None,
        rgb: Any = None,
        features: Any = "h",
        device: Any = "cpu",
        random_state: Any = 0,
    ) -> None:
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.temperature = temperature
        self.value_range = value_range
        self.rgb = rgb
        self.features = features
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "ContrastiveEncoder":
        if self.features not in ("h", "z"):
            raise UserError(f"features={self.features!r}: use 'h' or 'z'")
        array = self._check(X, reset=True)
        over = as_range(self.value_range)
        if over is None:
            bytes_ = array.dtype == np.uint8
            over = ValueRange(0.0, 255.0) if bytes_ else learnt_range(array)
        if isinstance(over.low, Sequence) or isinstance(over.high, Sequence):
            raise UserError(f"value_range={over}: one range for all channels; scale X before")
        self.range_ = (over.low, over.high)
        if y is not None:
            check_consistent_length(X, y)
        four = array.ndim == 4 and array.dtype != np.uint8 and 4 in array.shape[1::2]
        images = self._images(array, 4 if four else None)  # 4 floats are no transparency
        self.channels_ = images.channels
        recipe = recipe_for(self.recipe, images.size, images.channels)
        if y is not None and recipe.learns_from_labels:  # else y may be a target of any kind
            label, classes = encode(y, len(images), what="y")
            if classes:
                images = replace(images, label=label, classes=classes)
        asked = recipe.batch_size if self.batch_size is None else self.batch_size
        batch = min(asked, len(images))
        random = check_random_state(self.random_state)
        recipe = adapt.changed(
            recipe,
            images,
            epochs=self.epochs,
            batch_size=batch,
            temperature=self.temperature,
            seed=int(random.randint(2**31)),
        )
        self.size_ = recipe.size
        with tempfile.TemporaryDirectory() as folder:
            run = api.train(
                recipe, images, out=Path(folder) / "run", device=self.device, held_out=0.0
            )
            self.encoder_ = Encoder.load(run.path)
        self._n_features_out = self._embed(images.subset(torch.arange(1))).shape[1]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        return self._embed(self._images(self._check(X, reset=False), self.channels_))

    def _embed(self, images: ImageSet) -> NDArray[np.float32]:
        device = choose_device(self.device)
        # an image's row is the same whichever others come with it, as scikit-learn asks
        precision: Literal["fp32", "fp64"] = "fp64" if device == "cpu" else "fp32"
        found = embed(self.encoder_, images, size=self.size_, device=device, precision=precision)
        chosen = found.h if self.features == "h" else found.z
        return chosen.numpy().astype(np.float32)

    def _check(self, X: Any, reset: bool) -> NDArray[Any]:
        least = 2 if reset else 1
        array: NDArray[Any] = validate_data(
            self, X, reset=reset, allow_nd=True, ensure_min_samples=least
        )
        if array.ndim not in (2, 3, 4):
            raise UserError(
                f"X has shape {array.shape}; images are [n pixels], [n H W], [n H W C] or [n C H W]"
            )
        return array

    def _images(self, array: NDArray[Any], channels: int | None) -> ImageSet:
        low, high = self.range_
        far = int(((array < low - (high - low)) | (array > high + (high - low))).sum())
        if far:
            warnings.warn(
                f"{far:,} of {array.size:,} values lie far outside {low:g} to {high:g}, the range"
                " that ContrastiveEncoder stores images in, and are clipped; tell another with"
                " value_range=(low, high)",
                stacklevel=3,
            )
        array = scaled(array, ValueRange(low, high, of_bytes=True)).pixels
        if array.ndim == 2:
            side = max(LEAST_SIDE, math.isqrt(array.shape[1] - 1) + 1)
            padded = np.zeros((len(array), side * side), np.uint8)
            padded[:, : array.shape[1]] = array
            array = padded.reshape(len(array), side, side)
        if array.ndim == 3:
            array = array[..., None]
        return open_images(array, channels=channels, rgb=self.rgb)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.three_d_array = True
        return tags
