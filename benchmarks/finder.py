"""What the finder of `batches=conditional` answers on sets with and without random bits.

    python -m benchmarks.finder --out runs/finder

Trains SimCLR plainly on 4,000 images of 16 px (the digits of scikit-learn: 1,797 of 8 px; grey
photographs of 64 px: 1,500), `small_conv` of width 64, AdamW at 2e-3, 16 epochs of a cosine, seed
0, at loss temperatures of 0.07 to 1 and batches of 64 to 512. Asks the finder after 1, 2, 4, 8 and
16 epochs. Expect no groups on sets without bits at any of them, and groups on those with 8 bits or
more after some 20 steps.
A minute a run on a core; what is done is kept in --out and not done again.

`clothes` are drawn: 6 kinds of silhouettes on black with continuous widths, lengths, brightness,
shading and stripes, in place of Fashion-MNIST.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor

from contrapose import adapt, encoders, losses, recipes
from contrapose.data import ImageSet, open_images
from contrapose.training import optim
from contrapose.training.batches import embedded, shuffled, untrained_information
from contrapose.training.conditional import EASY, group_size, neighbour_groups, read_colder
from contrapose.training.objective import Batch, objective_of
from contrapose.training.recipe import Recipe
from contrapose.training.step import step

CLEAN = (
    "mnist", "digits", "clothes", "grey cifar10", "grey cifar10 64 px", "cifar10", "flowers-64",
    "tiny-imagenet-50",
)  # fmt: skip
BITS = ("mnist 4", "mnist 8", "mnist 12", "mnist 16", "digits 6", "digits 8", "cifar10 8")
TEMPERATURES, BATCHES = (0.07, 0.1, 0.2, 0.5, 1.0), (64, 256, 512)
ASKED = (1, 2, 4, 8, 16)  # epochs
IMAGES, EPOCHS = 4000, 16


def images_of(name: str) -> ImageSet:
    """`mnist 8` has 8 bits; `grey cifar10 64 px` is grey and of 64 px."""
    if name == "clothes":
        return open_images(clothes(IMAGES, 16))
    if name.startswith("grey "):
        side = 64 if name.endswith("64 px") else 16
        return open_images(grey("cifar10", 1500 if side == 64 else IMAGES, side))
    base, _, bits = name.partition(" ")
    spec = f"random-bits({base}, bits={bits or 0})" if bits or base == "mnist" else base
    images = open_images(spec, size=8 if base == "digits" else 16)
    drawn = torch.randperm(len(images), generator=Generator().manual_seed(0))
    return images.subset(drawn[:IMAGES]) if len(images) > IMAGES else images


def grey(name: str, n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n images of a set without their colours, class by class."""
    images = open_images(name, size=side)
    assert images.label is not None
    order = images.label[:n].argsort(stable=True)
    pixels = images.batch(order).permute(0, 2, 3, 1).numpy()
    return np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in pixels]), order.numpy()


