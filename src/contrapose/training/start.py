"""The initial weights of a run: drawn, of another run, of a file, or published ones.

The backbone must fit. Head and classifier are used if they fit, and drawn otherwise. recipe.json
records which parts were used, and the fingerprint of the file.
"""

import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from contrapose.encoders import Encoder, read_weights
from contrapose.errors import UserError
from contrapose.partials import describe

PUBLISHED = "pretrained"  # as a start: the weights that go with the network's name
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what torchvision's weights expect
UNCOUNTED = "num_batches_tracked"  # of batch norm; older files lack it, and nothing rests on it
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Weights to start from, by their names in the file."""

    name: str  # as it was asked for
    weights: Weights
    sha256: str
    architecture: dict[str, Any] | None = None  # None: of a file that another library wrote
    whitening: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # (mean, std), if known


@dataclass(frozen=True)
class Start:
    """The record in recipe.json of which weights an encoder took from a source."""

    source: str
    sha256: str
    taken: list[str]  # parts
    drawn: list[str]  # parts whose weights stay as they were drawn
    unused: int  # weights of the source that have no place in the encoder


def source_of(start: str, backbone: Callable[..., Any]) -> Source:
    """The weights that `start` names: of a run folder, of a file, or PUBLISHED for this backbone.

    Raises FileNotFoundError, or UserError for what cannot be read.
    """
    if start == PUBLISHED:
        return _published(backbone)
    path = Path(start)
    if not path.exists():
        raise FileNotFoundError(f"--start {start}: there is no such run folder or file")
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"--start {start} is neither a run folder nor a file")
    weights: Weights
    written, file = None, path
    try:
        if path.is_dir() or path.suffix == ".safetensors":
            weights, metadata, file = read_weights(path)
            written = json.loads(metadata.get("encoder", "null"))
        else:
            weights = _of_pickle(path)
    except (UserError, safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"--start {start} cannot be read: {error}") from error
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    known = isinstance(written, dict) and "backbone" in written
    return Source(start, weights, digest, written if known else None)


def begin_from(encoder: Encoder, source: Source) -> Start:
    """Set the encoder's weights, mean and std to those of the source, as far as they fit.

    Raises UserError, with the first weight that does not fit, if the backbone does not.
    """
    own = source.architecture is not None
    prefix = "backbone." if own else _prefix(encoder.backbone, source.weights)
    problem = _misfit(encoder.backbone, source.weights, prefix)
    if problem:
        there = describe(source.architecture["backbone"]) if source.architecture else None
        hint = f"; its network is {there}" if there else "; name its network with --encoder"
        raise UserError(f"--start {source.name} does not fit this encoder: {problem}{hint}")
    used = _take(encoder.backbone, source.weights, prefix)
    taken, drawn = ["backbone"], list[str]()
    for name in ("head", "classifier"):
        part: torch.nn.Module | None = getattr(encoder, name)
        if part is None or not part.state_dict():
            continue
        fits = own and not _misfit(part, source.weights, f"{name}.")
        if name == "classifier" and fits:
            assert source.architecture is not None
            fits = tuple(source.architecture.get("classes", ())) == encoder.classes
        if fits:
            used |= _take(part, source.weights, f"{name}.")
        (taken if fits else drawn).append(name)
    whitening = source.whitening
    if own:
        whitening = tuple(tuple(source.weights[n].tolist()) for n in ("mean", "std"))  # type: ignore[assignment]
    if whitening is not None and len(whitening[0]) == encoder.channels:
        for name, value in zip(("mean", "std"), whitening, strict=True):
            getattr(encoder, name).copy_(torch.tensor(value))
            used |= {name} & source.weights.keys()
    unused = len(source.weights.keys() - used)
    return Start(source.name, source.sha256, taken, drawn, unused)


def _take(part: torch.nn.Module, weights: Weights, prefix: str) -> set[str]:
    """Set the weights of a part to those of the file; returns their names in the file."""
    there = {n: f"{prefix}{n}" for n in part.state_dict() if f"{prefix}{n}" in weights}
    part.load_state_dict({name: weights[other] for name, other in there.items()}, strict=False)
    return {*there.values()}


def _misfit(part: torch.nn.Module, weights: Weights, prefix: str) -> str:
    """The first weight of the part that the file lacks or has in another shape; "" if it fits."""
    for name, value in part.state_dict().items():
        found = weights.get(f"{prefix}{name}")
        if found is None and name.endswith(UNCOUNTED):
            continue
        if found is None:
            return f"it has no {prefix}{name}"
        if found.shape != value.shape:
            return f"{prefix}{name} is {list(found.shape)} there and {list(value.shape)} here"
    return ""


def _prefix(part: torch.nn.Module, weights: Weights) -> str:
    """The prefix of the backbone's weights in a file of another library, as `module.encoder_q.`.

    It is the prefix with which most weights are found in the right shape.
    """
    own = part.state_dict()
    before = {""} | {
        ".".join(name.split(".")[:depth]) + "." for name in weights for depth in (1, 2, 3)
    }

    def fitting(prefix: str) -> int:
        found = (weights.get(f"{prefix}{name}") for name in own)
        same = zip(found, own.values(), strict=True)
        return sum(f is not None and f.shape == value.shape for f, value in same)

    return max(sorted(before), key=fitting)


def _of_pickle(path: Path) -> Weights:
    """The tensors of a .pt or .pth file, read without executing code.

    If the file has more than weights, they are those under `state_dict` or `model`.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file makes the reader raise anything
        what = str(error).strip().partition("\n")[0]
        raise UserError(f"it holds no plain weights ({what})") from error
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise UserError(f"it holds a {type(found).__name__}, not weights by name")
    return {str(name): x for name, x in found.items() if isinstance(x, Tensor)}


