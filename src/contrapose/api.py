"""Training, resuming and embedding as functions; the command line calls these."""

import dataclasses
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import contrapose
from contrapose import encoders, recipes
from contrapose.data import ImageSet, NoSuchSplit, hold_out, open_images
from contrapose.encoders import Encoder
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.partials import assign, describe, unknown
from contrapose.training import loop
from contrapose.training.recipe import Recipe, recipe_from
from contrapose.training.run import FORMAT, Run

MEASURED = 4096  # images whose mean and standard deviation whiten the input


def train(
    recipe: str | Path | Recipe = "simclr",
    images: Any = "digits",
    *,
    out: Path | str | None = None,
    labels: Any = None,
    encoder: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    size: int | None = None,
    download: bool = False,
    command: str | None = None,
    watch: Callable[[loop.Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Run:
    """Train an encoder; returns the run folder, whose weights `Encoder.load(run.path)` reads.

    recipe: a name (`contrapose list`), a Python file, or a `Recipe`. images: whatever
    `open_images` takes. changes: "loss.temperature=0.1" and the like. Everything is checked before
    the folder is made. Raises ValueError or FileNotFoundError for what cannot be trained.
    """
    device, bf16 = choose_device(device), choose_bf16(precision, device)
    source = (
        images
        if isinstance(images, ImageSet)
        else open_images(images, split="train", size=size, labels=labels, download=download)
    )
    chosen = recipes.recipe_for(recipe, source.size, source.channels)
    chosen = changed(chosen, source, encoder, epochs, batch_size, temperature, seed, changes)
    loop.check(chosen, source)
    network = build(chosen, source)
    run = Run.create(Path(out) if out else new_folder(source.name, chosen.name))
    run.write("recipe.json", recipe_json(chosen, source, images, size, command))
    run.write("environment.json", environment(device, bf16))
    with run.locked():
        begin(run, chosen, source)
        _compile(network, compiled)
        loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch)
    return run


def resume(
    run: Run | Path | str,
    *,
    recipe: str | Path | None = None,
    images: Any = None,
    device: str = "auto",
    precision: str | None = None,
    compiled: bool = False,
    watch: Callable[[loop.Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Run:
    """Continue a run where its newest checkpoint stands; on a CPU bit for bit.

    recipe: needed again only where the run's recipe was your own file. images: needed again only
    where they did not come from a name or a path.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    source = images if isinstance(images, ImageSet) else run_images(run, "train", images)
    written = run.read("recipe.json")["recipe"]
    chosen = recipe_from(written, None if recipe is None else recipes.module(recipe))
    before = run.read("environment.json") if (run.path / "environment.json").exists() else {}
    device = choose_device(device)
    bf16 = choose_bf16(precision or before.get("precision", "auto"), device)
    network = build(chosen, source)
    with run.locked():
        begin(run, chosen, source)
        _compile(network, compiled)
        loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch)
    return run


def embed(
    run: Run | Path | str,
    images: Any,
    *,
    split: str = "train",
    device: str = "auto",
    recipe: str | Path | None = None,
) -> tuple[Embedded, ImageSet]:
    """h and z of every image under the run's encoder, and the images in that order."""
    run = run if isinstance(run, Run) else Run.open(run)
    encoder = Encoder.load(run.path, None if recipe is None else recipes.module(recipe))
    source = images if isinstance(images, ImageSet) else run_images(run, split, images)
    size = run.read("recipe.json")["recipe"]["size"]
    return embed_images(encoder, source, size=size, device=choose_device(device)), source


def changed(
    recipe: Recipe,
    images: ImageSet,
    encoder: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
) -> Recipe:
    """The recipe with the flags of the command line applied, the general `--set` last."""
    if encoder is not None:
        recipe = dataclasses.replace(recipe, backbone=backbone_named(encoder, images))
    if epochs is not None:
        if not epochs > 0:
            raise ValueError(f"--epochs {epochs}: use a positive number")
        warmup = min(recipe.warmup, epochs / 10)
        recipe = dataclasses.replace(recipe, epochs=epochs, warmup=warmup)
    if batch_size is not None:
        recipe = dataclasses.replace(recipe, batch_size=batch_size)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    if temperature is not None:
        recipe = assign(recipe, "loss.temperature", str(temperature))
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(
                f"--set {change}: write it as path=value, such as loss.temperature=0.1"
            )
        recipe = assign(recipe, path.strip(), text.strip())
    return recipe


def backbone_named(name: str, images: ImageSet) -> Callable[..., Any]:
    """`resnet18` with the stem and channels that suit the images; `timm:NAME` for timm's."""
    from functools import partial

    known = {function.__name__: function for function in encoders.BACKBONES}
    if name.startswith("timm:"):
        return partial(encoders.timm, name=name.removeprefix("timm:"), channels=images.channels)
    if name not in known or name == "timm":
        raise ValueError(
            f"--encoder {name}: there is no encoder {unknown(name, known)}; or timm:NAME"
        )
    chosen = partial(known[name], channels=images.channels)
    if name.startswith("resnet"):
        chosen = partial(chosen, stem="cifar" if images.size <= 64 else "imagenet")
    return chosen


def build(recipe: Recipe, images: ImageSet) -> Encoder:
    """The encoder of a recipe with weights drawn from its seed, whitening these images."""
    sample = images.batch(torch.linspace(0, len(images) - 1, min(MEASURED, len(images))).long())
    pixels = sample.float().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(dim=1).tolist(), pixels.std(dim=1).clamp(min=0.01).tolist()
    torch.manual_seed(recipe.seed)
    return Encoder.build(recipe.backbone, recipe.head, mean, std)


def run_images(run: Run, split: str, images: Any = None) -> ImageSet:
    """The images a run was trained on, or their other split."""
    data = run.read("recipe.json")["data"]
    if images is None:
        if data["source"] is None:
            raise ValueError(
                f"{run.path} was trained on arrays in memory, which a folder cannot name; "
                "give the images again"
            )
        images = data["source"]
    return open_images(images, split=split, size=data["size"], channels=data["channels"])


def train_and_test(run: Run, images: Any = None) -> tuple[ImageSet, ImageSet, str]:
    """(train, test, the name of the split), a fifth held out where there is no test split."""
    train_images = run_images(run, "train", images)
    try:
        return train_images, _same_classes(run_images(run, "test", images), train_images), "test"
    except NoSuchSplit:
        seed = int(run.read("recipe.json")["recipe"]["seed"])
        kept, held = hold_out(train_images, seed=seed)
        return kept, held, "held-out fifth of the training images (the encoder saw them unlabelled)"


def _same_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    """`test` with the class numbers of `train`; a class that `train` lacks loses its label."""
    if test.label is None or test.classes == train.classes:
        return test
    number = {name: i for i, name in enumerate(train.classes)}
    known = torch.tensor([*(number.get(name, -1) for name in test.classes), -1])
    return dataclasses.replace(test, label=known[test.label], classes=train.classes)


def recipe_json(
    recipe: Recipe, images: ImageSet, source: Any, size: int | None, command: str | None
) -> dict[str, Any]:
    named = isinstance(source, str | Path)
    return {
        "format": FORMAT,
        "contrapose": contrapose.__version__,
        "command": command,
        "data": {
            "name": images.name,
            "source": str(source) if named else None,
            "split": images.split,
            "images": len(images),
            "size": images.size,
            "channels": images.channels,
            "classes": list(images.classes),
            "fingerprint": images.fingerprint,
            "skipped": [f"{s.path}: {s.reason}" for s in images.skipped],
        },
        "recipe": describe(recipe),
    }


def environment(device: str, bf16: bool) -> dict[str, Any]:
    """Where and with what a run was made."""
    return {
        "contrapose": contrapose.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpuinfo("model name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "precision": "bf16" if bf16 else "fp32",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def choose_device(device: str) -> str:
    """`auto` is CUDA where there is one; ValueError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    return device


def choose_bf16(precision: str, device: str) -> bool:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"--precision {precision}: use auto, fp32 or bf16")
    if precision != "auto":
        return precision == "bf16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def new_folder(data: str, recipe: str) -> Path:
    """runs/cifar10-simclr-1, the first number that is free."""
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(data).name) or "images"
    number = 1
    while (path := Path("runs") / f"{stem}-{recipe}-{number}").exists():
        number += 1
    return path


def command_line() -> str:
    return shlex.join(["contrapose", *sys.argv[1:]])


def _compile(network: Encoder, compiled: bool) -> None:
    if compiled:
        network.backbone.compile()


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == field), "")


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
