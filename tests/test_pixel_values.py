"""Pixel values: one range for a whole set, known by the type or told, and the same at every use."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import contrapose
from contrapose import api
from contrapose.data import ImageSet, open_images

random = np.random.default_rng(0)
TWELVE = random.integers(0, 4096, (6, 16, 16)).astype(np.uint16)


def stored(images: ImageSet) -> np.ndarray:
    return images.batch(torch.arange(len(images))).numpy()


def files(folder: Path, arrays: object, **how: object) -> Path:
    """One TIFF an array, in their order."""
    folder.mkdir()
    for k, x in enumerate(arrays):
        tifffile.imwrite(folder / f"{k:03}.tif", x, **how)
    return folder


def png16(path: Path, x: np.ndarray) -> None:
    """A PNG of 16 bits with 1 to 4 channels, which Pillow does not write."""
    height, width, channels = x.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("values", "kind", "white"),
    [
        ([0, 200], "u2", 255),
        ([0, 256], "u2", 1023),
        ([0, 4095], "u2", 4095),
        ([0, 4096], "i4", 16383),
        ([0, 65535], "i8", 65535),
        ([0, 4095], ">u2", 4095),
        ([0, 65535], "u8", 65535),
        ([0, 0.25], "f2", 1),
        ([0, 1], ">f8", 1),
        ([0, 128.5], "f4", 255),
    ],
)
def test_the_type_and_the_set_say_what_white_is(
    values: list[float], kind: str, white: float, tmp_path: Path
) -> None:
    x = random.choice(np.array(values, kind), (5, 12, 12))
    expected = np.rint(x.astype(np.float64) * (255 / white))
    for source in (x, files(tmp_path / "set", x.astype(x.dtype.newbyteorder("=")))):
        images = open_images(source)
        assert (stored(images)[:, 0] == expected).all()
        assert (images.value_range.low, images.value_range.high) == (0, white)
        assert sum(f"values 0:{white} read" in note for note in images.notes) == 1


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (random.normal(size=(5, 16, 16)), r"undo the normalisation"),
        (random.random((5, 16, 16)) * 16, r"neither in \[0, 1\] nor in .*--range 0\.\d+:15\."),
        (random.integers(-1024, 3000, (5, 16, 16)), r"from -1024 .*--range -10\d\d:29"),
        (random.integers(0, 2**40, (5, 16, 16)), "not those of 8, 10, 12, 14 or 16 bits"),
    ],
)
def test_values_without_a_usual_range_are_refused_with_what_to_tell(
    x: np.ndarray, words: str, tmp_path: Path
) -> None:
    for source in (x, files(tmp_path / "set", x)):
        with pytest.raises(ValueError, match=words):
            open_images(source)


def test_equal_pixels_of_two_images_are_stored_alike_whatever_lies_beside_them(
    tmp_path: Path,
) -> None:
    patch = random.random((16, 16)).astype(np.float32) * 0.9
    cloud, hole = patch.copy(), patch.copy()
    cloud[0, 0], hole[:3] = 1.03, -9999
    images = open_images(files(tmp_path / "set", [patch, cloud, hole]))
    x = stored(images)[:, 0]
    assert (x[:, 4:] == np.rint(patch[4:] * 255)).all()
    assert x[1, 0, 0] == 255 and (x[2, :3] == 0).all()
    assert images.notes["with values outside the range, clipped"] == 2


def test_a_told_range_is_the_same_for_files_and_arrays(tmp_path: Path) -> None:
    x = random.integers(-1024, 3072, (5, 16, 16)).astype(np.int16)
    expected = np.rint((x.clip(-1000, 1000) + 1000.0) * (255 / 2000))
    for source in (x, files(tmp_path / "set", x), torch.from_numpy(x)):
        for memory in (2**30, 0):
            images = open_images(source, value_range=(-1000, 1000), memory=memory)
            assert (stored(images)[:, 0] == expected).all()
            assert any(n.startswith("with values outside the range") for n in images.notes)


@pytest.mark.parametrize("value_range", [(5, 5), (9, 1), (0, float("nan")), "4095", (1, 2, 3)])
def test_a_range_that_is_none_is_refused(value_range: object) -> None:
    with pytest.raises(ValueError, match="range"):
        open_images(TWELVE, value_range=value_range)


def test_a_few_hot_pixels_decide_nothing(tmp_path: Path) -> None:
    hot = TWELVE.copy()
    hot[3, 3, 3] = 65535
    for source in (hot, files(tmp_path / "set", hot)):
        images = open_images(source)
        assert images.value_range.high == 4095
        assert images.notes["with values outside the range, clipped"] == 1
        expected = np.rint(hot.clip(0, 4095) * (255 / 4095))
        assert (stored(images)[:, 0] == expected).all()


def test_one_image_of_another_scale_decides_nothing() -> None:
    x = random.integers(0, 4096, (60, 16, 16)).astype(np.uint16)
    x[7] = random.integers(0, 65536, (16, 16))
    images = open_images(x)
    assert images.value_range.high == 4095
    assert images.notes["with values outside the range, clipped"] == 1


def test_pixels_without_a_value_are_black_and_counted(tmp_path: Path) -> None:
    x = random.random((40, 16, 16)).astype(np.float32)
    x[1, :4], x[2, 0, 0], x[3] = np.nan, np.inf, np.nan
    for source in (x, files(tmp_path / "nan", x)):
        images = open_images(source)
        assert len(images) == 39 and "none of its pixels" in images.skipped[0].reason
        without = [n for note, n in images.notes.items() if note.startswith("with pixels of no")]
        assert without == [2] and (stored(images)[1, 0, :4] == 0).all()
        assert (stored(images)[1, 0, 4:] == np.rint(x[1, 4:] * 255)).all()
    y = TWELVE.copy()
    y[:, :2] = 9999
    tag = [(42113, 2, None, "9999", True)]  # GDAL_NODATA
    images = open_images(files(tmp_path / "tag", y, extratags=tag))
    assert images.value_range.high == 4095 and (stored(images)[:, 0, :2] == 0).all()
    with pytest.raises(ValueError, match="none of its pixels"):
        open_images(np.full((5, 8, 8), np.nan))


def test_eight_bits_stay_as_they_are_beside_twelve(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", TWELVE)
    eight = random.integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(eight).save(folder / "a.png")
    for value_range in (None, (0, 4095)):
        images = open_images(folder, value_range=value_range)
        assert (stored(images)[-1, 0] == eight).all()
        assert images.notes["of 8 bits beside them, read as 0:255"] == 1
    with pytest.raises(ValueError, match=r"all images have 8 bits.*leave it out"):
        open_images(eight[None], value_range=(0, 4095))
    low = open_images((eight // 16)[None], value_range=(0, 15))
    assert (stored(low)[0, 0] == eight // 16 * 17).all()


def test_colour_of_sixteen_bits_is_not_cut_to_its_upper_eight(tmp_path: Path) -> None:
    x = random.integers(0, 4096, (3, 16, 16, 3)).astype(np.uint16)
    expected = np.rint(x * (255 / 4095)).transpose(0, 3, 1, 2)
    (tmp_path / "png").mkdir()
    for k, image in enumerate(x):
        png16(tmp_path / f"png/{k}.png", image)
    for source in (tmp_path / "png", files(tmp_path / "tif", x, photometric="rgb")):
        assert (stored(open_images(source)) == expected).all()
    opaque = np.full((3, 16, 16, 1), 65535, np.uint16)
    opaque[0] = 0
    for k, image in enumerate(np.concatenate([x, opaque], axis=3)):
        png16(tmp_path / f"png/{k}.png", image)
    found = stored(open_images(tmp_path / "png"))
    assert (found[0] == 255).all() and (found[1:] == expected[1:]).all()


def test_images_that_use_little_of_the_range_are_counted() -> None:
    dark = TWELVE.copy()
    dark[:2] = dark[:2] // 100
    assert open_images(dark).notes["nearly black: no value above 1/64 of the range"] == 2


def test_a_run_reads_its_test_split_and_other_images_as_it_read_its_training_images(
    tmp_path: Path,
) -> None:
    y = np.arange(6) % 2
    np.savez(tmp_path / "x.npz", x_train=TWELVE, y_train=y, x_test=TWELVE // 16, y_test=y)
    how = {"epochs": 1, "batch_size": 2, "device": "cpu"}
    run = contrapose.train("simclr", tmp_path / "x.npz", out=tmp_path / "run", **how)
    train, test, said = api.train_and_test(run)
    assert "with values outside" not in said
    assert (stored(train)[:, 0] == np.rint(TWELVE * (255 / 4095))).all()
    assert (stored(test)[:, 0] == np.rint(TWELVE // 16 * (255 / 4095))).all()
    _, other = api.embed(run, TWELVE // 16, device="cpu")
    assert (stored(other) == stored(test)).all()
    assert api.resume(run.path, device="cpu").path == run.path

    run = contrapose.train(
        "simclr", tmp_path / "x.npz", out=tmp_path / "told", value_range=(0, 255), **how
    )
    assert (stored(api.train_and_test(run)[1])[:, 0] == TWELVE // 16).all()


def test_a_test_split_of_other_values_is_said_beside_its_scores(tmp_path: Path) -> None:
    y = np.arange(6) % 2
    for name, x in (("brighter", TWELVE * 16), ("darker", TWELVE // 128)):
        np.savez(tmp_path / f"{name}.npz", x_train=TWELVE, y_train=y, x_test=x, y_test=y)
        run = contrapose.train(
            "simclr", tmp_path / f"{name}.npz", out=tmp_path / name, epochs=1, batch_size=2
        )
        said = api.train_and_test(run)[2]
        assert ("6 of 6 with values outside" in said) == (name == "brighter")
        assert ("6 of 6 nearly black" in said) == (name == "darker")


def test_a_composed_set_keeps_the_range_of_its_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=TWELVE, x_test=TWELVE // 16)
    call = f"random-bits({tmp_path / 'x.npz'}, bits=1)"
    train = open_images(call)
    assert (stored(train)[:, 0] == np.rint(TWELVE * (255 / 4095))).all()
    test = open_images(call, "test", value_range=train.value_range)
    assert (stored(test)[:, 0] == np.rint(TWELVE // 16 * (255 / 4095))).all()


def test_kept_squares_are_those_of_the_same_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("contrapose.data.load._slow", lambda headers: True)
    folder = files(tmp_path / "set", TWELVE)
    first, told = open_images(folder), open_images(folder, value_range=(0, 8190))
    assert len(list((tmp_path / "cache/squares").glob("*.npz"))) == 2
    for value_range, before in ((None, first), ((0, 8190), told)):
        again = open_images(folder, value_range=value_range)
        assert (stored(again) == stored(before)).all() and again.fingerprint == before.fingerprint
        assert again.notes == before.notes and again.value_range == before.value_range
    for copy in (tmp_path / "cache/squares").glob("*.npz"):
        copy.write_bytes(copy.read_bytes()[:300])
    assert (stored(open_images(folder)) == stored(first)).all()


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contrapose.data.load._slow", lambda headers: True)
    folder = files(tmp_path / "set", TWELVE)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below", Path("/dev/full/x")):
        monkeypatch.setenv("CONTRAPOSE_CACHE", str(place))
        with pytest.warns(UserWarning, match="could not be kept"):
            assert len(open_images(folder)) == 6


def test_damaged_tiffs_are_named_and_never_end_in_another_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x = random.integers(0, 4096, (5, 32, 32, 6)).astype(np.uint16)
    folder = files(tmp_path / "set", x, photometric="minisblack", planarconfig="contig")
    first = folder / "000.tif"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1000])
    for memory in (2**30, 0):
        images = open_images(folder, max_bad_share=0.2, memory=memory)
        assert [(Path(s.path).name, s.reason) for s in images.skipped] == [
            ("000.tif", "the file is cut off")
        ]
    for _ in range(40):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, 300, 3)] = random.integers(0, 256, 3)
        first.write_bytes(damaged.tobytes())
        assert len(open_images(folder, max_bad_share=0.9)) >= 4
    with pytest.raises(ValueError, match="type complex128 are not pixels"):
        open_images(files(tmp_path / "complex", x[..., 0] * 1j))
    assert capfd.readouterr() == ("", "")


def test_each_channel_may_have_a_range_of_its_own(tmp_path: Path) -> None:
    units = np.array([4095.0, 8.0, 300.0, 1.0])  # of each channel, its white
    low = np.array([0.0, -8.0, 200.0, 0.0])
    x = (low + random.random((6, 16, 16, 4)) * (units - low)).astype(np.float32)
    told = "0:4095,-8:8,200:300,0:1"
    exact = np.rint((x.astype(np.float64) - low) * (255 / (units - low)))
    by = open_images(x, channels=4, value_range=told)
    assert np.abs(stored(by).transpose(0, 2, 3, 1) - exact).max() <= 1  # float32 at a half
    assert np.mean(stored(by).transpose(0, 2, 3, 1) == exact) > 0.999
    pairs = list(zip(low.tolist(), units.tolist(), strict=True))
    assert open_images(x, channels=4, value_range=pairs).fingerprint == by.fingerprint
    assert str(by.value_range) == told and "with values outside" not in str(by.notes)
    bright = x.copy()
    bright[2, 0, 0, 3] = 2  # white is 1 in this channel, and 4095 in another
    assert open_images(bright, channels=4, value_range=told).notes[
        "with values outside the range, clipped"
    ] == 1  # fmt: skip

    tiffs = files(tmp_path / "tiffs", x, photometric="minisblack", planarconfig="contig")
    of_files = open_images(tiffs, channels=4, value_range=told)
    assert (stored(of_files) == stored(by)).all()
    assert open_images(tiffs, channels=4, value_range=told).value_range == by.value_range  # kept

    np.savez(tmp_path / "x.npz", x_train=x, x_test=x[:3])
    run = contrapose.train(
        "simclr", tmp_path / "x.npz", out=tmp_path / "run", value_range=told, channels=4,
        rgb="2,1,0", encoder="small_conv", epochs=1, batch_size=2, device="cpu",
    )  # fmt: skip
    train, test, _ = api.train_and_test(run)
    assert (stored(train) == stored(by)).all() and (stored(test) == stored(by)[:3]).all()
    assert (stored(api.embed(run, tiffs, device="cpu")[1]) == stored(by)).all()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("0:1,0:1", r"tells 2 ranges, and its images have 4 channels; tell one for each"),
        ("0:1,0:1,0:1,1:0", r"a larger one of white, or such a pair for each channel"),
        ("0:1,0:1,0:1,0", r"--range 0:1,0:1,0:1,0: write the value of black"),
        ("0:1,,0:1,0:1", r"--range 0:1,,0:1,0:1: write the value of black"),
        ([(0, 1), (0, 1), 3], r"value_range=.*or such a pair for each channel"),
    ],
)
def test_ranges_that_do_not_fit_the_channels_are_refused(told: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_images(np.zeros((3, 8, 8, 4), np.float32), channels=4, value_range=told)