def _published(backbone: Callable[..., Any]) -> Source:
    """Published weights, from the local cache of timm or torch, or from the network."""
    function = getattr(backbone, "func", backbone)
    keywords = getattr(backbone, "keywords", {})
    name = keywords.get("name") if function.__name__ == "timm" else function.__name__
    with warnings.catch_warnings(action="ignore"):
        if function.__name__ == "timm":
            weights, whitening = _of_timm(f"timm:{name}", backbone, keywords)
        else:
            weights, whitening = _of_torchvision(str(name), keywords)
    parts = (x.detach().cpu().contiguous().flatten().view(torch.uint8) for x in weights.values())
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    return Source(f"{PUBLISHED} {name}", weights, digest, None, whitening)


def _of_timm(
    named: str, backbone: Callable[..., Any], keywords: Mapping[str, Any]
) -> tuple[Weights, tuple[tuple[float, ...], tuple[float, ...]]]:
    backbone()  # says what is wrong with the name
    library = importlib.import_module("timm")
    options = {name: value for name, value in keywords.items() if name not in ("name", "channels")}
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it counts its tries aloud
    try:
        network = library.create_model(
            keywords["name"], pretrained=True, num_classes=0, in_chans=keywords.get("channels", 3),
            **options,
        )  # fmt: skip
    except Exception as error:  # of the network, of the hub's client, of a file
        raise UserError(_unreachable(named, error)) from error
    of = network.pretrained_cfg
    return network.state_dict(), (tuple(of["mean"]), tuple(of["std"]))


def _of_torchvision(
    name: str, keywords: Mapping[str, Any]
) -> tuple[Weights, tuple[tuple[float, ...], tuple[float, ...]]]:
    models = importlib.import_module("torchvision.models")
    standard = keywords.get("stem", "imagenet") == "imagenet" and keywords.get("channels", 3) == 3
    if name not in models.list_models() or not standard or keywords.get("width_multiple", 1) != 1:
        raise UserError(
            f"--pretrained: no weights are published for {name} with "
            f"{', '.join(f'{k}={v}' for k, v in keywords.items()) or 'its defaults'}; use "
            "--encoder resnet18, 34, 50, 101 or 152 with --set backbone.stem=imagenet on images "
            "of 3 channels, --encoder timm:NAME, or --start FILE"
        )
    try:
        weights = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
    except Exception as error:  # of the network or of a file
        raise UserError(_unreachable(name, error)) from error
    return weights, IMAGENET


def _unreachable(name: str, error: Exception) -> str:
    what = str(error).strip().partition("\n")[0][:200]
    return (
        f"--pretrained: the weights of {name} are neither in the local cache nor to be had from "
        f"the network ({type(error).__name__}: {what}); fetch the file elsewhere and give it with "
        "--start FILE"
    )
