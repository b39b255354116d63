"""The 15 corruptions of ImageNet-C and the 4 more for development, five severities, two sizes.

`large`: the constants of ImageNet-C (224 px); `small`: those of CIFAR-10-C (32 px), also taken for
images of up to SMALL px. From the authors' code (hendrycks/robustness; arXiv 1903.12261). Each
function says what they mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from contrapose.evaluation.corruptions import blurs, digital, noise, spatter, weather

SMALL = 64  # px


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """`change(image, constants, generator)`, constants by severity, and what it is fit for."""

    change: Callable[..., Tensor]
    large: tuple[Any, ...]
    small: tuple[Any, ...]
    family: str
    benchmark: bool = True  # one of the 15 that scores are of
    channels: tuple[int, ...] | None = None  # of the images; None: any


def _zoom(*to: float) -> tuple[tuple[float, float], ...]:
    steps = (0.01, 0.01, 0.02, 0.02, 0.03) if to[0] > 1.1 else (0.01,) * 5
    return tuple(zip(to, steps, strict=True))


CORRUPTIONS = {
    "gaussian_noise": Corruption(
        change=noise.gaussian_noise,
        large=(0.08, 0.12, 0.18, 0.26, 0.38),
        small=(0.04, 0.06, 0.08, 0.09, 0.10),
        family="noise",
    ),
    "shot_noise": Corruption(
        change=noise.shot_noise,
        large=(60, 25, 12, 5, 3),
        small=(500, 250, 100, 75, 50),
        family="noise",
    ),
    "impulse_noise": Corruption(
        change=noise.impulse_noise,
        large=(0.03, 0.06, 0.09, 0.17, 0.27),
        small=(0.01, 0.02, 0.03, 0.05, 0.07),
        family="noise",
    ),
    "defocus_blur": Corruption(
        change=blurs.defocus_blur,
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        family="blur",
    ),
    "glass_blur": Corruption(
        change=blurs.glass_blur,
        large=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        family="blur",
    ),
    "motion_blur": Corruption(
        change=blurs.motion_blur,
        large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        family="blur",
    ),
    "zoom_blur": Corruption(
        change=blurs.zoom_blur,
        large=_zoom(1.11, 1.16, 1.21, 1.26, 1.31),
        small=_zoom(1.06, 1.11, 1.16, 1.21, 1.26),
        family="blur",
    ),
    "snow": Corruption(
        change=weather.snow,
        large=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        small=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        family="weather",
        channels=(1, 3),
    ),
    "frost": Corruption(
        change=weather.frost,
        large=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        small=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        family="weather",
        channels=(1, 3),
    ),
    "fog": Corruption(
        change=weather.fog,
        large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        family="weather",
    ),
    "brightness": Corruption(
        change=weather.brightness,
        large=(0.1, 0.2, 0.3, 0.4, 0.5),
        small=(0.05, 0.1, 0.15, 0.2, 0.3),
        family="weather",
        channels=(1, 3),
    ),
    "contrast": Corruption(
        change=digital.contrast,
        large=(0.4, 0.3, 0.2, 0.1, 0.05),
        small=(0.75, 0.5, 0.4, 0.3, 0.15),
        family="digital",
    ),
    "elastic_transform": Corruption(
        change=blurs.elastic_transform,
        large=(
            (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ),
        small=(
            (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        family="digital",
    ),
    "pixelate": Corruption(
        change=digital.pixelate,
        large=(0.6, 0.5, 0.4, 0.3, 0.25),
        small=(0.95, 0.9, 0.85, 0.75, 0.65),
        family="digital",
    ),
    "jpeg_compression": Corruption(
        change=digital.jpeg_compression,
        large=(25, 18, 15, 10, 7),
        small=(80, 65, 58, 50, 40),
        family="digital",
        channels=(1, 3),
    ),
    "speckle_noise": Corruption(
        change=noise.speckle_noise,
        large=(0.15, 0.2, 0.35, 0.45, 0.6),
        small=(0.06, 0.1, 0.12, 0.16, 0.2),
        family="noise",
        benchmark=False,
    ),
    "gaussian_blur": Corruption(
        change=blurs.gaussian_blur,
        large=(1, 2, 3, 4, 6),
        small=(0.4, 0.6, 0.7, 0.8, 1),
        family="blur",
        benchmark=False,
    ),
    "spatter": Corruption(
        change=spatter.spatter,
        large=(
            (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0), (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        small=(
            (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0), (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        family="weather",
        benchmark=False,
        channels=(1, 3),
    ),
    "saturate": Corruption(
        change=digital.saturate,
        large=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        small=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        family="digital",
        benchmark=False,
        channels=(3,),
    ),
}  # fmt: skip
BENCHMARK = tuple(name for name, made in CORRUPTIONS.items() if made.benchmark)
