"""Images of any number of channels: read whole, each whitened, coloured where that is told."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import contrapose
from contrapose import api, augment
from contrapose.augment import Grayscale, Jitter
from contrapose.data import ImageSet, open_images
from contrapose.explain import pictures

random = np.random.default_rng(0)


def stored(images: ImageSet) -> np.ndarray:
    return images.batch(torch.arange(len(images))).numpy()


@pytest.mark.parametrize("channels", [2, 4, 6, 13])
def test_any_number_of_channels_from_arrays_npz_and_tiff(channels: int, tmp_path: Path) -> None:
    x = random.integers(0, 4096, (3, channels, 16, 24)).astype(np.uint16)
    np.savez(tmp_path / "x.npz", images=x)
    for name, image, plan in (
        ("interleaved", np.moveaxis(x, 1, 3), "contig"),
        ("planes", x, "separate"),
    ):
        (tmp_path / name).mkdir()
        for k, one in enumerate(image):
            tifffile.imwrite(
                tmp_path / f"{name}/{k}.tif", one, photometric="minisblack", planarconfig=plan
            )
    expected = np.rint(x[..., 4:20] * (255 / 4095))
    sources = ("x.npz", "interleaved", "planes")
    for source in (x, x.transpose(0, 2, 3, 1), *(tmp_path / name for name in sources)):
        for memory in (2**30, 0):
            images = open_images(source, size=16, memory=memory)
            assert (images.channels, images.in_memory) == (channels, memory > 0)
            assert (stored(images) == expected).all()


def test_four_channels_are_colour_and_transparency_only_in_rgba_bytes() -> None:
    x = random.integers(0, 256, (5, 8, 8, 4), dtype=np.uint8)
    assert open_images(x).channels == 3
    assert any("RGBA; channels=4 keeps" in note for note in open_images(x).notes)
    for kept in (
        open_images(x, channels=4),
        open_images(x.transpose(0, 3, 1, 2)),
        open_images(x / 255),
    ):
        assert (stored(kept) == x.transpose(0, 3, 1, 2)).all()


def test_the_layout_that_was_taken_is_said_and_two_possible_ones_are_refused() -> None:
    x = random.integers(0, 256, (3, 64, 64, 13), dtype=np.uint8)
    assert open_images(x).notes == {"read as [N H W C] with 13 channels": 3}
    assert open_images(x.transpose(0, 3, 1, 2)).notes == {"read as [N C H W] with 13 channels": 3}
    for shape, words in (
        ((3, 13, 13, 13), "no axis of channels"),
        ((3, 40, 64, 64), "no axis of channels"),
        ((64, 64, 13), r"could be one image \[H W C\]"),
        ((3, 4, 9, 4), r"could be \[N C H W\] or \[N H W C\]"),
    ):
        with pytest.raises(ValueError, match=words):
            open_images(np.zeros(shape, np.uint8))
    assert open_images(np.zeros((3, 40, 64, 64), np.uint8), channels=40).channels == 40
    with pytest.raises(ValueError, match=r"channels=7: no axis"):
        open_images(x, channels=7)


def test_pages_of_a_tiff_are_channels_where_that_is_told(tmp_path: Path) -> None:
    x = random.integers(0, 4096, (2, 6, 16, 16)).astype(np.uint16)
    x[:, 0] //= 16  # the range is that of all pages
    for k, image in enumerate(x):
        tifffile.imwrite(tmp_path / f"{k}.tif", image, photometric="minisblack")
    images = open_images(tmp_path)
    assert images.channels == 1 and images.notes["of several frames, first one taken"] == 2
    assert (stored(open_images(tmp_path, channels=6)) == np.rint(x * (255 / 4095))).all()
    for k, image in enumerate(x):  # a file that calls its pages channels
        tifffile.imwrite(tmp_path / f"{k}.tif", image, ome=True, metadata={"axes": "CYX"})
    assert (stored(open_images(tmp_path)) == np.rint(x * (255 / 4095))).all()


def test_an_image_with_other_channels_than_its_set_is_named(tmp_path: Path) -> None:
    for k in range(4):
        x = np.zeros((6 if k else 5, 16, 16), np.uint8)
        tifffile.imwrite(
            tmp_path / f"{k}.tif", x, photometric="minisblack", planarconfig="separate"
        )
    with pytest.raises(ValueError, match=r"0\.tif: it has 5 channels, not 6"):
        open_images(tmp_path)
    assert len(open_images(tmp_path, max_bad_share=0.5)) == 3


def test_colour_changes_the_three_channels_that_are_named_as_if_they_were_alone() -> None:
    x = torch.rand(16, 6, 12, 12)
    rgb = (4, 0, 2)
    drawn = {
        "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2, "p": 0.8,
    }  # fmt: skip
    for make in (partial(Jitter.draw, **drawn), partial(Grayscale.draw, p=0.5)):
        seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
        changed, alone = x.clone(), x[:, list(rgb)]
        make(16, seeds[0], rgb=rgb)(changed)
        make(16, seeds[1])(alone)
        assert torch.equal(changed[:, list(rgb)], alone)
        assert torch.equal(changed[:, [1, 3, 5]], x[:, [1, 3, 5]])
    with pytest.raises(ValueError, match=r"colour of 6 channels.*--rgb 3,2,1.*crop_flip"):
        Jitter.draw(16, torch.Generator(), brightness=0.4)(x)
    with pytest.raises(ValueError, match=r"rgb=\(0, 0, 1\)"):
        Grayscale.draw(16, torch.Generator(), p=1, rgb=(0, 0, 1))(x)


def test_crop_flip_and_blur_take_every_channel_alike() -> None:
    x = torch.rand(8, 1, 24, 24).expand(-1, 6, -1, -1).contiguous()
    view = augment.moco_v2(x, torch.Generator().manual_seed(0), size=24, rgb=(0, 1, 2))
    assert torch.equal(view[:, 3], view[:, 4]) and torch.equal(view[:, 3], view[:, 5])
    assert not torch.equal(view[:, 3], x[:, 3])


def test_a_run_on_many_channels_whitens_each_and_shows_the_named_colours(tmp_path: Path) -> None:
    level = np.arange(1, 7)[:, None, None] * 600
    x = (random.random((48, 6, 16, 16)) * level).astype(np.uint16)
    y = np.arange(48) % 2
    np.savez(tmp_path / "x.npz", images=x, labels=y)
    how = {
        "epochs": 1, "batch_size": 16, "encoder": "small_conv", "device": "cpu",
        "out": tmp_path / "run",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"the recipe's views cannot run.*--rgb 3,2,1"):
        contrapose.train("simclr", tmp_path / "x.npz", **how)
    assert not (tmp_path / "run").exists()
    run = contrapose.train("simclr", tmp_path / "x.npz", rgb="2,1,0", **how)
    encoder = contrapose.Encoder.load(run.path)
    expected = torch.from_numpy(level[:, 0, 0] / 2 / 4095).float()
    assert torch.allclose(encoder.mean, expected, atol=0.01)
    assert torch.allclose(encoder.std, 2 * expected / 12**0.5, atol=0.01)
    images = api.request_of(run).open("train")
    few = torch.arange(2)
    shown = pictures.thumbs(images, few)
    colours = stored(images)[:, [2, 1, 0]].transpose(0, 2, 3, 1)
    bright = np.rint(colours * (255 / np.quantile(colours, 0.99))).clip(0, 255)
    assert bright.mean() > 2 * colours.mean()  # dark as they are stored
    assert abs(shown - bright[:2]).max() <= 1
    assert open_images((x // 256).astype(np.uint8)).brighter == 1
    embedded, _ = api.embed(run, x[:5], device="cpu")
    assert embedded.h.shape == (5, 256)
    plain = how | {"out": tmp_path / "plain", "changes": ["views=crop_flip"]}
    assert contrapose.train("simclr", x[:, :2], **plain).path.is_dir()


def test_rgb_that_the_images_do_not_have_is_refused() -> None:
    x = np.zeros((3, 6, 16, 16), np.uint8)
    with pytest.raises(ValueError, match=r"rgb=\(6, 1, 0\).*6 channels, counted from 0 to 5"):
        open_images(x, rgb=(6, 1, 0))
    for rgb in ("1,1,2", "red", (0, 1), (0, 1, -1)):
        with pytest.raises(ValueError, match="three different channels"):
            open_images(x, rgb=rgb)
    with pytest.raises(ValueError, match="grey; leave it out"):
        open_images(x[:, :1], rgb=(0, 1, 2))


def test_composed_sets_take_many_channels_or_refuse_them(tmp_path: Path) -> None:
    x = random.integers(0, 256, (16, 6, 24, 24), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=x)
    bits = open_images(f"random-bits({tmp_path / 'x.npz'}, bits=2)", rgb=(2, 1, 0))
    assert (bits.channels, bits.shown, bits.pictured) == (8, 6, (2, 1, 0))
    for call in ("coloured({})", "many-digits({})"):
        with pytest.raises(ValueError, match="6"):
            open_images(call.format(tmp_path / "x.npz"))


def test_a_channel_that_the_range_leaves_empty_is_said() -> None:
    x = random.integers(0, 4096, (5, 6, 16, 16)).astype(np.uint16)
    x[:, 2] = 700 + x[:, 2] % 30
    x[:, 4] = 0
    images = open_images(x)
    assert images.notes["with nearly all of the range unused in channel 2, 4"] == 5
