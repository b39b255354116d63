"""Embedding matrices as files: writing those of a run, reading and diagnosing any."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from contrapose import api
from contrapose.data import ImageSet, evenly
from contrapose.errors import UserError
from contrapose.evaluation import geometry, probes
from contrapose.evaluation.embed import Embedded
from contrapose.explain.diagnosis import LOOKED_AT, most_common, repulsion
from contrapose.explain.findings import as_json
from contrapose.explain.reading import read_embeddings
from contrapose.explain.verdict import verdict_of_embeddings
from contrapose.files import as_json_bytes, check_writable, replace_file, replacing
from contrapose.processes import launched
from contrapose.training.run import Run


def diagnose_embeddings(
    path: Path | str,
    labels: Path | str | None = None,
    out: Path | str | None = None,
    *,
    key: str | None = None,
    label_key: str | None = None,
) -> dict[str, Any]:
    """The diagnosis of a matrix of embeddings [N, D] in a file of any origin.

    path: .npy, .npz, .csv, .tsv or .parquet (see `reading.py`). key, label_key: the array or column
    of the embeddings and of the labels; "file" of the result names those that were read.
    Raises UserError as `read_embeddings` does.
    """
    found = read_embeddings(Path(path), labels, key=key, label_key=label_key)
    x, label, taken = found.x, found.label, found.taken | {"left": list(found.left)}
    length = torch.linalg.vector_norm(x, dim=1)
    unit = torch.nn.functional.normalize(x, dim=1)
    signals: dict[str, Any] = {
        "rows": len(x),
        "width": x.shape[1],
        "length_mean": float(length.mean()),
        "length_spread": float(length.std(correction=0)),
        "zero_rows": int((length < 1e-6).sum()),
        "mean_similarity": float(unit.mean(dim=0).square().sum()),
        "uniformity": geometry.uniformity(x),
        "effective_rank": geometry.effective_rank(x),
        "duplicate_rows": len(x) - len(torch.unique(x, dim=0)),
    }
    if label is not None:
        signals["classes"] = int(torch.unique(label[label >= 0]).numel())
        signals["most_common_class"] = most_common(label) / max(1, int((label >= 0).sum()))
        if most_common(label) > 1:
            signals["tolerance"] = geometry.tolerance(x, label)
        known = label >= 0
        if int(known.sum()) > 1:
            k = min(20, probes.most_neighbours(label, True))
            votes = probes.knn(x, x, label, k=k, leave_one_out=True)
            right = int((votes.argmax(dim=1)[known] == label[known]).sum())
            signals["knn_leave_one_out"] = right / int(known.sum())
    verdict = as_json(verdict_of_embeddings(signals))
    diagnosis = {"verdict": verdict, "signals": signals, "file": taken}
    every = torch.arange(len(x))
    chosen = evenly(len(x), 2 * LOOKED_AT) if len(x) > 2 * LOOKED_AT else every
    diagnosis["repulsion"] = repulsion(x[chosen], every[chosen])
    if out is not None:
        replace_file(Path(out), as_json_bytes(diagnosis))
    return diagnosis


def write_embeddings(
    run: Run, images: Any, out: Path, *, split: str = "train", device: str = "auto",
    recipe: Any = None,
) -> ImageSet:  # fmt: skip
    """Write h, z, label and name of every image to .npz or .parquet; returns the images in order.

    The column `file` is the path below the folder, `shard.parquet:row` or `array[row]`; `index` is
    the position among all images of the source, including those that were left out. Processes of
    torchrun share the images, and the first one writes.
    """

    def check() -> None:
        if out.suffix not in (".npz", ".parquet"):
            raise UserError(f"--out {out}: name a file that ends in .npz or .parquet")
        if out.exists():
            raise FileExistsError(f"--out {out} exists and is left as it is; name another file")
        if not out.parent.is_dir():
            raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}; make it first")
        check_writable(out)

    with launched(device) as me:
        me.first_does(check)
        embedded, source = api.embed(run, images, split=split, device=device, recipe=recipe)
        me.first_does(lambda: _write(out, embedded, source))
    return source


def _write(out: Path, embedded: Embedded, source: ImageSet) -> None:
    label = torch.full((len(source),), -1) if source.label is None else source.label
    columns = {
        "file": np.array(source.files, np.str_), "index": source.index.numpy(),
        "label": label.numpy(),
        "h": embedded.h.numpy(), "z": embedded.z.numpy(),
    }  # fmt: skip
    with replacing(out) as file:
        if out.suffix == ".npz":
            _write_npz(file, {"classes": np.array(source.classes, np.str_)} | columns)
        else:
            write_parquet(file, columns, source.classes)


def _write_npz(file: BinaryIO, arrays: dict[str, NDArray[Any]]) -> None:
    """As `np.savez`, which cannot write an array with the name `file`."""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)


def write_parquet(
    path: Path | BinaryIO, columns: dict[str, NDArray[Any]], classes: Sequence[str]
) -> None:
    """Write one row for each image: vectors as fixed-size lists, class names in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
        if x.ndim == 2
        else pa.array(x)
        for name, x in columns.items()
    }
    table = pa.table(arrays).replace_schema_metadata({"classes": json.dumps(list(classes))})
    pq.write_table(table, path)
