"""Cluster labels drawn over images."""

import colorsys

import numpy as np
import torch.nn.functional as F
from jaxtyping import Integer, UInt8
from torch import Tensor

TILE = 160  # px, side of an image on a page of maps


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
