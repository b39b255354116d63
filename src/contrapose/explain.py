"""What a run, or a matrix of embeddings, has learned: scores, signals, the verdict, pictures.

Everything lands in the run folder as evaluation.json, diagnosis.json and pictures.npz, from which
the report is made.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose import api, pictures, recipes
from contrapose.augment import center
from contrapose.data import ImageSet, evenly, exact_duplicates
from contrapose.data.composed import features_of
from contrapose.data.labels import read_labels
from contrapose.encoders import Encoder
from contrapose.evaluation import geometry, probes, scores
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.evaluation.embed import embed_views as views_embedded
from contrapose.evaluation.features import probes_of_features
from contrapose.evaluation.penalties import penalties
from contrapose.evaluation.scores import Score
from contrapose.evaluation.sgd_probe import PROTOCOLS, sgd_probe
from contrapose.evaluation.suppression import Suppression, suppression
from contrapose.keys.contrast import InBatch
from contrapose.losses import supcon
from contrapose.machine import choose_device
from contrapose.partials import unknown
from contrapose.training.recipe import Recipe, recipe_from
from contrapose.training.run import Run, as_json_bytes, replace_file
from contrapose.training.signals import heat
from contrapose.verdict import as_json, verdict, verdict_of_embeddings

TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)  # at which the repulsion between rows is shown
CONTROL = 0.1  # temperature of the SupCon that teaches a control
LOOKED_AT = 2000  # images whose geometry, neighbours and map are shown
PIXELS_FROM = 10_000  # training images of the control that reads raw pixels
PIXEL_SIDE = 16  # px, side to which that control shrinks colour images (grey ones: 28)


@dataclass(frozen=True)
class Subject:
    """A run with its encoder and images, opened once for whatever is asked of it."""

    run: Run
    recipe: Recipe
    encoder: Encoder
    train: ImageSet
    test: ImageSet
    split: str
    device: str

    @classmethod
    def open(
        cls,
        run: "Subject | Run | Path | str",
        images: Any = None,
        device: str = "auto",
        recipe: Any = None,
    ) -> "Subject":
        """The subject of a run; one that is open already stays as it is."""
        if isinstance(run, Subject):
            return run
        run = run if isinstance(run, Run) else Run.open(run)
        own = None if recipe is None else recipes.module(recipe)
        encoder = Encoder.load(run.path, own)
        train, test, split = api.train_and_test(run, images)
        chosen = recipe_from(run.read("recipe.json")["recipe"], own)
        return cls(run, chosen, encoder, train, test, split, choose_device(device))

    def embed(self, images: ImageSet) -> Embedded:
        return embed_images(self.encoder, images, size=self.recipe.size, device=self.device)


def suppression_of(
    run: Subject | Run | Path | str,
    *,
    features: Sequence[str] | None = None,
    images: Any = None,
    device: str = "auto",
    recipe: Any = None,
) -> dict[str, Suppression]:
    """{feature: how much of it the run keeps one from reading}, against controls trained for it.

    features: of those that the images have, by default all; a plain set's label is `image`. The
    control of a feature is the run's recipe with SupCon on that feature's labels in place of its
    loss: the same network, views, optimiser and steps. Controls lie in RUN/controls and are trained
    once; the other control is the network before training. Writes suppression.json into the run.
    Cost: a training for each feature. Raises ValueError for features that the images do not have.
    """
    subject = Subject.open(run, images, device, recipe)
    label = features_of(subject.train)
    names = list(label) if features is None else list(features)
    for name in names:
        if name not in label:
            raise ValueError(f"{subject.train.name} has no feature {unknown(name, label)}")
    if not names:
        raise ValueError(f"{subject.train.name} has no labels, so nothing is known to suppress")
    taught = replace(
        subject.recipe, loss=partial(supcon, temperature=CONTROL), positives="class", keys=None,
        batches=None, number_of_views=max(2, subject.recipe.number_of_views),
    )  # fmt: skip
    controls = {}
    for name in names:
        labelled_so = replace(
            subject.train, label=label[name],
            classes=tuple(map(str, range(int(label[name].max()) + 1))),
            fingerprint=f"{subject.train.fingerprint}-{name}",
        )  # fmt: skip
        folder = subject.run.path / "controls" / "-".join(name.split())
        controls[name] = api.encoder_in(folder, taught, labelled_so, subject.device).to(
            subject.device
        )
    found = suppression(
        subject.encoder, subject.train, subject.test, supervised=controls,
        untrained=api.build(subject.recipe, subject.train).to(subject.device),
        size=subject.recipe.size, device=subject.device, seed=subject.recipe.seed,
    )  # fmt: skip
    written = {n: asdict(s) | {"score": s.score, "error": s.error} for n, s in found.items()}
    replace_file(subject.run.path / "suppression.json", as_json_bytes(written))
    return found


def evaluate(
    run: Subject | Run | Path | str,
    images: Any = None,
    *,
    protocol: str | None = None,
    device: str = "auto",
    recipe: Any = None,
) -> list[Score]:
    """Scores of the run's encoder with labels: kNN and linear probes, a pixel control beside them.

    images: another set to evaluate on than the run's own. protocol: one of PROTOCOLS, whose linear
    probe by gradient descent is measured besides. Writes evaluation.json and the confusion matrix;
    without labels the list is empty.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"--protocol {protocol}: there is no {unknown(protocol, PROTOCOLS)}")
    subject = Subject.open(run, images, device, recipe)
    train, test, split = labelled(subject.train), labelled(subject.test), subject.split
    found: list[Score] = []
    if train is not None and test is not None:
        test, lost = of_known_classes(test, train)
        split += f", {lost:,} images of classes without a training image left out" if lost else ""
    if train is not None and test is not None:
        of_train, of_test = subject.embed(train), subject.embed(test)
        seed = subject.recipe.seed
        found, named = _score(of_train, of_test, train, test, split, seed)
        classes = len(train.classes)
        assert train.label is not None and test.label is not None
        if protocol is not None:
            by = sgd_probe(of_train.h, train.label, PROTOCOLS[protocol], seed=seed)
            metric = f"linear probe accuracy ({PROTOCOLS[protocol].name}'s SGD)"
            found.append(
                scores.accuracy(
                    by.scores(of_test.h), test.label, metric=metric, protocol=by.protocol,
                    split=split, seed=seed, features="h",
                )
            )  # fmt: skip
        pictures.add(
            subject.run,
            classes=np.array(train.classes, dtype=np.str_),
            confusion=scores.confusion(named, test.label, classes).numpy(),
            confusion_of=np.array(f"linear probe on h, {split}, {len(test):,} images"),
        )
    if subject.train.features:
        found += probes_of_features(
            subject.encoder, spread(subject.train, PIXELS_FROM), subject.test,
            size=subject.recipe.size, device=subject.device, seed=subject.recipe.seed,
            split=subject.split,
        ).values()  # fmt: skip
    subject.run.write("evaluation.json", [asdict(score) for score in found])
    return found


