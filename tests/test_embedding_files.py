"""Embeddings from files that others wrote: what is taken, and what is refused in a sentence."""

import io
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command import contrapose

from contrapose.data.labels import read_labels
from contrapose.explain.reading import read_embeddings

X = np.random.default_rng(0).normal(size=(6, 4))
ROWS = X.tolist()
LISTS = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
PETS = ["cat", "dog", "cat", "", "dog", "cat"]
NUMBERED = "".join(f",embedding_{k}" for k in range(4))


def csv_of(delimiter=",", point=".", head=f"filenames{NUMBERED},labels"):
    lines = [
        ",".join([f"{i}.png", *(f"{value:.17g}" for value in row), word])
        for i, (row, word) in enumerate(zip(X, PETS, strict=True))
    ]
    text = "\n".join([head, *lines]) + "\n"
    return text.replace(",", delimiter).replace(".", point)


def npy_of(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(shape):
    """A .npy that says it holds that many numbers, and holds 800 bytes."""
    file = io.BytesIO()
    told = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, told)
    return file.getvalue() + bytes(800)


def zipped(content, name="h.npy"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def written(path, content):
    if isinstance(content, dict) and path.suffix == ".npz":
        np.savez(path, **content)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "name, content, options, taken",
    [
        ("lightly.csv", csv_of(), {}, ("embedding", "labels")),
        ("excel.csv", csv_of(";", ",").encode("utf-16"), {}, ("embedding", "labels")),
        ("tabs.tsv", csv_of("\t"), {"key": "embedding"}, ("embedding", "labels")),
        ("pandas.csv", csv_of(head=",0,1,2,3,class"), {}, ("0 to 3", "class")),
        ("told.csv", csv_of(head="a,b,c,d,e,kind"), {"label_key": "kind"}, ("b to e", "kind")),
        (
            "text.csv",
            "label,features\n" + "".join(f'{w},"{r}"\n' for w, r in zip(PETS, ROWS, strict=True)),
            {},
            ("features", "label"),
        ),
        ("ours.npz", {"h": X, "z": X[:, :2], "label": np.array([0, 1, 0, -1, 1, 0])}, {},
         ("h", "label")),
        ("clip.npz", {"embeddings": X, "target": np.array(PETS)}, {}, ("embeddings", "target")),
        ("parts.npz", {"x_train": X, "y_train": np.array(PETS), "x_test": X[:2],
                       "y_test": np.array(PETS[:2])}, {}, ("x_train", "y_train")),
        ("told.npz", {"a": X[:, :2], "b": X[..., None, None], "kind": np.array(PETS)},
         {"key": "b", "label_key": "kind"}, ("b", "kind")),
        ("lists.parquet", {"h": ROWS, "label": PETS}, {}, ("h", "label")),
        ("fixed.parquet", {"id": range(6), "embedding": LISTS,
                           "y": pa.array(PETS).dictionary_encode()}, {}, ("embedding", "y")),
        ("columns.parquet", {f"f{k}": X[:, k] for k in range(4)} | {"class": PETS}, {},
         ("f", "class")),
        ("savetxt.txt", "# made by NumPy\n" + "\n".join(
            " ".join(f"{v:.17g}" for v in row) for row in X), {}, ("column", None)),
        ("bare.npy", npy_of(X), {}, ("bare", None)),
    ],
)  # fmt: skip
def test_embeddings_and_labels_are_found_or_told(tmp_path, name, content, options, taken):
    found = read_embeddings(written(tmp_path / name, content), **options)
    np.testing.assert_array_equal(found.x.numpy(), X.astype(np.float32))
    assert (found.taken["embeddings"], found.taken.get("labels")) == taken
    if taken[1] is not None:
        assert found.label.tolist() == [0, 1, 0, -1, 1, 0]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("cut.npy", npy_of(X)[:200], "not a whole NumPy file"),
        ("liar.npy", header((10**9, 10**3)), "not a whole NumPy file"),
        ("pickle.npy", pickle.dumps([1.0]), "not a whole NumPy file"),
        ("objects.npy", npy_of(np.array([[1, None]] * 3, object), allow_pickle=True),
         "holds Python objects, which are never unpickled"),
        ("complex.npy", npy_of(X + 1j), "complex128 of shape (6, 4); embeddings are real numbers"),
        ("one.npy", npy_of(X[:1]), "float64 of shape (1, 4)"),
        ("nan.npy", npy_of(np.where(np.arange(6)[:, None] % 2, np.nan, X)),
         "3 of 6 rows hold NaN, infinity or numbers beyond float32 (row 1 is the first"),
        ("far.npy", npy_of(X * 1e300), "6 of 6 rows hold NaN, infinity or numbers beyond float32"),
        ("cut.npz", zipped(npy_of(X))[:100], "not a whole NumPy file"),
        ("liar.npz", zipped(header((10**8, 10))), "'h' is cut short: its header asks for 8,000"),
        ("bomb.npz", zipped(header((10**7, 4))[:-800] + bytes(32 * 10**7)),
         "'h' would take 0.32 GB of memory out of 0.000"),
        ("objects.npz", {"h": X, "label": np.array([None, "a"] * 3, object)},
         "'label' holds Python objects, which are never unpickled"),
        ("lengths.npz", {"h": X, "label": np.arange(5)}, "'label' holds 5 labels for 6 rows"),
        ("targets.npz", {"h": X, "y": X[:, 0]}, "expected whole numbers or strings. --label"),
        ("two.npz", {"a": X, "b": X}, "which array holds the embeddings? Say so with --key"),
        ("none.npz", {"a": np.arange(5)}, "no array of embeddings, which are numbers [N x D]"),
        ("ragged.csv", "e_0,e_1\n1,2\n3,4,5\n6,7\n", ", line 3: 3 columns, but 2 before it"),
        ("gaps.csv", "e_0,e_1\n1,2\n,4\n6,nan\n", "'e': 2 of 3 rows hold NaN"),
        ("words.csv", "name,kind\na,b\nc,d\n", "no column of embeddings"),
        ("twice.csv", "e_0,e_0\n1,2\n3,4\n", "two columns are called 'e_0'"),
        ("binary.csv", bytes(range(256)), "not a text in UTF-8"),
        ("empty.csv", "", "the file is empty"),
        ("short.csv", 'h\n"[0.1 ... 0.2]"\n"[0.3 ... 0.4]"\n', "a list holds what is no number"),
        ("cut.parquet", b"PAR1" + bytes(100), "not a whole Parquet file"),
        ("ragged.parquet", {"h": [*ROWS[:3], ROWS[3][:2], *ROWS[4:]]},
         "column 'h': lists of different lengths, 4 in row 0 and 2 in row 3"),
        ("null.parquet", {"h": [None, *ROWS[1:]]}, "column 'h': 1 of 6 rows are null"),
        ("words.parquet", {"h": [["a", "b"]] * 3}, "column 'h' holds lists of string"),
        ("bomb.parquet", {"h": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * 10**7)), 4)},
         "column 'h' would take 0.32 GB of memory out of 0.000"),
        ("pickled.pkl", pickle.dumps(X), "embeddings are read from .npy, .npz, .csv"),
    ],
)  # fmt: skip
def test_a_damaged_or_hostile_file_is_refused_in_one_sentence(tmp_path, name, content, said):
    path = written(tmp_path / name, content)
    with pytest.raises((ValueError, OSError)) as error:
        read_embeddings(path)
    assert str(error.value).startswith(str(path)) and said in str(error.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (npy_of(np.arange(6))[:100], "not a whole NumPy file"),
        (npy_of(np.array(["a", None], object), allow_pickle=True), "Python objects"),
        (pickle.dumps([1]), "not a whole NumPy file"),
        (zipped(npy_of(X)), "it is an .npz archive"),
        (npy_of(X), r"shape \[6, 4\]; expected one label for each"),
        (npy_of(np.arange(5)), "5 labels for 6 images"),
        (npy_of(np.arange(6) + 1j), "values of type complex128"),
    ],
)
def test_a_label_file_that_cannot_be_read_is_named(tmp_path, content, said):
    path = written(tmp_path / "y.npy", content)
    with pytest.raises(ValueError, match=rf"labels='.*y\.npy'.*{said}"):
        read_labels(path, [str(i) for i in range(6)])


