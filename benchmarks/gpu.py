"""What a GPU does with contrapose: training step, views, loss and feeding, in under eight minutes.

    python -m benchmarks.gpu [--out runs/gpu] [--device cuda] [--small]      (make bench-gpu)

Writes gpu.json and gpu.md. Measured first is the ceiling: products of bf16 matrices, in the same
run. Each number stands beside plain torch and, where it is installed, lightly's pieces. What does
not fit into the time is named as left out. --small takes seconds on a CPU: it shows that the
command runs, its numbers mean nothing.
"""

import argparse
import json
import math
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training
from contrapose import adapt, losses
from contrapose.augment import views as make_views
from contrapose.data import ImageSet, Prefetch, device_jpeg, open_images
from contrapose.data.images import OnAccess
from contrapose.encoders import Encoder, fastest_layout
from contrapose.machine import cores, synchronize
from contrapose.recipes import recipe_for
from contrapose.similarity import products
from contrapose.training import optim
from contrapose.training.compiling import IN_WORDS, WAYS
from contrapose.training.objective import Batch, objective_of
from contrapose.training.parallel import Alone
from contrapose.training.recipe import Recipe
from contrapose.training.step import step

LIMIT = 450.0  # s for everything


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    networks: tuple[tuple[str, int, int], ...]  # encoder, px, images a batch
    rows: tuple[int, ...]  # of each view, in the loss
    views: tuple[tuple[int, int], ...]  # px, images
    files: int  # on disk
    matrix: int  # side of the matrices of the ceiling
    seconds: float  # of each measurement


