"""Cluster labels drawn over images."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from contrapose.augment import center
from contrapose.data import ImageSet
from contrapose.evaluation.local import LocalMaps

TILE = 160  # px, side of an image on the sheet
HEAD = 16  # px, height of the captions
GAP = 4  # px


def overlay(
    picture: UInt8[np.ndarray, "H W 3"],
    label: Integer[Tensor, "h w"],
    *,
    opacity: float = 0.6,
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in grey with each cluster in its colour; labels are enlarged bilinearly."""
    height, width = picture.shape[:2]
    share = F.one_hot(label.long()).permute(2, 0, 1)[None].float()
    smooth = F.interpolate(share, (height, width), mode="bilinear", align_corners=False)
    colour = palette(share.shape[1])[smooth[0].argmax(dim=0).numpy()]
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True)
    mixed = (1 - opacity) * grey + opacity * colour
    return np.asarray(mixed.round(), np.uint8)


def palette(clusters: int) -> UInt8[np.ndarray, "K 3"]:
    """Colours that stay far apart however many there are: hues a golden angle from each other."""
    shades = [
        colorsys.hsv_to_rgb(
            0.6 + 0.618034 * k, 0.85 - 0.3 * (k // 8 % 2), 1.0 - 0.35 * (k // 4 % 2)
        )
        for k in range(clusters)
    ]
    found: np.ndarray = np.rint(255 * np.array(shades)).astype(np.uint8)
    return found


def map_sheet(
    images: ImageSet,
    maps: LocalMaps,
    *,
    index: Sequence[int] | None = None,
    stages: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A row for each image: itself, then its labels for every stage and number of clusters.

    images: those that `local_maps` was given. index: which of them, by default the first eight.
    """
    chosen = list(range(min(8, len(images)))) if index is None else list(index)
    columns = [(s, K) for s in stages or maps.labels for K in maps.labels[s]]
    batch = images.picture(images.batch(torch.tensor(chosen))).cpu()
    seen = center(batch, maps.size).mul(255).round().byte().expand(-1, 3, -1, -1)
    width, height = TILE + GAP, TILE + GAP
    sheet = Image.new("RGB", ((1 + len(columns)) * width, HEAD + len(chosen) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for c, (stage, K) in enumerate(columns, start=1):
        draw.text((c * width, 1), f"{stage}, K = {K}", "black", font)
    for r, (i, tile) in enumerate(zip(chosen, seen.permute(0, 2, 3, 1).numpy(), strict=True)):
        picture = np.asarray(Image.fromarray(np.ascontiguousarray(tile)).resize((TILE, TILE)))
        top = HEAD + r * height
        sheet.paste(Image.fromarray(picture), (0, top))
        for c, (stage, K) in enumerate(columns, start=1):
            over = overlay(picture, maps.labels[stage][K][i])
            sheet.paste(Image.fromarray(over), (c * width, top))
    return np.asarray(sheet)
