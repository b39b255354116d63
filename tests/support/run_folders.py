"""Small run folders for the report's tests: what training and evaluation write, with digits."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

DIGITS = tuple(f"{i}" for i in range(10))


def write_run(
    folder: Path,
    *,
    classes: Sequence[str] = DIGITS,
    labelled: bool = True,
    temperature: float = 0.5,
    seed: int = 0,
    points: int = 400,
    state: str = "finished",
    reason: str | None = None,
) -> Path:
    """A complete run of 20 epochs; `labelled=False` leaves out all that needs labels."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(classes) if labelled else []
    data = {
        "name": "digits",
        "split": "train",
        "images": 1437,
        "classes": names,
        "fingerprint": "1f3c9a",
    }
    data["skipped"] = [{"path": "broken/0001.png", "reason": "truncated file"}]
    recipe = {
        "loss": {"call": "contrapose.losses.nt_xent", "temperature": temperature},
        "policy": {
            "call": "contrapose.augment.digits",
            "size": 8,
            "crop": {"low": 0.6, "high": 1.0},
        },
        "encoder": {
            "call": "contrapose.encoders.small_conv",
            "width": 64,
            "head": {"layers": [64, 64], "norm": True},
        },
        "optimiser": {"call": "contrapose.training.adamw", "lr": 0.002, "weight_decay": 1e-4},
        "epochs": 20,
        "batch_size": 128,
        "seed": seed,
    }
    command = f"contrapose train digits --temperature {temperature} --epochs 20 --seed {seed}"
    _json(
        folder / "recipe.json",
        {"format": 1, "contrapose": "0.1.0", "data": data, "recipe": recipe, "command": command},
    )
    _json(
        folder / "environment.json",
        {
            "python": "3.11.7",
            "torch": "2.15.0",
            "contrapose": "0.1.0",
            "platform": "Linux x86_64",
            "cpu": "2 cores",
            "threads": 2,
            "device": "cpu",
            "precision": "fp32",
            "commit": "1f6725c",
            "started": "2026-01-05T10:12:00+00:00",
        },
    )
    epoch = 20.0 if state == "finished" else 12.0
    _json(
        folder / "status.json",
        {
            "state": state,
            "epoch": epoch,
            "epochs": 20,
            "step": int(11 * epoch),
            "steps": 220,
            "seconds": 64.2,
            "images_per_second": 1490.0,
            "reason": reason,
        },
    )
    rows = metrics(labelled=labelled, temperature=temperature, seed=seed, steps=int(11 * epoch))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _json(folder / "evaluation.json", _scores(seed) if labelled else [])
    _json(folder / "diagnosis.json", _diagnosis(rows[-1]))
    _json(folder / "views.json", _views())
    np.savez(
        folder / "pictures.npz", **pictures(classes, labelled=labelled, seed=seed, points=points)
    )
    return folder


def metrics(*, labelled: bool, temperature: float, seed: int, steps: int) -> list[dict[str, Any]]:
    """Curves of the shape that SimCLR gives on small sets: fast at first, then slow, with noise."""
    random = np.random.default_rng(seed)
    rows = []
    for step in range(1, steps + 1):
        t = 1 - math.exp(-step / (45 + 60 * temperature))
        noise = random.normal(scale=0.02, size=6)
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / 11,
            "seconds": 0.29 * step,
            "loss": 5.54 - (1.1 + 1.2 * (1 - temperature)) * t + noise[0],
            "loss_at_chance": math.log(2 * 128 - 1),
            "lr": 0.002 * 0.5 * (1 + math.cos(math.pi * step / 220)) * min(1, step / 22),
            "gradient_norm": 1.8 * math.exp(-3 * t) + 0.25 + abs(noise[1]),
            "contrastive_accuracy": min(0.99, 0.02 + 0.82 * t + noise[2]),
            "alignment": 0.25 + 0.9 * (1 - t) * t + 0.1 * noise[3],
            "uniformity": -0.3 - (3.4 - 1.2 * temperature) * t + noise[4],
            "effective_rank_h": 4 + 26 * t + noise[5],
            "effective_rank_z": 3 + 15 * t,
            "effective_negatives": 254 - 180 * (1 - temperature) * t,
        }
        if labelled:
            row["tolerance"] = 0.85 - (0.55 - 0.4 * temperature) * t
            if step % 11 == 0:
                row["knn"] = 0.55 + 0.41 * t
        rows.append(row)
    return rows