def diagnose(
    run: Subject | Run | Path | str,
    images: Any = None,
    *,
    device: str = "auto",
    recipe: Any = None,
) -> dict[str, Any]:
    """{"verdict": findings, "signals": numbers} of the run, most of it without labels.

    Looks at up to LOOKED_AT test (or held-out) images and two views of each. Writes diagnosis.json
    and pictures.npz.
    """
    subject = Subject.open(run, images, device, recipe)
    shown = spread(subject.test, LOOKED_AT)
    embedded = subject.embed(shown)
    z, group = embed_views(subject, shown)
    signals = signals_of_run(subject, embedded, z, group, shown.label)
    path = subject.run.path
    read = subject.run.read
    scored = read("evaluation.json") if (path / "evaluation.json").exists() else []
    status = read("status.json") if (path / "status.json").exists() else None
    width = embedded.h.shape[1]
    findings = verdict(subject.run.metrics(), scored, status=status, width=width)
    found = {"verdict": as_json(findings), "signals": signals}
    found["repulsion"] = repulsion(z, group, also=signals.get("temperature"))
    subject.run.write("diagnosis.json", found)
    pictures.add(subject.run, **pictures.of_run(subject.recipe, shown, embedded, z, group))
    return found


def signals_of_run(
    subject: Subject,
    embedded: Embedded,
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    label: Int[Tensor, " B"] | None,
) -> dict[str, Any]:
    """The numbers of a diagnosis, each of held-out images."""
    signals: dict[str, Any] = {
        "images": len(embedded.h),
        "split": subject.split,
        "alignment": geometry.alignment(z, group),
        "uniformity": geometry.uniformity(embedded.z),
        "contrastive_accuracy": geometry.contrastive_accuracy(z, group),
        "effective_rank_h": geometry.effective_rank(embedded.h),
        "effective_rank_z": geometry.effective_rank(embedded.z),
        **heat(subject.recipe, z, InBatch(group, group)),
        "width_h": embedded.h.shape[1],
        "width_z": embedded.z.shape[1],
    }
    if subject.train.in_memory:  # else every image would be decoded for it
        signals["duplicate_images"] = duplicates(subject.train)
    if label is not None and most_common(label) > 1:
        signals["tolerance"] = geometry.tolerance(embedded.z, label)
    return signals


