"""JPEG decoded by a device: here the CPU, through the same functions of torchcodec."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contrapose.data import device_jpeg, open_images
from contrapose.data.decode import Reading
from contrapose.data.device_jpeg import DeviceJpeg
from contrapose.data.images import OnAccess
from contrapose.errors import UserError

pytest.importorskip("torchcodec.decoders")
CPU = device_jpeg.decoder(torch.device("cpu"))


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with a little noise, as photographs have."""
    draw = np.random.default_rng(width)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + draw.integers(-4, 5, smooth.shape)).clip(0, 255)
    return Image.fromarray(noisy.astype(np.uint8)).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph(341, 256).save(tmp_path / "0 colour.jpg", quality=90)
    photograph(256, 400).save(tmp_path / "1 high.jpg", quality=90)
    photograph(1200, 900).save(tmp_path / "2 large.jpg", quality=90, progressive=True)
    photograph(80, 80).save(tmp_path / "3 as it is.jpg", quality=90)
    photograph(300, 200, "L").save(tmp_path / "4 grey.jpg", quality=90)
    photograph(300, 220).save(tmp_path / "5 turned.jpg", exif=turned)
    photograph(300, 240, "CMYK").save(tmp_path / "6 inks.jpg")
    photograph(300, 260).save(tmp_path / "7 no jpeg.png")
    return tmp_path


def on_the_device(folder: Path, **how) -> tuple[OnAccess, OnAccess]:
    """(squares by the processor, by the device)"""
    threads = open_images(folder, size=80, memory=0, **how).pixels
    return threads, replace(threads, jpeg=CPU)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_squares_are_those_of_the_processor_up_to_rounding(folder, fit, channels):
    threads, device = on_the_device(folder, fit=fit, channels=channels)
    order = torch.tensor([7, 3, 0, 5, 2, 6, 1, 4, 0])
    off = (threads.batch(order).int() - device.batch(order).int()).abs()
    assert not off[[0, 3, 5]].any()  # left to the processor: PNG, turned, inks
    assert off[[1, 2, 6, 7, 8]].max() <= 2 and off[[2, 6, 7, 8]].float().mean() < 0.2
    assert torch.equal(off[2], off[8])
    # the large one is decoded at 1/4 by the processor, whose crop is then half a pixel of that off
    assert off[4].float().mean() < (0.2 if fit == "pad" else 3)


def test_what_is_no_plain_jpeg_is_left_and_portions_change_nothing(folder, monkeypatch):
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    damaged = files[0][:2000] + bytes(len(files[0]) - 2002) + b"\xff\xd9"
    made = []
    for at_once in (2**28, 1):
        monkeypatch.setattr(device_jpeg, "AT_ONCE", at_once)
        out = torch.full((10, 3, 64, 64), 7, dtype=torch.uint8)
        assert CPU.fill([*files, None, b""], out, Reading()) == [5, 6, 7, 8, 9]
        assert (out[5:] == 7).all()
        made.append(out)
    assert torch.equal(*made)
    assert CPU.fill(files, made[0][:8], Reading(max_pixels=100_000)) == [1, 2, 5, 6, 7]
    assert CPU.fill([], made[0][:0], Reading()) == []
    assert CPU.fill([b"\xff\xd8\xff" + damaged[3:5] + damaged[100:]], made[0][:1], Reading()) == [0]


def test_a_file_that_is_gone_or_damaged_is_named(folder):
    _, device = on_the_device(folder)
    (folder / "1 high.jpg").unlink()
    (folder / "4 grey.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    with pytest.raises(UserError, match=r"1 high\.jpg.*No such file"):
        device.batch(torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"4 grey\.jpg.*repair or remove"):
        device.batch(torch.tensor([4, 0]))


def test_a_device_that_is_close_and_quicker_decodes_and_no_other(monkeypatch):
    monkeypatch.setattr(device_jpeg, "TRIED", 8)
    found = device_jpeg.trial(CPU)
    assert found.difference < 0.3
    made, why = device_jpeg.judged(CPU)
    assert (made is None) == why.startswith("by the processor: 8 files of 341 x 256 px take")
    inverted = DeviceJpeg(CPU.device, lambda *a, **k: [255 - x for x in CPU.decode(*a, **k)])
    made, why = device_jpeg.judged(inverted)
    assert made is None and "levels of 255 away from it" in why

    def broken(*_, **__):
        raise RuntimeError("no nvJPEG\nat line 7")

    made, why = device_jpeg.judged(DeviceJpeg(CPU.device, broken))
    assert made is None and why.endswith("failed (a plain JPEG was not decoded)")
    monkeypatch.setenv("CONTRAPOSE_JPEG", "cpu")
    gpu = torch.device("cuda")
    assert device_jpeg.on(gpu) is None and "as CONTRAPOSE_JPEG=cpu asks" in device_jpeg.why(gpu)
    assert device_jpeg.on(CPU.device) is None
