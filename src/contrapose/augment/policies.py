"""The augmentation policies of papers: functions of a batch and a generator that return one view.

Call `simclr(image, generator, size=32)`; set the other arguments with `functools.partial`. Input is
[B, C, H, W], uint8 or float in [0, 1]; output is [B, C, size, size], float32 in [0, 1]. It is not
whitened: the encoder holds mean and standard deviation. The generator is on the image's device.
Crop, flip and blur accept any number of channels; policies that change colours need 1 or 3, or
`rgb`, the three channels that are red, green and blue.
"""

from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment.automated import draw_autoaugment, draw_randaugment
from contrapose.augment.blur import Blur
from contrapose.augment.colour import RGB, Grayscale, Jitter
from contrapose.augment.crop import draw_box
from contrapose.augment.draw import bernoulli
from contrapose.augment.view import Operation, render
from contrapose.augment.warp import Warp

Image = Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"]
View = Float[Tensor, "B C size size"]


def simclr(
    image: Image,
    generator: Generator,
    *,
    size: int,
    strength: float = 1.0,
    blur: bool = True,
    area: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    rgb: RGB | None = None,
) -> View:
    """SimCLR (appendix A): crop, flip, colour jitter of `strength`, grayscale and Gaussian blur.

    Crop of area 0.08-1, flip with p 0.5, jitter with p 0.8, grayscale with p 0.2, blur with p 0.5.
    """
    n, s = len(image), 0.8 * strength
    box, mirrored = _box(image, generator, area=area), bernoulli(n, flip, generator)
    steps: list[Operation] = [
        Jitter.draw(
            n, generator, brightness=s, contrast=s, saturation=s, hue=s / 4, p=0.8, rgb=rgb
        ),
        Grayscale.draw(n, generator, p=0.2, rgb=rgb),
    ]
    if blur:
        steps.append(Blur.draw(n, generator, side=size, p=0.5))
    return render(image, box, size, flip=mirrored, steps=steps)


def simclr_cifar(
    image: Image, generator: Generator, *, size: int, strength: float = 0.5, rgb: RGB | None = None
) -> View:
    """SimCLR on CIFAR-10 (B.9): as `simclr` with half the colour strength and no blur."""
    return simclr(image, generator, size=size, strength=strength, blur=False, rgb=rgb)


def supcon_cifar(image: Image, generator: Generator, *, size: int, rgb: RGB | None = None) -> View:
    """Supervised contrastive learning on CIFAR (the authors' PyTorch code): crop, flip, colours.

    Crop of area 0.2-1, flip, jitter (0.4, 0.4, 0.4, 0.1) with p 0.8, grayscale with p 0.2.
    """
    n = len(image)
    box, flip = _box(image, generator, area=(0.2, 1.0)), bernoulli(n, 0.5, generator)
    steps: list[Operation] = [
        Jitter.draw(
            n, generator, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8, rgb=rgb
        ),
        Grayscale.draw(n, generator, p=0.2, rgb=rgb),
    ]
    return render(image, box, size, flip=flip, steps=steps)


def instance_discrimination(
    image: Image, generator: Generator, *, size: int, flip: float = 0.5, rgb: RGB | None = None
) -> View:
    """Instance discrimination (Wu et al.) on small images: crop, flip, jitter and grayscale.

    Crop of area 0.2-1, jitter (0.4, 0.4, 0.4, 0.4) always, grayscale with p 0.2. flip: its
    probability; the paper lists a flip, the authors' code has none (0.0).
    """
    n = len(image)
    box, mirrored = _box(image, generator, area=(0.2, 1.0)), bernoulli(n, flip, generator)
    steps: list[Operation] = [
        Jitter.draw(n, generator, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, rgb=rgb),
        Grayscale.draw(n, generator, p=0.2, rgb=rgb),
    ]
    return render(image, box, size, flip=mirrored, steps=steps)


def moco_v1(image: Image, generator: Generator, *, size: int, rgb: RGB | None = None) -> View:
    """MoCo v1: crop, flip, grayscale and then jitter.

    Crop of area 0.2-1, grayscale with p 0.2, jitter (0.4, 0.4, 0.4, 0.4) always.
    """
    n = len(image)
    box, flip = _box(image, generator, area=(0.2, 1.0)), bernoulli(n, 0.5, generator)
    steps: list[Operation] = [
        Grayscale.draw(n, generator, p=0.2, rgb=rgb),
        Jitter.draw(n, generator, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, rgb=rgb),
    ]
    return render(image, box, size, flip=flip, steps=steps)


def moco_v2(image: Image, generator: Generator, *, size: int, rgb: RGB | None = None) -> View:
    """MoCo v2: crop, flip, jitter, grayscale and Gaussian blur.

    Crop of area 0.2-1, jitter (0.4, 0.4, 0.4, 0.1) with p 0.8, grayscale with p 0.2, blur with
    p 0.5 (with SimCLR's kernel, a tenth of the side; the authors' has no limit).
    """
    n = len(image)
    box, flip = _box(image, generator, area=(0.2, 1.0)), bernoulli(n, 0.5, generator)
    steps: list[Operation] = [
        Jitter.draw(
            n, generator, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8, rgb=rgb
        ),
        Grayscale.draw(n, generator, p=0.2, rgb=rgb),
        Blur.draw(n, generator, side=size, p=0.5),
    ]
    return render(image, box, size, flip=flip, steps=steps)