def repulsion(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], also: float | None = None
) -> list[dict[str, float]]:
    """At each temperature, `also` among them: how many negatives share the repulsion, and which.

    Effective negatives, the entropy of their shares (nats) and its slope by the temperature, and
    the similarity above which 90 % of the repulsion lies (`evaluation.penalties`).
    """
    temperatures = sorted({*TEMPERATURES, *([] if also is None else [also])})
    return [
        {
            "temperature": p.temperature,
            "effective_negatives": p.perplexity,
            "entropy": p.entropy,
            "slope": p.slope,
            "from_similarity": p.interval[0],
        }
        for p in penalties(z, group, temperatures=temperatures)
    ]


def diagnose_embeddings(
    path: Path | str, labels: Path | str | None = None, out: Path | str | None = None
) -> dict[str, Any]:
    """The same for a matrix of embeddings [N D] that came from anywhere (.npy, or .npz from embed).

    Raises ValueError for another shape, numbers that are not finite, or labels of another length.
    """
    x, label = read_embeddings(Path(path), labels)
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
    found = {"verdict": as_json(verdict_of_embeddings(signals)), "signals": signals}
    every = torch.arange(len(x))
    chosen = evenly(len(x), 2 * LOOKED_AT) if len(x) > 2 * LOOKED_AT else every
    found["repulsion"] = repulsion(x[chosen], every[chosen])
    if out is not None:
        replace_file(Path(out), as_json_bytes(found))
    return found


def write_embeddings(
    run: Run, images: Any, out: Path, *, split: str = "train", device: str = "auto",
    recipe: Any = None,
) -> int:  # fmt: skip
    """h, z, label and index of every image to .npz or .parquet; how many there were."""
    if out.suffix not in (".npz", ".parquet"):
        raise ValueError(f"--out {out}: name a file that ends in .npz or .parquet")
    if out.exists():
        raise FileExistsError(f"--out {out} exists and is left as it is; name another file")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}; make it first")
    embedded, source = api.embed(run, images, split=split, device=device, recipe=recipe)
    label = torch.full((len(source),), -1) if source.label is None else source.label
    columns = {
        "index": np.arange(len(source)), "label": label.numpy(),
        "h": embedded.h.numpy(), "z": embedded.z.numpy(),
    }  # fmt: skip
    beside = out.with_name(f".{out.name}.new{out.suffix}")
    try:
        if out.suffix == ".npz":
            np.savez(beside, classes=np.array(source.classes, dtype=np.str_), **columns)  # type: ignore[arg-type]
        else:
            pictures.write_parquet(beside, columns, source.classes)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return len(source)


def read_embeddings(path: Path, labels: Path | str | None) -> tuple[Tensor, Tensor | None]:
    """(rows [N D] in float32, labels or None) of a .npy, or of what `contrapose embed` wrote."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    x, label = pictures.read_parquet(path) if path.suffix == ".parquet" else _read_numpy(path)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or min(x.shape) < 1 or len(x) < 2:
        raise ValueError(
            f"{path} holds {x.dtype} of shape {x.shape}; embeddings are numbers [N D], N > 1"
        )
    bad = int((~np.isfinite(x).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{path}: {bad} of {len(x)} rows hold NaN or infinity; remove them")
    rows = torch.from_numpy(x.astype(np.float32))
    given = labels if labels is not None else label
    if given is None:
        return rows, None
    number, _, _ = read_labels(given, [str(i) for i in range(len(x))])
    return rows, None if bool((number < 0).all()) else number


def _read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a NumPy file of numbers ({error})") from None
    if isinstance(loaded, np.ndarray):
        return loaded, None
    name = next((n for n in ("h", "z") if n in loaded), None)
    if name is None:
        keys = ", ".join(loaded.files)
        raise ValueError(f"{path} holds {keys}; expected h or z, as `contrapose embed` writes")
    return loaded[name], loaded["label"] if "label" in loaded else None


def embed_views(
    subject: Subject, images: ImageSet
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """z of the recipe's views of each image, and which image each row shows."""
    recipe, device = subject.recipe, subject.device
    return views_embedded(subject.encoder, images, recipe.policy, seed=recipe.seed, device=device)


