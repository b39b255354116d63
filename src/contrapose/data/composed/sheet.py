"""A contact sheet: some images of a set, each with its features in words."""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from contrapose.data.composed.parts import features_of
from contrapose.data.images import ImageSet
from contrapose.data.split import evenly
from contrapose.errors import UserError
from contrapose.files import replace_file

TILE = 112  # px, least side of an image on the sheet
GAP = 8  # px
LINE = 14  # px, height of a line of text
BLOCK = 6  # px, side of the square that shows a bit


def contact_sheet(
    images: ImageSet, *, count: int = 24, columns: int = 6
) -> UInt8[np.ndarray, "H W 3"]:
    """`count` images from the first to the last, with their features in words.

    Small images are enlarged by whole pixels. Constant channels are drawn as a row of squares,
    white for 1.
    """
    if count < 1 or columns < 1:
        raise UserError(f"contact_sheet: count={count}, columns={columns}; use at least 1")
    index = evenly(len(images), count)
    batch, every = images.batch(index).cpu(), features_of(images)
    shown = images.shown
    picture = images.picture(batch)
    picture = picture.expand(-1, 3, -1, -1)
    bits = batch[:, shown:, 0, 0].numpy()
    words = [_words(images, {k: int(v[i]) for k, v in every.items()}) for i in index.tolist()]

    zoom = max(1, -(-TILE // images.size))
    side = zoom * images.size
    lines = max(map(len, words))
    width, height = side + GAP, side + GAP + LINE * lines + (BLOCK + 2 if images.constant else 0)
    columns = min(columns, len(index))
    rows = -(-len(index) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for k, tile in enumerate(picture.permute(0, 2, 3, 1).contiguous().numpy()):
        left, top = GAP + k % columns * width, GAP + k // columns * height
        sheet.paste(
            Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST), (left, top)
        )
        top += side + 2
        for j, value in enumerate(bits[k]):
            x = left + j * min(BLOCK + 1, side / len(bits[k]))
            draw.rectangle((x, top, x + BLOCK - 1, top + BLOCK - 1), _grey(int(value)), "grey")
        top += BLOCK + 2 if images.constant else 0
        for line, text in enumerate(words[k]):
            draw.text((left, top + line * LINE), text[: side // 6], "black", font)
    return np.asarray(sheet)


def write_sheet(images: ImageSet, path: Path | str, *, count: int = 24) -> Path:
    """Write the contact sheet as a PNG, atomically. FileExistsError if the file exists."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {path}: name a file that ends in .png")
    if path.exists():
        raise FileExistsError(f"--out {path} exists and is left as it is; name another file")
    buffer = io.BytesIO()
    Image.fromarray(contact_sheet(images, count=count)).save(buffer, "PNG", optimize=True)
    replace_file(path, buffer.getvalue())
    return path


def _words(images: ImageSet, value: dict[str, int]) -> list[str]:
    """`digit 7`, `image frog`, one line a feature; those of many digits and of bits in one line."""
    held = [name.removeprefix("holds ") for name, v in value.items() if name.startswith("holds ")]
    there = [name for name in held if value[f"holds {name}"]]
    lines = [f"holds {' '.join(there)}"] if held else []
    bits = [str(v) for name, v in value.items() if name.startswith("bit ")]
    lines += [f"bits {''.join(bits)}"] if bits else []
    for name, v in value.items():
        if not name.startswith(("holds ", "bit ")):
            lines.append(f"{name} {_class(images, name, v)}")
    return lines


def _class(images: ImageSet, feature: str, value: int) -> str:
    if value < 0:
        return "unknown"
    label = features_of(images)[feature]
    learnt = images.label is not None and torch.equal(label, images.label)
    return images.classes[value] if learnt and images.classes else str(value)


def _grey(value: int) -> tuple[int, int, int]:
    return (value, value, value)