FULL = Scale(
    networks=(
        ("resnet18", 32, 1024), ("resnet18", 224, 256), ("resnet50", 224, 256),
        ("timm:vit_small_patch16_224", 224, 256),
    ),
    rows=(32_768, 262_144), views=((32, 4096), (224, 512)), files=3000, matrix=8192, seconds=4.0,
)  # fmt: skip
SMALL = Scale(
    networks=(("small_conv", 32, 8),), rows=(64,), views=((32, 8),), files=24, matrix=128,
    seconds=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One measured number; `why` in its place where it was not measured."""

    section: str
    what: str
    value: float | None
    unit: str
    share: float | None = None  # of the bf16 ceiling
    why: str = ""


def main(given: list[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="seconds, on any device")
    arguments = parser.parse_args(given)
    if arguments.device == "cpu" and not arguments.small:
        raise SystemExit("no CUDA device here; --small runs the same on the CPU, in small")
    bench = Bench(torch.device(arguments.device), SMALL if arguments.small else FULL)
    bench.run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = bench.environment() | {"figures": [asdict(figure) for figure in bench.found]}
    (arguments.out / "gpu.json").write_text(json.dumps(written, indent=1) + "\n")
    (arguments.out / "gpu.md").write_text(bench.page())
    print(bench.page())
    return bench.found


class Bench:
    def __init__(self, device: torch.device, scale: Scale) -> None:
        self.device, self.scale, self.begun = device, scale, time.monotonic()
        self.found: list[Figure] = []
        self.ceiling = math.nan

    def run(self) -> None:
        self.measure_ceiling()
        steps = [(f"training step, {n[0]}, {n[1]} px", *n) for n in self.scale.networks]
        for name, *network in steps:
            self.section(name, self.training, *network)
        for rows in self.scale.rows:
            self.section(f"loss, 2 x {rows:,} rows of 128", self.loss, rows)
        for side, count in self.scale.views:
            self.section(f"two views, {side} px", self.views, side, count)
        self.section("feeding from disk", self.feeding)
        self.section("end to end, ResNet-18, 32 px", self.end_to_end)
        if self.device.type == "cuda":  # last: compiling takes a minute or two for each
            for name, *network in reversed(steps):
                for way in WAYS[1:]:
                    self.section(f"{name}, {IN_WORDS[way]}", self.ours, *network, way)

    def section(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        """Run a part; what fails or comes too late is a figure that says so."""
        if time.monotonic() - self.begun > LIMIT:
            self.found.append(Figure(name, "", None, "", why="left out: the time was over"))
            return
        try:
            with warnings.catch_warnings(action="ignore"):
                work(name, *arguments)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.found.append(Figure(name, "", None, "", why=why[:200]))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure_ceiling(self) -> None:
        n = self.scale.matrix
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        self.ceiling = 2 * n**3 / self.timed(lambda: a @ b)
        what = f"product of bf16 matrices, {n:,} x {n:,}"
        self.found.append(Figure("ceiling", what, self.ceiling / 1e12, "TFLOP/s", 1.0))

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of a call: the mean of as many as fit into the time, after two others (one, where
        a call takes longer than the time)."""
        for _ in range(2):
            synchronize(self.device)
            begun = time.perf_counter()
            work()
            synchronize(self.device)
            once = time.perf_counter() - begun
            if once > max(1.0, self.scale.seconds):
                break
        count = max(1, min(200, int(self.scale.seconds / max(once, 1e-6))))
        begun = time.perf_counter()
        for _ in range(count):
            work()
        synchronize(self.device)
        return (time.perf_counter() - begun) / count

    def noted(
        self, section: str, what: str, count: float, unit: str, seconds: float, flops: float = 0.0
    ) -> None:
        share = flops / seconds / self.ceiling if flops else None
        self.found.append(Figure(section, what, count / seconds, unit, share))

    def guarded(self, section: str, what: str, work: Callable[[], None]) -> None:
        """A contender that may be missing or run out of memory."""
        try:
            work()
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.found.append(Figure(section, what, None, "", why=why[:200]))

    # ---- the training step

    def training(self, name: str, encoder: str, side: int, batch: int) -> None:
        """The library's step beside plain torch and lightly's loss on the same network; views are
        this library's for all."""
        self.guarded(name, "contrapose, bf16", partial(self.ours, name, encoder, side, batch))
        images, recipe, image = self.batch_of(encoder, side, batch)
        flops = self.flops(self.network(recipe, images), recipe, image)

        def others(criterion: Callable[[Tensor, Tensor], Tensor], what: str) -> None:
            network = self.network(recipe, images)
            fused = self.device.type == "cuda"
            optimizer = torch.optim.SGD(network.parameters(), 0.03, momentum=0.9, fused=fused)
            generator = torch.Generator(self.device).manual_seed(0)

            def once() -> None:
                view = make_views(recipe.policy, image, generator, n=2).flatten(0, 1)
                with torch.autocast(self.device.type, torch.bfloat16):
                    z = network(view.contiguous(memory_format=torch.channels_last))[1]
                loss = criterion(*z.float().chunk(2))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

            self.noted(name, what, batch, "images/s", self.timed(once), flops)

        self.guarded(name, "plain torch", lambda: others(plain_loss, "plain torch, bf16"))
        self.guarded(name, "lightly", lambda: others(lightly_loss(), "lightly's loss, bf16"))

    def ours(self, name: str, encoder: str, side: int, batch: int, way: str = "off") -> None:
        """The library's step, compiled or not."""
        images, recipe, image = self.batch_of(encoder, side, batch)
        index = torch.arange(batch, device=self.device)
        network = self.network(recipe, images)
        flops = self.flops(network, recipe, image)
        network.zero_grad(set_to_none=True)
        sharing = Alone(network, recipe, way)
        optimizer = recipe.optimizer(network, lr=0.03)
        objective = objective_of(recipe, network, batch)
        generator = torch.Generator(self.device).manual_seed(0)

        def once() -> None:
            step(network, optimizer, objective, Batch(image, index), recipe, generator,
                 bf16=True, sharing=sharing)  # fmt: skip

        what = f"contrapose, bf16, {IN_WORDS[way]}"
        self.noted(name, what, batch, "images/s", self.timed(once), flops)
        if self.device.type == "cuda":
            syncs = synchronisations(once)
            self.found.append(Figure(name, f"{what}: synchronisations a step", syncs, ""))

    def batch_of(self, encoder: str, side: int, batch: int) -> tuple[ImageSet, Recipe, Tensor]:
        images = pictures(batch, side)
        recipe = adapt.changed(
            recipe_for("simclr", side, 3), images, encoder, None, batch, None, None, []
        )
        return images, recipe, images.batch(torch.arange(batch)).to(self.device)

    def network(self, recipe: Recipe, images: ImageSet) -> Encoder:
        torch.manual_seed(0)
        network: Encoder = adapt.build(recipe, images)
        return fastest_layout(network.to(self.device), recipe.size, bf16=True).train()

    def flops(self, network: Encoder, recipe: Recipe, image: Tensor) -> float:
        """Of forward and backward passes of two views of the batch, counted on a few images."""
        few = image[: min(4, len(image))]
        generator = torch.Generator(self.device).manual_seed(0)
        view = make_views(recipe.policy, few, generator, n=2).flatten(0, 1)
        with FlopCounterMode(display=False) as counter:
            network(view)[1].square().sum().backward()  # type: ignore[no-untyped-call]
        return counter.get_total_flops() * len(image) / len(few)

    # ---- the loss

    def loss(self, name: str, rows: int) -> None:
        """Forward and backward pass of NT-Xent. Three products of N x N x D, of which the backward
        pass makes two; what is computed again is not counted."""
        draw = torch.Generator().manual_seed(0)
        z = torch.nn.functional.normalize(torch.randn(2 * rows, 128, generator=draw), dim=1)
        z = z.to(self.device).requires_grad_()
        flops = 3 * 2 * (2 * rows) ** 2 * 128

        def timed(what: str, criterion: Callable[[Tensor], Tensor]) -> None:
            def once() -> None:
                z.grad = None
                criterion(z).backward()  # type: ignore[no-untyped-call]

            self.noted(name, what, flops / 1e12, "TFLOP/s", self.timed(once), flops)

        group = torch.arange(rows, device=self.device).repeat(2)
        ours = partial(losses.nt_xent, group=group, temperature=0.1)

        def low(z: Tensor) -> Tensor:
            with products(torch.bfloat16):
                return ours(z)

        def plain(z: Tensor) -> Tensor:
            return plain_loss(*z.chunk(2))

        self.guarded(name, "contrapose", lambda: timed("contrapose", ours))
        self.guarded(name, "contrapose, bf16", lambda: timed("contrapose, bf16", low))
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 2**30
        if 4 * 4 * (2 * rows) ** 2 > free:
            why = f"needs {4 * 4 * (2 * rows) ** 2 / 1e9:,.0f} GB"
            self.found.append(Figure(name, "plain torch", None, "", why=why))
            return
        self.guarded(name, "plain torch", lambda: timed("plain torch", plain))
        if self.device.type == "cuda":
            compiled = torch.compile(plain)
            what = "plain torch, compiled"
            self.guarded(name, what, lambda: timed(what, compiled))
        other = lightly_loss
        self.guarded(name, "lightly", lambda: timed("lightly", lambda z: other()(*z.chunk(2))))

    # ---- views, and images from disk

    def views(self, name: str, side: int, count: int) -> None:
        """Two views an image by the SimCLR policy, each image its own draw; torchvision's
        transforms draw once for a batch, which is another thing and said so."""
        image = pictures(count, side).batch(torch.arange(count)).to(self.device)
        recipe = recipe_for("simclr", side, 3)
        generator = torch.Generator(self.device).manual_seed(0)

        def once() -> object:
            return make_views(recipe.policy, image, generator, n=2)

        self.noted(name, "contrapose, a draw an image", count, "images/s", self.timed(once))

        def torchvision() -> None:
            from torchvision.transforms import v2

            policy = v2.Compose([
                v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.2),
                v2.ToDtype(torch.float32, scale=True),
            ])  # fmt: skip
            what = "torchvision, a draw a batch"
            seconds = self.timed(lambda: (policy(image), policy(image)))
            self.noted(name, what, count, "images/s", seconds)

        self.guarded(name, "torchvision", torchvision)

    def feeding(self, name: str) -> None:
        """A training step fed with JPEG of 256 px from disk: images/s, and the share of the time in
        which it waits for them; decoded by the processor, and by the device."""
        encoder, side = self.scale.networks[0][0], 32 if self.scale is SMALL else 224
        found = device_jpeg.decoder(self.device)
        with tempfile.TemporaryDirectory() as top:
            written(Path(top), self.scale.files)
            images = open_images(top, size=side, memory=0).to(self.device)
            assert isinstance(images.pixels, OnAccess)
            for jpeg, by in ((None, "the processor"), (found, "the device")):
                what = f"{encoder}, {side} px, JPEG of 256 px decoded by {by}"
                if jpeg is None and by == "the device":
                    self.found.append(Figure(name, what, None, "", why="torchcodec is not there"))
                    continue
                fed = replace(images, pixels=replace(images.pixels, jpeg=jpeg))
                self.guarded(name, what, partial(self.fed, name, what, encoder, fed))
        if found is not None:
            self.guarded(name, "the device's JPEG", partial(self.decoding, name, found))

    def fed(self, name: str, what: str, encoder: str, images: ImageSet) -> None:
        batch = max(4, min(256, len(images) // 6))
        recipe = adapt.changed(
            recipe_for("simclr", images.size, 3), images, encoder, None, batch, None, None, []
        )
        network = self.network(recipe, images)
        optimizer = partial(optim.sgd, momentum=0.9)(network, lr=0.03)
        objective = objective_of(recipe, network, len(images))
        generator = torch.Generator(self.device).manual_seed(0)
        order = torch.arange(len(images) // batch * batch).view(-1, batch)
        prefetch, begun = Prefetch(images, batch), 0.0
        for k, index in enumerate(order):
            image = prefetch.take(index, [*order[k + 1 : k + 3]])
            put = Batch(image, index.to(self.device))
            step(network, optimizer, objective, put, recipe, generator, bf16=True)
            if k == 0:
                synchronize(self.device)
                begun = time.perf_counter()
        synchronize(self.device)
        seconds = time.perf_counter() - begun
        prefetch.close()
        self.noted(name, what, (len(order) - 1) * batch, "images/s", seconds)
        share = prefetch.waited / seconds
        self.found.append(Figure(name, f"{what}: share of the time spent waiting", share, ""))

    def end_to_end(self, name: str) -> None:
        """From images in memory to weights, views included: the library's step, and lightly's
        transform, loader, head and loss with a worker for every core (`benchmarks.training`)."""
        small = self.scale is SMALL
        steps, batch, workers = (3, 8, 0) if small else (13, 512, cores())
        device = self.device.type
        for what, run in (
            ("contrapose, bf16", partial(training.ours, True, device, steps, batch)),
            (
                f"lightly, bf16, {workers} workers",
                partial(training.peer, True, device, steps, workers, batch),
            ),
        ):
            self.guarded(name, what, partial(self.whole_steps, name, what, run, batch))

    def whole_steps(
        self, name: str, what: str, run: Callable[[], Iterator[None]], batch: int
    ) -> None:
        """Steps after the first two, which begin workers and kernels."""
        steps = run()
        next(steps), next(steps)
        synchronize(self.device)
        begun, count = time.perf_counter(), 0
        for _ in steps:
            count += batch
        synchronize(self.device)
        self.noted(name, what, count, "images/s", time.perf_counter() - begun)

    def decoding(self, name: str, jpeg: device_jpeg.DeviceJpeg) -> None:
        """Batches alone, and how far the device's squares are from the processor's."""
        found = device_jpeg.trial(jpeg)
        for by, seconds in (("the device", found.device), ("the processor", found.processor)):
            what = f"JPEG of 341 x 256 px to 224 px by {by}, no step"
            self.noted(name, what, device_jpeg.TRIED, "images/s", seconds)
        what = "mean difference of the device's squares, levels of 255"
        self.found.append(Figure(name, what, found.difference, ""))

    # ---- what is written

    def environment(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor(),
            "torch": torch.__version__, "cuda": torch.version.cuda,
            "small": self.scale is SMALL, "seconds": round(time.monotonic() - self.begun, 1),
        }  # fmt: skip

    def page(self) -> str:
        about = self.environment()
        lines = [
            f"# {about['device'] or 'CPU'}", "",
            f"torch {about['torch']}, CUDA {about['cuda']}; {about['seconds']:.0f} s of "
            "`make bench-gpu`. Share: of the bf16 matrix ceiling measured in the same run, by the "
            "products of the model's layers or of the loss alone.", "",
            *(["**In small, on a CPU or a part of a GPU: these numbers mean nothing.**", ""]
              if about["small"] else []),
            "| part | what | value | share of the ceiling |", "|---|---|---|---|",
        ]  # fmt: skip
        for f in self.found:
            value = f.why if f.value is None else f"{f.value:,.3g} {f.unit}".strip()
            share = "" if f.share is None else f"{f.share:.1%}"
            lines.append(f"| {f.section} | {f.what} | {value} | {share} |")
        return "\n".join(lines) + "\n"


def plain_loss(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent by the whole matrix of similarities."""
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    n = len(a)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -1e9)
    target = torch.arange(2 * n, device=z.device).roll(n)
    return torch.nn.functional.cross_entropy(similarity, target)


def lightly_loss() -> Callable[[Tensor, Tensor], Tensor]:
    from lightly.loss import NTXentLoss

    criterion: Callable[[Tensor, Tensor], Tensor] = NTXentLoss(temperature=0.1)
    return criterion


def pictures(count: int, side: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return open_images(pixels)


def written(folder: Path, count: int) -> None:
    """Write `count` JPEG of 256 x 341 px, of fifty pictures."""
    for k in range(count):
        path = folder / f"{k:05}.jpg"
        if k >= 50:
            path.write_bytes((folder / f"{k % 50:05}.jpg").read_bytes())
            continue
        coarse = np.random.default_rng(k).integers(0, 256, (16, 21, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((341, 256), Image.Resampling.BICUBIC).save(path, quality=90)


def synchronisations(work: Callable[[], object]) -> int:
    """How often a call makes the host wait for the device, by CUDA's own warnings."""
    with watched() as seen:
        work()
    return len(seen)


@contextmanager
def watched() -> Iterator[list[Any]]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield seen
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