def labelled(images: ImageSet) -> ImageSet | None:
    """The images that have a label; None where fewer than two classes are left."""
    if images.label is None:
        return None
    known = torch.nonzero(images.label >= 0).flatten()
    if len(torch.unique(images.label[known])) < 2:
        return None
    return images if len(known) == len(images) else images.subset(known)


def of_known_classes(test: ImageSet, train: ImageSet) -> tuple[ImageSet | None, int]:
    """Test images whose class has a training image, None without any; and how many have not."""
    assert test.label is not None and train.label is not None
    known = torch.nonzero(torch.isin(test.label, train.label)).flatten()
    if len(known) == len(test):
        return test, 0
    return test.subset(known) if len(known) else None, len(test) - len(known)


def spread(images: ImageSet, n: int) -> ImageSet:
    """At most n of the images, evenly from the first to the last."""
    return images if len(images) <= n else images.subset(evenly(len(images), n))


def duplicates(images: ImageSet) -> int:
    """How many images repeat an earlier one exactly; they would be each other's negatives."""
    return sum(len(group) - 1 for group in exact_duplicates(images))


def most_common(label: Int[Tensor, " N"]) -> int:
    known = label[label >= 0]
    return int(torch.bincount(known).max()) if len(known) else 0


def _score(
    of_train: Embedded, of_test: Embedded, train: ImageSet, test: ImageSet, split: str, seed: int
) -> tuple[list[Score], Int[Tensor, " N"]]:
    """The scores, and the classes that the linear probe on h names."""
    label, test_label = train.label, test.label
    assert label is not None and test_label is not None
    few = spread(train, PIXELS_FROM)
    assert few.label is not None
    k = min(200, max(5, len(train) // 50), len(train) - 1)  # 200 from 10,000 images on
    vote = f"{k} nearest of {len(train):,} training images vote exp(similarity / 0.1)"
    plain, learned = _probe(pixels(few), few.label, seed), _probe(of_train.h, label, seed)
    shrunk = f"; control on raw pixels, {few.shown} x {_side(few)} x {_side(few)}"
    votes = learned.scores(of_test.h)
    rows: list[tuple[Tensor, str, str, scores.Features, str]] = [
        (votes, "linear probe accuracy", learned.protocol, "h", learned.chosen),
        (probes.knn(of_test.h, of_train.h, label, k=k), "kNN accuracy", vote, "h", ""),
        (probes.knn(of_test.z, of_train.z, label, k=k), "kNN accuracy", vote, "z", ""),
        (
            plain.scores(pixels(test)),
            "linear probe accuracy",
            plain.protocol + shrunk,
            "pixels",
            plain.chosen,
        ),
        (_always(label, test_label), "most common class accuracy", "no features", "none", ""),
    ]
    found = [
        scores.accuracy(
            value, test_label, metric=metric, protocol=protocol, split=split, seed=seed,
            features=features, chosen=chosen,
        )
        for value, metric, protocol, features, chosen in rows
    ]  # fmt: skip
    return found, votes.argmax(dim=1)


def _always(label: Int[Tensor, " N"], test_label: Int[Tensor, " M"]) -> Float[Tensor, "M C"]:
    """Scores that name the most common training class, whatever the image."""
    return torch.bincount(label).double().expand(len(test_label), -1)


def _probe(x: Tensor, label: Tensor, seed: int) -> probes.LinearProbe:
    """A linear probe; with a class of a single image nothing can be held out to choose l2."""
    single = int(torch.unique(label, return_counts=True)[1].min()) < 2
    return probes.linear_probe(x, label, seed=seed, l2=1.0 if single else probes.DECADES)


def pixels(images: ImageSet) -> Float[Tensor, "N P"]:
    """Raw pixels as features: what a classifier reads without any encoder."""
    side = _side(images)
    parts: Sequence[Tensor] = [
        center(images.batch(index)[:, : images.shown], side).flatten(1).cpu()
        for index in torch.split(torch.arange(len(images)), 1024)
    ]
    return torch.cat(list(parts))


def _side(images: ImageSet) -> int:
    return min(images.size, 28 if images.shown == 1 else PIXEL_SIDE)
