"""Many files are looked at quickly, once, and as Pillow would."""

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contrapose.data import fingerprint, headers, open_images, quick_header
from contrapose.data.decode import look, read_header
from contrapose.data.packed import Packed

RANDOM = np.random.default_rng(0)


def image(mode: str = "RGB", size: tuple[int, int] = (40, 23)) -> Image.Image:
    pixels = RANDOM.integers(0, 256, (size[1], size[0], 4), np.uint8)
    made = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[..., :3])
    return made.convert(mode)


def encoded(kind: str, mode: str = "RGB", **how: Any) -> bytes:
    file = io.BytesIO()
    image(mode).save(file, kind, **how)
    return file.getvalue()


def exif(**tags: Any) -> Image.Exif:
    made = Image.Exif()
    for tag, value in tags.items():
        made[getattr(__import__("PIL.ExifTags", fromlist=["Base"]).Base, tag)] = value
    return made


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 2**16, (9, 7), np.uint16)).save(file, "PNG")
    return file.getvalue()


def moving(kind: str) -> bytes:
    file = io.BytesIO()
    image().save(file, kind, save_all=True, append_images=[image()])
    return file.getvalue()


TURNED = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
PLAIN = {  # what Pillow is not asked about
    "jpeg": encoded("JPEG"),
    "grey jpeg": encoded("JPEG", "L"),
    "progressive": encoded("JPEG", progressive=True),
    "camera": encoded("JPEG", exif=exif(Make="A", Model="B")),
    "png": encoded("PNG"),
    "grey png": encoded("PNG", "L", dpi=(72, 72)),
}
OTHERS = {
    "upright by exif": encoded("JPEG", exif=exif(Orientation=6)),
    "upright by xmp": encoded("JPEG", xmp=TURNED),
    "cmyk": encoded("JPEG", "CMYK"),
    "two pictures": moving("MPO"),
    "long comment": encoded("JPEG", comment=b"x" * 60_000),
    "palette": encoded("PNG", "P"),
    "alpha": encoded("PNG", "RGBA"),
    "grey and alpha": encoded("PNG", "LA"),
    "one bit": encoded("PNG", "1"),
    "sixteen bits": deep(),
    "transparent colour": encoded("PNG", "RGB", transparency=(1, 2, 3)),
    "png upright by exif": encoded("PNG", exif=exif(Orientation=6)),
    "animated": moving("PNG"),
    "webp": encoded("WEBP"),
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_a_quick_look_finds_what_pillow_finds(name: str) -> None:
    content = (PLAIN | OTHERS)[name]
    assert look(io.BytesIO(content)) == read_header(io.BytesIO(content))
    quick = (
        quick_header.of_png(content)
        if content.startswith(b"\x89PNG")
        else quick_header.of_jpeg(content[: quick_header.HEAD], content[-64:])
    )
    assert (quick is not None) == (name in PLAIN)


@pytest.mark.parametrize("name", PLAIN)
def test_damage_leaves_it_to_pillow(name: str) -> None:
    content = PLAIN[name]
    read = quick_header.of_png if name.endswith("png") else (
        lambda x: quick_header.of_jpeg(x[: quick_header.HEAD], x[-64:])
    )  # fmt: skip
    for cut in range(0, len(content) - 2, 7):
        assert read(content[:cut]) is None
    drawn = random.Random(0)
    for _ in range(300):  # any byte: never an error, and in a PNG always noticed
        broken = bytearray(content)
        broken[drawn.randrange(len(broken))] ^= drawn.randrange(1, 256)
        assert read(bytes(broken)) is None or name.endswith(("jpeg", "progressive", "camera"))


def test_an_image_above_the_limit_is_left_to_pillow() -> None:
    assert quick_header.of_png(PLAIN["png"], max_pixels=40 * 23) is not None
    assert quick_header.of_png(PLAIN["png"], max_pixels=40 * 23 - 1) is None
    with pytest.raises(ValueError, match="--max-pixels 920"):
        look(io.BytesIO(PLAIN["jpeg"]), 40 * 23 - 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(headers, "_SLOW", 0.0)
    for k in range(6):
        path = tmp_path / "set" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(size=(20 + k, 20)).save(path)
    (tmp_path / "set/a/broken.png").write_text("no image")
    return tmp_path / "set"


def test_headers_are_kept_until_a_file_changes(folder: Path) -> None:
    def kept() -> list[Path]:
        return sorted((folder.parent / "cache/headers").iterdir())

    first = open_images(folder, memory=0, max_bad_share=0.5)
    again = open_images(folder, memory=0, max_bad_share=0.5)
    assert len(kept()) == 1 and len(again) == 6 and first.skipped == again.skipped
    assert first.fingerprint == again.fingerprint and first.notes == again.notes
    assert first.label.tolist() == again.label.tolist() and first.files == again.files
    image(size=(20, 12)).save(folder / "b/1.png")  # the same name
    assert open_images(folder, memory=0, max_bad_share=0.5).notes["enlarged to 20 px"] == 1
    (folder / "a/0.png").rename(folder / "b/0.png")
    image(size=(30, 30)).save(folder / "b/new.png")
    moved = open_images(folder, memory=0, max_bad_share=0.5)
    assert len(kept()) == 3 and moved.files == [f"a/{k}.png" for k in (2, 4)] + [
        f"b/{k}.png" for k in (0, 1, 3, 5, "new")
    ]
    for entry in kept():
        entry.write_bytes(entry.read_bytes()[:100])  # a disk that was full
    assert open_images(folder, memory=0, max_bad_share=0.5).notes == moved.notes


def test_of_much_content_the_fingerprint_takes_length_and_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a/broken.png").unlink()
    whole = open_images(folder, memory=0)
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    large = open_images(folder, memory=0)
    assert large.fingerprint != whole.fingerprint
    assert large.holds(whole.fingerprint) and large.holds(open_images(folder).fingerprint)
    assert open_images(folder).holds(large.fingerprint)
    image(size=(20, 20)).save(folder / "a/0.png")  # of the same sides
    assert open_images(folder, memory=0).fingerprint != large.fingerprint


def test_packed_strings_are_those_that_were_packed() -> None:
    strings = ["a", "", "köln", os.fsdecode(b"\xff.png"), "x" * 300]
    packed = Packed.of(strings)
    assert [*packed] == strings == [packed[i] for i in range(5)] == packed[:]
    assert packed[-1] == strings[-1] and packed[1:3] == strings[1:3]
    with pytest.raises(IndexError):
        packed[5]