def pictures(
    classes: Sequence[str], *, labelled: bool, seed: int, points: int
) -> dict[str, np.ndarray]:
    """Real digits, embedded by their principal components: near enough to an encoder for a page."""
    digits = load_digits()
    random = np.random.default_rng(seed)
    images = (digits.images * 15.9).astype(np.uint8)[..., None]
    label = digits.target % len(classes)
    z = PCA(12, random_state=0).fit_transform(digits.data)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    chosen = random.permutation(len(images))[:points]
    xy = PCA(2, random_state=0).fit_transform(z) + 0.02 * random.normal(size=(len(z), 2))
    similarity = z[chosen] @ z[chosen].T
    np.fill_diagonal(similarity, -2)
    queries = np.arange(12)
    near = np.argsort(-similarity[queries], axis=1)[:, :8]
    edges = np.linspace(-1, 1, 61, dtype=np.float32)
    same = label[chosen][:, None] == label[chosen][None]
    positive = np.clip(random.normal(0.86, 0.08, 4000), -1, 1)
    rows = []
    for i in chosen[:12]:
        crops = [
            np.roll(images[i], (random.integers(-1, 2), random.integers(-1, 2)), (0, 1))
            for _ in range(4)
        ]
        rows.append(np.stack([images[i], *crops]))
    arrays = {
        "views": np.stack(rows),
        "map_xy": xy[chosen].astype(np.float32),
        "map_label": label[chosen] if labelled else np.full(points, -1),
        "map_thumb": images[chosen],
        "map_index": chosen,
        "map_method": np.array(f"PCA of z, {points} test images, seed {seed}"),
        "neighbour_query": images[chosen[queries]],
        "neighbour_image": images[chosen[near]],
        "neighbour_similarity": np.take_along_axis(similarity[queries], near, 1).astype(np.float32),
        "crop_image": images[chosen[:6]],
        "crop_boxes": np.tile(np.float32([[[0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]]), (6, 1, 1)),
        "crop_kind": np.array(["global-local"] * 2 + ["adjacent"] * 2 + ["overlapping"] * 2),
        "crop_of": images[chosen[:2]],
        "crop_histogram": random.dirichlet(np.ones(16), (2, 2, 4)).astype(np.float32),
        "similarity_edges": edges,
        "similarity_positive": np.histogram(positive, edges)[0],
        "similarity_negative": np.histogram(similarity[~same], edges)[0],
    }
    if labelled:
        counts = np.diag(random.integers(30, 37, len(classes))) + random.poisson(
            0.35, (len(classes),) * 2
        )
        arrays |= {
            "classes": np.array(classes),
            "neighbour_query_label": label[chosen[queries]],
            "neighbour_label": label[chosen[near]],
            "similarity_same_class": np.histogram(similarity[same], edges)[0],
            "confusion": counts,
            "confusion_of": np.array("linear probe on h, test split, 360 images"),
        }
    return arrays


def _views() -> dict[str, Any]:
    found = {"metric": "source image from an intensity histogram, accuracy", "n": 1000, "seed": 0}
    found |= {"protocol": "nearest", "split": "train", "features": "pixels", "confidence": 0.95}
    return {
        "format": 1,
        "share": {
            "global-local": [0.316, 0.296, 0.337],
            "adjacent": [0.025, 0.019, 0.032],
            "overlapping": [0.659, 0.638, 0.679],
        },
        "pairs": 2000, "overlap": 0.41, "area": 0.49, "chance": 0.001, "crops": 4,
        "seen": found | {"value": 0.049, "low": 0.037, "high": 0.064},
        "undistorted": found | {"value": 0.582, "low": 0.551, "high": 0.612},
    }  # fmt: skip


def _scores(seed: int) -> list[dict[str, Any]]:
    shared = {"confidence": 0.95, "n": 360, "split": "test", "seed": seed}
    linear = {"metric": "linear probe accuracy", "value": 0.967, "low": 0.943, "high": 0.981}
    knn = {"metric": "kNN accuracy", "value": 0.978, "low": 0.957, "high": 0.989}
    on_z = {"metric": "kNN accuracy", "value": 0.942, "low": 0.913, "high": 0.962}
    spread = {"metric": "uniformity", "value": -3.412, "low": -3.46, "high": -3.36}
    vote = "20 neighbours, vote weighted by exp(s / 0.07)"
    return [
        linear | shared | {"protocol": "L-BFGS on cached features, 9 penalties", "features": "h"},
        knn | shared | {"protocol": vote, "features": "h"},
        on_z | shared | {"protocol": vote, "features": "z"},
        spread | shared | {"protocol": "all pairs, t = 2", "features": "z"},
    ]


def _diagnosis(last: Mapping[str, Any]) -> dict[str, Any]:
    verdict = [
        {
            "state": "learning",
            "level": "good",
            "sentence": "It tells images apart far better than chance; many directions are used.",
            "evidence": f"loss {last['loss']:.2f} against chance 5.54; rank of h 29 of 64",
        },
        {
            "state": "still improving",
            "level": "info",
            "sentence": "Neighbour accuracy still rose at the end; more epochs may help.",
            "evidence": "kNN 94.1 % at epoch 15, 95.4 % at epoch 20",
        },
        {
            "state": "shortcut suspected",
            "level": "warn",
            "sentence": "Views of one image are matched almost perfectly while its class is not.",
            "evidence": "contrastive accuracy 84 %, tolerance 0.42",
        },
    ]
    return {
        "verdict": verdict,
        "signals": {k: v for k, v in last.items() if k not in ("seconds", "step")},
    }


def _json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value))
