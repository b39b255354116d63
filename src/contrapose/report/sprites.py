"""Many small pictures as one image in a data URI, kept within a budget of bytes.

One sprite instead of thousands of `<img>`: the page stays small, and hovering is immediate.
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
        """Enlarge tiny pictures with hard pixels: blur would hide what the encoder saw."""
        return self.width <= 32

    def position(self, index: int) -> str:
        """CSS background-position (percentages, so that the picture scales with its box)."""
        row, column = divmod(index, self.columns)
        x = 100 * column / max(self.columns - 1, 1)
        y = 100 * row / max(self.rows - 1, 1)
        return f"{x:.8g}% {y:.8g}%"


def sprite(images: UInt8[np.ndarray, "M h w ch"], *, budget: int) -> Sprite:
    """Pack M pictures: lossless if that fits `budget` bytes, else lossy, else at half the side."""
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
    """Every picture at half its side; tiles stay aligned, as the sheet keeps whole tiles."""
    width, height = max(width // 2, 1), max(height // 2, 1)
    size = (columns * width, rows * height)
    return sheet.resize(size, Image.Resampling.BOX), width, height