def clothes(n: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shirts, coats, trousers, dresses, shoes and bags, drawn at twice the size; kind by kind."""
    draw, size = np.random.default_rng(seed), 2 * side
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    kinds = draw.integers(0, 6, n)
    drawn = np.zeros((n, side, side), np.uint8)
    for i, kind in enumerate(kinds):
        w, h, arm = draw.uniform(0.3, 0.6), draw.uniform(0.6, 0.95), draw.uniform(0.2, 0.9)
        u = abs(x - draw.uniform(-0.08, 0.08) * y)
        body = (u < w * (1 + 0.25 * draw.uniform(-1, 1) * y)) & (abs(y) < h)
        if kind == 0:
            mask = body | ((u < w + arm * 0.5) & (y > -h) & (y < -h + 0.35))
        elif kind == 1:
            mask = body | ((u > w - 0.05) & (u < w + 0.25) & (y > -h) & (y < h * arm))
        elif kind == 2:
            gap = (u < draw.uniform(0.04, 0.15)) & (y > -h + 0.3)
            mask = (u < w) & (abs(y) < h) & ~gap
        elif kind == 3:
            mask = (u < w * (0.6 + 0.25 * (y + 1))) & (abs(y) < h)
        elif kind == 4:
            sole = (y > 0.1) & (y < 0.1 + h * 0.5) & (abs(x) < 0.9)
            shaft = (x < -0.3) & (abs(y) < 0.5 * h) & (x > -0.9)
            mask = sole & ((x < 0.2) | (y > 0.1 + arm * 0.4 * x)) | shaft
        else:
            handle = (x / w) ** 2 + ((y + 0.3) / 0.5) ** 2
            inner = (x / (w - 0.1)) ** 2 + ((y + 0.3) / 0.4) ** 2
            mask = ((y > -0.3) & (y < h) & (abs(x) < w + 0.3)) | ((handle < 1) & (inner > 1))
        light = draw.uniform(90, 255) * (1 + draw.uniform(-0.3, 0.3) * x)
        light = light * (1 + draw.uniform(-0.3, 0.3) * y)
        if draw.random() < 0.4:
            along = y if draw.random() < 0.5 else x
            stripes = np.sign(np.sin(draw.uniform(4, 14) * along + draw.uniform(0, 6)))
            light = light * (1 + draw.uniform(0.1, 0.4) * stripes)
        whole = mask * np.clip(light + draw.normal(0, 6, (size, size)), 0, 255)
        drawn[i] = whole.reshape(side, 2, side, 2).mean((1, 3))
    order = np.argsort(kinds, kind="stable")
    return drawn[order], kinds[order]


def recipe_of(images: ImageSet, temperature: float, batch: int) -> Recipe:
    found = recipes.recipe_for("simclr", images.size, images.shown)
    changed = dataclasses.replace(
        found, backbone=partial(encoders.small_conv, channels=images.channels, width=64),
        head=partial(encoders.mlp, dim=64, layers=2),
        loss=partial(losses.nt_xent, temperature=temperature),
        optimizer=partial(optim.adamw, weight_decay=1e-4), scaling=optim.no_scaling, lr=2e-3,
        warmup=1, epochs=EPOCHS, batch_size=batch, seed=0,
    )  # fmt: skip
    return adapt.beside_constants(changed, images)


def finders(
    images: ImageSet, recipe: Recipe
) -> Iterator[tuple[int, tuple[Float[Tensor, "N D"], ...]]]:
    """After each epoch of ASKED: z of the images and of two views, as `conditional` has them."""
    encoder = adapt.build(recipe, images).train()
    optimizer, generator = recipe.optimizer(encoder, lr=recipe.lr), Generator().manual_seed(0)
    objective, steps = objective_of(recipe, encoder, len(images)), len(images) // recipe.batch_size
    for epoch in range(EPOCHS):
        for k, index in enumerate(shuffled(len(images), 0, epoch, recipe.batch_size)):
            for group in optimizer.param_groups:
                at = epoch + k / steps
                group["lr"] = recipe.lr * recipe.schedule(at, EPOCHS, warmup=recipe.warmup)
            batch = Batch(images.batch(index), index)
            step(encoder, optimizer, objective, batch, recipe, generator)
        if epoch + 1 in ASKED:
            draw = Generator().manual_seed(0)
            views = [embedded(encoder, images, recipe, g) for g in (None, draw, draw)]
            yield epoch + 1, tuple(views)


def neighbours_temperature(z: Tensor, a: Tensor, b: Tensor, size: int = 40) -> float:
    """The temperature at which neighbours are distinguished best."""
    index = neighbour_groups(z, size, Generator().manual_seed(0), count=100).flatten()
    low, high = math.log(1e-4), math.log(10)
    for _ in range(16):
        middle = (low + high) / 2
        colder = read_colder(a[index], b[index], size=size, temperature=math.exp(middle))
        low, high = (low, middle) if colder else (middle, high)
    return math.exp(high)


def cell(name: str, temperature: float, batch: int) -> dict[str, Any]:
    """What is found on one set at one temperature and batch, by the epoch of asking."""
    images = images_of(name)
    recipe = recipe_of(images, temperature, batch)
    untrained = untrained_information(adapt.build(recipe, images), images, recipe)
    coldest, sizes = {}, {}
    for epoch, (z, a, b) in finders(images, recipe):
        coldest[epoch] = neighbours_temperature(z, a, b)
        sizes[epoch] = group_size(z, a, b, Generator().manual_seed(0), untrained=untrained)
    return {"untrained": untrained, "coldest": coldest, "sizes": sizes}


def table(folder: Path) -> str:
    """A line a set: over all temperatures, batches and epochs of asking that are done."""
    lines = [
        "| set | shared information, untrained | temperature of neighbours | asked | groups made |",
        "|---|---|---|---|---|",
    ]
    for name in (*CLEAN, *BITS):
        done = [json.loads(f.read_text()) for f in sorted(folder.glob(f"{_slug(name)}-t*.json"))]
        if done:
            told = [d["untrained"] for d in done]
            cold = [t for d in done for t in d["coldest"].values()]
            sizes = [s for d in done for s in d["sizes"].values()]
            made = sum(s is not None for s in sizes)
            lines.append(
                f"| {name} | {min(told):.3f} to {max(told):.3f} | {min(cold):.4f} to "
                f"{max(cold):.3f} | {len(done)} runs x {len(ASKED)} | {made} of {len(sizes)} |"
            )
    return "\n".join(lines)


def _slug(name: str) -> str:
    return "-".join(name.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/finder"))
    parser.add_argument("--sets", nargs="*", default=[*CLEAN, *BITS])
    parser.add_argument("--temperatures", nargs="*", type=float, default=TEMPERATURES)
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for t, batch, name in itertools.product(given.temperatures, given.batches, given.sets):
        file = given.out / f"{_slug(name)}-t{t:g}-B{batch}.json"
        if not file.exists():
            file.write_text(json.dumps(cell(name, t, batch)))
            print(file.stem, file.read_text(), flush=True)
    print(f"Groups are made if the untrained information is at least {EASY}.\n\n{table(given.out)}")


if __name__ == "__main__":
    main()