def test_labels_of_another_file_may_name_the_files_of_a_table(tmp_path):
    path = written(tmp_path / "x.csv", csv_of())
    lines = [f"{i}.png,{'odd' if i % 2 else 'even'}" for i in reversed(range(6))]
    labels = written(tmp_path / "y.csv", "file,label\n" + "\n".join(lines))
    assert read_embeddings(path, labels).label.tolist() == [0, 1, 0, 1, 0, 1]


def test_what_was_taken_is_said_and_what_fails_is_one_message(tmp_path):
    written(tmp_path / "x.npz", {"h": X, "z": X, "label": np.array(PETS)})
    done = contrapose("diagnose", "x.npz", "--label-column", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "embeddings: h, not z (--key NAME chooses)\nlabels: none" in done.stdout
    lost = contrapose("diagnose", "x.npz", "--key", "w", cwd=tmp_path)
    assert lost.returncode == 2 and lost.stderr.count("\n") == 1
    assert "x.npz: --key w: no such array; it has h ([6 x 4]), z" in lost.stderr


def test_the_names_of_classes_beside_labels_are_no_labels(tmp_path):
    names = np.array(["cat", "dog"])
    np.savez(tmp_path / "e.npz", h=X, label=[0, 1, 0, -1, 1, 0], classes=names)
    assert read_embeddings(tmp_path / "e.npz").label.tolist() == [0, 1, 0, -1, 1, 0]
