"""JPEG decoded, resized and cropped by a GPU, where that is quicker than by the processor's cores.

torchcodec decodes (nvJPEG), torch resizes, both on the GPU: what is copied there are the bytes of
the files. Plain JPEG alone is done so, as `quick_header` knows it: grey or colour of 8 bits,
upright. The squares differ from the processor's: the resize is not rounded between its two passes,
the crop has no pixels beyond its edge, nvJPEG rounds in its own way, and a large picture is decoded
whole where libjpeg decodes it at a reduced scale. So a GPU is tried on pictures made for that, and
is left out where their mean difference is above CLOSE.

CONTRAPOSE_JPEG=cpu leaves the GPU out.
"""

import importlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from contrapose.data import quick_header
from contrapose.data.decode import Fit, Reading, decode
from contrapose.data.threads import chunks, each
from contrapose.machine import synchronize

CLOSE = 1.0  # levels of 255: the mean difference of a square from the processor's
AT_ONCE = 2**28  # bytes of decoded pictures on the device, unless one alone has more
TRIED = 64  # pictures of the trial
REPEATS = 3


@dataclass(frozen=True)
class DeviceJpeg:
    """A device that decodes JPEG. `decode(files, mode=, device=)` returns uint8 [C, H, W] each."""

    device: torch.device
    decode: Callable[..., Sequence[Tensor]]

    def fill(
        self, files: Sequence[bytes | None], out: UInt8[Tensor, "B C S S"], how: Reading
    ) -> list[int]:
        """Set `out`, on the device, to the squares of the files; returns the places left as they
        were.

        Left are files that are None, are no plain JPEG, have more pixels than are read, or do not
        decode.
        """
        plain: dict[int, int] = {}  # place -> bytes of the picture
        for place, content in enumerate(files):
            if content is None or how.over is not None or out.shape[1] not in (1, 3):
                continue
            head, tail = content[: quick_header.HEAD], content[-quick_header.END :]
            if (found := quick_header.of_jpeg(head, tail, how.max_pixels)) is not None:
                plain[place] = found[0] * found[1] * out.shape[1]
        mode = "GRAY" if out.shape[1] == 1 else "RGB"
        done = set[int]()
        for places in _portions(plain):
            try:
                pictures = self.decode(
                    [files[k] for k in places], mode=mode, device=str(self.device)
                )
            except RuntimeError:  # of one of them: the processor says which, and why
                continue
            for k, picture in zip(places, pictures, strict=True):
                _fit(picture, out[k], how.fit)
            done.update(places)
        return [k for k in range(len(files)) if k not in done]


def on(device: torch.device) -> DeviceJpeg | None:
    """What decodes JPEG on a device; None where the processor's cores do it, `why` says why."""
    return _found(device)[0]


def why(device: torch.device) -> str:
    """What decodes JPEG for a device, and why, in words."""
    return _found(device)[1]


def _found(device: torch.device) -> tuple[DeviceJpeg | None, str]:
    if device.type != "cuda":
        return None, "by the processor: no GPU trains"
    if os.environ.get("CONTRAPOSE_JPEG") == "cpu":
        return None, "by the processor, as CONTRAPOSE_JPEG=cpu asks"
    return _tried(device)


@cache
def _tried(device: torch.device) -> tuple[DeviceJpeg | None, str]:
    if (made := decoder(device)) is None:
        return None, "by the processor: the GPU's decoder needs pip install 'contrapose[gpu]'"
    return judged(made)


def decoder(device: torch.device) -> DeviceJpeg | None:
    """torchcodec's decoder on a device, untried; None where torchcodec does not load."""
    try:
        codec = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # not installed, or without a library it needs
        return None
    return DeviceJpeg(device, codec.decode_jpeg)


def judged(made: DeviceJpeg) -> tuple[DeviceJpeg | None, str]:
    """The device if it is close to the processor and quicker, else None; and why, in words."""
    try:
        found = trial(made)
    except RuntimeError as error:  # torchcodec without CUDA, or no room on the device
        said = str(error).strip().partition("\n")[0]
        return None, f"by the processor: the GPU's decoder failed ({said})"
    times = (
        f"{TRIED} files of 341 x 256 px take {1e3 * found.device:.1f} ms there, "
        f"{1e3 * found.processor:.1f} ms by the processor"
    )
    if found.difference > CLOSE:
        off = f"{found.difference:.1f} levels of 255"
        return None, f"by the processor: the GPU's decoder is {off} away from it, more than {CLOSE}"
    if not found.quicker:
        return None, f"by the processor: {times}"
    return made, f"by the GPU: {times}"


@dataclass(frozen=True)
class Trial:
    """Squares of 224 px of JPEG of 341 x 256 px, by the device and by the processor's cores."""

    difference: float  # levels of 255, the mean
    device: float  # s, of TRIED pictures
    processor: float

    @property
    def quicker(self) -> bool:
        return self.device < self.processor


def trial(made: DeviceJpeg) -> Trial:
    """Decode pictures made for it both ways, in turn; the least time of each is kept."""
    files = [_picture(seed) for seed in range(4)] * (TRIED // 4)
    here = np.empty((TRIED, 3, 224, 224), np.uint8)
    there = torch.zeros(here.shape, dtype=torch.uint8, device=made.device)

    def by_device() -> None:
        if made.fill(files, there, Reading()):
            raise RuntimeError("a plain JPEG was not decoded")
        synchronize(made.device)

    def one(places: range) -> None:
        for k in places:
            here[k], _ = decode(io.BytesIO(files[k]), 224, 3, Reading())

    def by_processor() -> None:
        each(one, chunks(TRIED, at_most=1))
        torch.from_numpy(here).to(made.device)
        synchronize(made.device)

    took: dict[Any, list[float]] = {by_device: [], by_processor: []}
    for _ in range(REPEATS):
        for work, times in took.items():
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    difference = np.abs(there.cpu().numpy().astype(np.int16) - here).mean()
    return Trial(float(difference), min(took[by_device]), min(took[by_processor]))


def _picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 21, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(coarse).resize((341, 256), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _portions(size: dict[int, int]) -> Iterator[list[int]]:
    """The places in runs of at most AT_ONCE bytes."""
    run, total = list[int](), 0
    for place, of in size.items():
        if run and total + of > AT_ONCE:
            yield run
            run, total = [], 0
        run.append(place)
        total += of
    if run:
        yield run


def _fit(picture: UInt8[Tensor, "C H W"], out: UInt8[Tensor, "C S S"], fit: Fit) -> None:
    """Set `out` to the square of a picture, as `decode.to_square` makes it."""
    side, (height, width) = out.shape[-1], picture.shape[1:]
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        picture = picture[:, top : top + short, left : left + short]
        height = width = side
    else:
        scale = side / max(width, height)
        width, height = (max(1, round(length * scale)) for length in (width, height))
        out.zero_()
    if picture.shape[1:] != (height, width):
        resized = torch.nn.functional.interpolate(
            picture[None].float(), (height, width), mode="bicubic", antialias=True
        )
        picture = resized[0].round_().clamp_(0, 255).to(torch.uint8)
    left, top = (side - width) // 2, (side - height) // 2
    out[:, top : top + height, left : left + width] = picture