def autoaugment(
    image: Image,
    generator: Generator,
    *,
    size: int,
    translate: float = 250.0,
    area: tuple[float, float] = (0.08, 1.0),
    rgb: RGB | None = None,
) -> View:
    """AutoAugment (arXiv 1805.09501, policy v0): crop, flip, then one of 25 pairs of operations.

    The crop has an area of 0.08-1; a pair is drawn for each image.
    translate: px that level 10 moves an image of 224 px (250 in the code of the supervised
    contrastive paper; 150 / 331 of the side, or 101.5, in AutoAugment's).
    """
    n = len(image)
    box, flip = _box(image, generator, area=area), bernoulli(n, 0.5, generator)
    drawn = draw_autoaugment(n, generator, side=size, translate=translate, rgb=rgb)
    return render(image, box, size, flip=flip, steps=[drawn])


def randaugment(
    image: Image,
    generator: Generator,
    *,
    size: int,
    operations: int = 2,
    magnitude: float = 10.0,
    area: tuple[float, float] = (0.08, 1.0),
    rgb: RGB | None = None,
) -> View:
    """RandAugment (arXiv 1909.13719): crop, flip, then `operations` of 17 at one magnitude.

    The crop has an area of 0.08-1; operations are drawn for each image. magnitude: 0-10.
    """
    n = len(image)
    box, flip = _box(image, generator, area=area), bernoulli(n, 0.5, generator)
    drawn = draw_randaugment(
        n, generator, side=size, operations=operations, magnitude=magnitude, rgb=rgb
    )
    return render(image, box, size, flip=flip, steps=[drawn])


def simaugment(
    image: Image,
    generator: Generator,
    *,
    size: int,
    strength: float = 0.5,
    warp: float = 0.5,
    blur: float = 0.5,
    area: tuple[float, float] = (0.08, 1.0),
    rgb: RGB | None = None,
) -> View:
    """SimAugment (supervised contrastive learning): crop, flip, jitter, grayscale, warp and blur.

    Jitter of `strength` with p 0.8, grayscale with p 0.2. warp, blur: their probabilities.
    The paper describes the warp and the function applies it with p 0.5, but its released
    configurations leave it out (warp=0), those of CIFAR-10 the blur too. The rotations that the
    paper names are not in the code, nor here.
    """
    n = len(image)
    box, flip = _box(image, generator, area=area), bernoulli(n, 0.5, generator)
    steps = _simaugment(n, generator, size, strength, warp, blur, rgb)
    return render(image, box, size, flip=flip, steps=steps)


def stacked_randaugment(
    image: Image,
    generator: Generator,
    *,
    size: int,
    strength: float = 1.0,
    operations: int = 2,
    magnitude: float = 10.0,
    warp: float = 0.5,
    blur: float = 0.5,
    area: tuple[float, float] = (0.08, 1.0),
    rgb: RGB | None = None,
) -> View:
    """Stacked RandAugment (supervised contrastive learning): RandAugment within SimAugment.

    RandAugment is between the jitter and the grayscale, as in the released code; the paper says
    that it comes first. warp: as for `simaugment`.
    """
    n = len(image)
    box, flip = _box(image, generator, area=area), bernoulli(n, 0.5, generator)
    jitter, *rest = _simaugment(n, generator, size, strength, warp, blur, rgb)
    drawn = draw_randaugment(
        n, generator, side=size, operations=operations, magnitude=magnitude, rgb=rgb
    )
    return render(image, box, size, flip=flip, steps=[jitter, drawn, *rest])


def digits(
    image: Image, generator: Generator, *, size: int, area: tuple[float, float] = (0.5, 1.0)
) -> View:
    """Handwritten digits: a crop of area 0.5-1 only ("Intriguing Properties", random bits).

    No flip, since a mirrored digit is another sign; no colour changes, since images are gray.
    """
    return render(image, _box(image, generator, area=area), size)


def crop_flip(
    image: Image, generator: Generator, *, size: int, area: tuple[float, float] = (0.08, 1.0)
) -> View:
    """Crop and flip only: the training transform of a linear probe (SimCLR, B.6).

    SupCon on CIFAR uses an area of 0.2-1.
    """
    flip = bernoulli(len(image), 0.5, generator)
    return render(image, _box(image, generator, area=area), size, flip=flip)


def _simaugment(
    count: int,
    generator: Generator,
    size: int,
    strength: float,
    warp: float,
    blur: float,
    rgb: RGB | None,
) -> list[Operation]:
    """Jitter, grayscale, warp and blur as drawn."""
    s = 0.8 * strength
    steps: list[Operation] = [
        Jitter.draw(
            count, generator, brightness=s, contrast=s, saturation=s, hue=s / 4, p=0.8, rgb=rgb
        ),
        Grayscale.draw(count, generator, p=0.2, rgb=rgb),
        Warp.draw(count, generator, p=warp),
        Blur.draw(count, generator, side=size, p=blur),
    ]
    return steps


def _box(image: Image, generator: Generator, *, area: tuple[float, float]) -> Int[Tensor, "B 4"]:
    count, _, height, width = image.shape
    return draw_box(count, height, width, generator, area=area)
