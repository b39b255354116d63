"""Labels: every way in means the same; tables of any dialect; columns and types of Parquet."""

import datetime
import decimal
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from contrapose.data import ImageSet, Request, open_images
from contrapose.data.labels import encode

random = np.random.default_rng(0)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


CELLS = [png() for _ in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `set` of a/1.png a/2.png b/1.png b/3.png."""
    for k, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/3.png")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CELLS[k])
    return tmp_path / "set"


def told(images: ImageSet) -> list[str | None]:
    """The class name of each image, None for no label."""
    assert images.label is not None
    return [images.classes[k] if k >= 0 else None for k in images.label.tolist()]


def by_table(folder: Path, text: str | bytes, **how: object) -> ImageSet:
    table = folder.parent / "labels.csv"
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_images(folder, labels=table, **how)


def by_column(folder: Path, label: pa.Array, name: str = "x.parquet") -> ImageSet:
    pq.write_table(pa.table({"image": CELLS[: len(label)], "label": label}), folder / name)
    return open_images(folder / name)


# ---- no label


@pytest.mark.parametrize("word", ["", "-1", "nan", "NaN", "null", "NULL", "None", "<NA>"])
def test_no_label_is_told_in_many_words(folder: Path, word: str) -> None:
    ways = [
        by_table(folder, f"file,label\na/1.png,cat\na/2.png,{word}\nb/1.png,dog\nb/3.png,cat\n"),
        by_table(folder, f"cat\n{word}\ndog\ncat\n"),
        open_images(folder, labels=["cat", word, "dog", "cat"]),
        by_column(folder.parent, pa.array(["cat", word, "dog", "cat"])),
    ]
    for images in ways:
        assert told(images) == ["cat", None, "dog", "cat"]


@pytest.mark.parametrize(
    "y",
    [
        [3, -1, 0, 3],
        [3, None, 0, 3],
        [3.0, float("nan"), 0.0, 3.0],
        np.array([3, np.nan, 0, 3], np.float16),
        torch.tensor([3, -1, 0, 3]),
        np.ma.masked_array([3, 9, 0, 3], [0, 1, 0, 0]),
        pa.array([3, None, 0, 3]),
        pa.array([3, None, 0, 3], pa.uint8()),
        pa.array([3, float("nan"), 0, 3], pa.float32()),
        pa.array([decimal.Decimal(3), None, decimal.Decimal(0), decimal.Decimal(3)]),
    ],
    ids=lambda y: f"{type(y).__name__} {getattr(y, 'dtype', getattr(y, 'type', ''))}",
)
def test_no_label_is_told_in_many_numbers(folder: Path, y: object) -> None:
    arrow = isinstance(y, pa.Array)
    images = by_column(folder, y) if arrow else open_images(folder, labels=y)
    assert told(images) == ["3", None, "0", "3"]


def test_a_missing_line_is_an_image_without_label(folder: Path) -> None:
    images = by_table(folder, "file,label\nb/3.png,2\na/2.png,10\n")
    assert told(images) == [None, "10", None, "2"] and images.classes == ("2", "10")
    assert images.notes["without a label"] == 2
    assert told(by_table(folder, "2\n\n10\n2\n")) == ["2", None, "10", "2"]
    assert told(by_table(folder, "7.0\n\n10.0\n7.0\n")) == ["7", None, "10", "7"]
    assert open_images(folder, labels=[None] * 4).label is None


# ---- tables


@pytest.mark.parametrize(
    "text",
    [
        "a/1.png;x, y\na/2.png;z\nb/1.png;z\nb/3.png;x, y\n",
        "a/1.png\tx, y\na/2.png\tz\nb/1.png\tz\nb/3.png\tx, y\n",
        'a/1.png,"x, y"\na/2.png, z\n"b/1.png", "z"\nb/3.png,"x, y"\n',
        'label,file\n"x, y",a/1.png\nz,a/2.png\nz,b/1.png\n"x, y",b/3.png\n',
        'kind;bild\n"x, y";a/1.png\nz;a/2.png\nz;b/1.png\n"x, y";b/3.png\n',
        'id,file_name,class\n0,a/1.png,"x, y"\n1,a/2.png,z\n2,b/1.png,z\n3,b/3.png,"x, y"\n',
        'file,label,\r\na/1.png,"x, y",\r\na/2.png,z,\r\nb/1.png,z,\r\nb/3.png,"x, y",\r\n',
        '"x, y"\nz\nz\n"x, y"\n',
        'breed\n"x, y"\nz\nz\n"x, y"\n',
    ],
    ids="semicolon tab quotes label-first odd-heading three-columns windows plain headed".split(),
)
def test_the_dialect_of_a_table_makes_no_difference(folder: Path, text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        images = by_table(folder, text.encode(encoding))
        assert told(images) == ["x, y", "z", "z", "x, y"]
    assert not [note for note in images.notes if "read as" in note]


def test_an_encoding_that_was_guessed_is_said(folder: Path) -> None:
    images = by_table(folder, "1,é\n2,b\n3,b\n".encode("cp1252").replace(b"1,", b"a/1,"))
    assert images.classes == ("b", "é")
    assert images.notes["lines of labels.csv read as Windows-1252"] == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda name, root: f"./{name}",
        lambda name, root: name.replace("/", "\\"),
        lambda name, root: f"{root}/{name}",
        lambda name, root: f"set/{name}",
        lambda name, root: f"/somebody/else/{name}",
        lambda name, root: f"C:\\somebody\\{name}".replace("/", "\\"),
        lambda name, root: name.upper(),
        lambda name, root: name.removesuffix(".png"),
    ],
    ids="dot windows absolute above moved drive capitals stem".split(),
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_may_be_named_in_many_ways(
    folder: Path, write: object, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a/1.png", "a/2.png", "b/1.png", "b/é.png"]
    (folder / "b/3.png").rename(folder / unicodedata.normalize("NFD", "b/é.png"))
    lines = [f"{write(name, folder)},{k}" for k, name in enumerate(names)]
    text = unicodedata.normalize(form, "\n".join(lines))
    monkeypatch.chdir(folder.parent)
    for source in (folder, Path("set")):
        assert told(by_table(folder, text)) == ["0", "1", "2", "3"], source


def test_names_that_are_no_utf8_are_found_by_a_table_in_latin_1(folder: Path) -> None:
    (folder / "b/3.png").rename(folder / os.fsdecode(b"b/ni\xf1o.png"))
    assert told(by_table(folder, "b/niño.png,cat\na/1.png,dog\n".encode("latin-1")))[3] == "cat"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/1.png,x\na/2.png,y\na/1.png,y\n", r"line 3: 'a/1.png' has the label 'y', but 'x' on l"),
        ("a/1.png,x\nb/7.png,y\n", r"line 2: 'b/7.png' names no image .* \(whose first is .*a/1"),
        ("a/1.png,x\n1.png,y\n", r"line 2: '1.png' names several images"),
        ("a/1.png,x\na/2.png,y,z\n", "line 2: 3 columns, but 2 on line 1"),
        ('a/1.png,"x\na/2.png,y\n', "line 2: unexpected end of data; check the quotes"),
        ("a/1.png,x,1\na/2.png,y,2\n", "line 1: 3 columns, but no heading names them"),
        ("file,left,right\na/1.png,1,2\n", "columns file, left, right holds the labels"),
        ("file,class,label\na/1.png,1,2\n", "line 1: which of the columns"),
        ("x\ny\n", "2 labels for 4 images"),
        ("", "the file is empty"),
    ],
)
def test_a_table_that_could_mean_two_things_names_the_line(
    folder: Path, text: str, words: str
) -> None:
    with pytest.raises(ValueError, match=r"labels=.*labels\.csv'.*" + words):
        by_table(folder, text)


def test_a_column_of_a_table_is_asked_for_by_name(folder: Path) -> None:
    text = "file,breed,colour\na/1.png,cat,red\na/2.png,dog,red\na/2.png,dog,red\nb/1.png,,blue\n"
    assert told(by_table(folder, text, label_column="breed")) == ["cat", "dog", None, None]
    images = by_table(folder, text, label_column="colour")
    assert told(images) == ["red", "red", "blue", None]
    assert images.notes["lines that repeat a file and its label"] == 1
    with pytest.raises(ValueError, match="no column 'size'; the columns are file, breed, colour"):
        by_table(folder, text, label_column="size")


def test_a_column_that_nothing_has_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"label_column='x': .*set has no columns"):
        open_images(folder, label_column="x")
    with pytest.raises(ValueError, match=r"image_column='x': .*set has no columns"):
        open_images(folder, image_column="x", labels=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="label_column='x': these labels have no columns"):
        open_images(folder, label_column="x", labels=[0, 1, 0, 1])


# ---- arrays


def test_types_of_labels_that_name_no_classes_are_refused() -> None:
    mixed = [np.array([1, "a"], object), np.array([True, 2], object)]
    for y in (*mixed, [0.5, 1], [float("inf"), 1.0], [[1], [2, 3]], [1j, 0]):
        with pytest.raises(ValueError, match=r"labels: .*(type|mixed|lengths)"):
            encode(y, 2)
    with pytest.raises(ValueError, match="value -2 at position 1"):
        encode([0, -2], 2)


def test_integers_beyond_int64_are_classes_too() -> None:
    label, classes = encode(np.array([2**63 + 5, 7, 2**63 + 5], np.uint64), 3)
    assert label.tolist() == [1, 0, 1] and classes == ("7", "9223372036854775813")


# ---- Parquet


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (pa.array([0, 1, 0, 10]), ["0", "1", "0", "10"]),
        (pa.array([0, 1, 0, 10], pa.uint16()), ["0", "1", "0", "10"]),
        (pa.array([False, True, None, True]), ["False", "True", None, "True"]),
        (pa.array(["b", "a", None, "b"]).dictionary_encode(), ["b", "a", None, "b"]),
        (pa.array(["b", "a", None, "b"], pa.large_string()), ["b", "a", None, "b"]),
        (pa.array(["b", "a", None, "b"]).cast(pa.string_view()), ["b", "a", None, "b"]),
        (pa.array([b"b", b"a", None, b"b"]), ["b", "a", None, "b"]),
        (pa.array([5, 1, None, 5], pa.decimal128(4, 1)), ["5", "1", None, "5"]),
    ],
    ids=lambda x: str(getattr(x, "type", "")),
)
def test_every_type_of_a_label_column(
    tmp_path: Path, label: pa.Array, expected: list[str | None]
) -> None:
    assert told(by_column(tmp_path, label)) == expected


def test_label_columns_that_name_no_classes_are_refused_by_column_and_type(tmp_path: Path) -> None:
    day = datetime.date(2020, 1, 1)
    for label in (pa.array([day] * 4), pa.array([{"x": 1}] * 4), pa.array([0.5] * 4)):
        with pytest.raises(
            ValueError, match=r"x\.parquet: column 'label' .*(date32|struct|double)"
        ):
            by_column(tmp_path, label)
    assert by_column(tmp_path, pa.nulls(4)).label is None


def test_one_of_two_columns_is_asked_for_or_said(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    columns = {"image": CELLS, "label": [0, 0, 1, 1], "class": ["a", "b", "a", "b"]}
    pq.write_table(pa.table(columns), file)
    with pytest.raises(ValueError, match=r"x\.parquet: which of the columns label, class holds"):
        open_images(file)
    assert told(open_images(file, label_column="class")) == ["a", "b", "a", "b"]
    assert told(open_images(file, label_column="label")) == ["0", "0", "1", "1"]
    with pytest.raises(ValueError, match="no column 'kind'; it has image, label, class"):
        open_images(file, label_column="kind")
    two = {"image": CELLS, "img": CELLS[::-1], "label": [0, 0, 1, 1]}
    pq.write_table(pa.table(two), file)
    with pytest.raises(ValueError, match=r"image, img holds the images.*--image-column"):
        open_images(file)
    first = open_images(file, image_column="img").batch(torch.tensor([0]))
    assert torch.equal(first, open_images(file, image_column="image").batch(torch.tensor([3])))
    pq.write_table(pa.table({"image": CELLS, "mask": CELLS, "label": [0, 0, 1, 1]}), file)
    said = "labels from column 'label', images from column 'image'; not read: mask"
    assert open_images(file).notes == {said: 4}


def test_shards_that_differ_or_are_damaged_are_named_with_their_column(tmp_path: Path) -> None:
    def write(name: str, **columns: object) -> Path:
        names = list(columns)
        table = pa.table([pa.array(c) for c in columns.values()], names)
        pq.write_table(table, tmp_path / name, compression="none", use_dictionary=False)
        return tmp_path / name

    write("train-0.parquet", image=CELLS, label=[0, 0, 1, 1])
    write("train-1.parquet", image=CELLS)
    with pytest.raises(ValueError, match=r"train-1\.parquet: no column 'label'"):
        open_images(tmp_path)
    write("train-1.parquet", label=[0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"train-1\.parquet: no column 'image'"):
        open_images(tmp_path)
    write("train-1.parquet", image=CELLS, label=list("abab"))
    with pytest.raises(ValueError, match=r"'label' holds words in .*-1\.parquet and numbers in"):
        open_images(tmp_path)
    twice = pa.Table.from_arrays([pa.array(CELLS), pa.array([0] * 4), pa.array([1] * 4)],
                                 ["image", "label", "label"])  # fmt: skip
    pq.write_table(twice, tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-1\.parquet: 2 columns are called 'label'"):
        open_images(tmp_path)
    for damaged in ("label", "image"):
        file = write("train-1.parquet", image=CELLS, label=[0, 0, 1, 1])
        at = pq.ParquetFile(file).metadata.row_group(0)
        k = [at.column(c).path_in_schema for c in range(2)].index(damaged)
        data = bytearray(file.read_bytes())
        start = at.column(k).data_page_offset
        data[start : start + 12] = b"\xff" * 12
        file.write_bytes(bytes(data))
        with pytest.raises(ValueError, match=rf"train-1\.parquet: column '{damaged}' cannot be r"):
            open_images(tmp_path)


def test_shards_and_images_that_no_split_reads_are_counted(tmp_path: Path) -> None:
    for name in ("train-0", "test-0", "extra"):
        pq.write_table(
            pa.table({"image": CELLS, "label": [0, 0, 1, 1]}), tmp_path / f"{name}.parquet"
        )
    (tmp_path / "1.png").write_bytes(CELLS[0])
    images = open_images(tmp_path)
    assert images.files == [f"train-0.parquet:{row}" for row in range(4)]
    assert images.notes == {
        "rows not read: no split has the name of their shard (extra.parquet)": 4,
        "image files beside the shards, not read": 1,
    }


def test_a_table_beside_images_is_no_set_of_shards(folder: Path) -> None:
    pq.write_table(pa.table({"file": ["a/1.png"], "score": [0.5]}), folder / "scores.parquet")
    images = open_images(folder)
    assert len(images) == 4 and images.notes[".parquet files ignored"] == 1


# ---- several labels for each image


@pytest.mark.parametrize(
    "told_as", ["matrix", "npz", "words", "lists", "list column", "words in a column"]
)
def test_several_labels_are_a_matrix_however_they_are_told(folder: Path, told_as: str) -> None:
    """cat and dog, dog, not told, neither; a word cannot say neither."""
    rows = [["cat", "dog"], ["dog"], None, []]
    matrix = np.array([[1, 1], [0, 1], [np.nan, np.nan], [0, 0]])
    if told_as == "matrix":
        images = open_images(folder, labels=matrix)
    elif told_as == "npz":
        pixels = random.integers(0, 256, (4, 6, 6, 3), np.uint8)
        np.savez(folder.parent / "x.npz", images=pixels, labels=matrix)
        images = open_images(folder.parent / "x.npz")
    elif told_as == "words":
        images = by_table(folder, "file,label\na/1.png,cat|dog\na/2.png,dog\nb/3.png,\n")
    elif told_as == "lists":
        images = open_images(folder, labels=rows)
    elif told_as == "list column":
        images = by_column(folder.parent, pa.array(rows))
    else:
        images = by_column(folder.parent, pa.array(["cat | dog", "dog", None, ""]))
    last = [-1, -1] if told_as in ("words", "words in a column") else [0, 0]
    assert images.labels is not None and images.label is None
    assert images.labels.tolist() == [[1, 1], [0, 1], [-1, -1], last]
    assert images.classes == (("0", "1") if told_as in ("matrix", "npz") else ("cat", "dog"))
    assert images.subset(torch.tensor([1, 0])).labels.tolist() == [[0, 1], [1, 1]]
    other = open_images(folder, labels=1 - np.nan_to_num(matrix))
    assert other.fingerprint != images.fingerprint


def test_the_column_of_a_table_for_train_is_not_asked_of_the_test_split(folder: Path) -> None:
    for name in ("train/1.png", "train/2.png", "test/1.png"):
        path = folder.parent / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    table = folder.parent / "labels.csv"
    table.write_text("file,breed,colour\n1.png,cat,red\n2.png,dog,red\n")
    request = Request(folder.parent / "parts", labels=table, label_column="breed")
    assert told(request.open("train")) == ["cat", "dog"]
    assert request.open("test").label is None
