"""Sprites: many small pictures as one image in a data URI, within a budget of bytes.

One sprite in place of thousands of `<img>` elements keeps the page small and hovering quick.
"""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """Pictures row by row in a grid of `columns` x `rows`; each is `width` x `height` px."""

    uri: str
    columns: int
    rows: int
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        """True for tiny pictures, which are enlarged without smoothing, as the encoder saw them."""
        return self.width <= 32

    def position(self, index: int) -> str:
        """The CSS background-position of a picture, in percent, so that it scales with its box."""
        row, column = divmod(index, self.columns)
        x = 100 * column / max(self.columns - 1, 1)
        y = 100 * row / max(self.rows - 1, 1)
        return f"{x:.8g}% {y:.8g}%"


def sprite(images: UInt8[np.ndarray, "M h w ch"], *, budget: int) -> Sprite:
    """The sprite of M pictures: lossless if it fits into `budget` bytes, else lossy, else
    smaller."""
    m, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(m * height / width))
    rows = math.ceil(m / columns)
    sheet = _sheet(images, columns, rows)
    largest = 16383 if features.check("webp") else 65535  # px, the formats' own limits
    hopeless = 12 * budget  # raw bytes that no setting below brings within the budget
    while max(sheet.size) > largest or sheet.width * sheet.height * images.shape[3] > hopeless:
        sheet, width, height = _halved(sheet, columns, rows, width, height)
    kind, data = _encoded(sheet, budget)
    while len(data) > budget and min(width, height) >= 16:
        sheet, width, height = _halved(sheet, columns, rows, width, height)
        kind, data = _encoded(sheet, budget)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return Sprite(uri=uri, columns=columns, rows=rows, width=width, height=height)


def _sheet(images: np.ndarray, columns: int, rows: int) -> Image.Image:
    m, height, width, channels = images.shape
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[:m] = images
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = grid.reshape(rows * height, columns * width, channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _encoded(sheet: Image.Image, budget: int) -> tuple[str, bytes]:
    lossy = "webp" if features.check("webp") else "jpeg"
    for kind, quality in (("png", 100), (lossy, 88), (lossy, 75), (lossy, 60)):
        file = io.BytesIO()
        sheet.save(file, kind, quality=quality, method=2)
        if file.tell() <= budget:
            break
    return kind, file.getvalue()


def _halved(
    sheet: Image.Image, columns: int, rows: int, width: int, height: int
) -> tuple[Image.Image, int, int]:
    """The sheet with every picture at half its side."""
    width, height = max(width // 2, 1), max(height // 2, 1)
    size = (columns * width, rows * height)
    return sheet.resize(size, Image.Resampling.BOX), width, height
