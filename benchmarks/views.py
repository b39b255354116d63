"""Views a second: ours, torchvision's per-image PIL pipeline, kornia; same operations, same cores.

    python -m benchmarks.views [--threads 2] [--repeats 7] [--device cuda] [--json views.json]
        [--policies simclr autoaugment randaugment] [--compiled]

Two views of each image, 32 px sources to 32 px and 256 px to 224 px, under SimCLR's policy (B.9:
strength 0.5, no blur; appendix A: strength 1, blur), or crop, flip and AutoAugment or RandAugment.
kornia draws one list of operations for a batch, the others one for each image. torchvision runs in
a DataLoader with as many worker processes as the others have threads. All are measured in turn,
`--repeats` times, after a warm-up; the table gives medians and the range. Sources are smooth noise
in memory: nothing is decoded, and the batches' way from worker to main process counts as part of
that pipeline.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from contrapose.augment import autoaugment, randaugment, simclr, simclr_cifar, views
from contrapose.machine import freed_memory_kept

POLICIES = ("simclr", "autoaugment", "randaugment")

# source px, view px, colour strength, blur kernel px, images in a batch, batches of torchvision's
CASES = {32: (32, 32, 0.5, 0, 512, 4), 224: (256, 224, 1.0, 23, 64, 2)}


class TwoViews(Dataset[Tensor]):
    """Pictures in memory, two random views of each."""

    def __init__(self, image: Tensor, count: int, transform: Callable[[Image.Image], Tensor]):
        self.picture = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in image]
        self.count, self.transform = count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        picture = self.picture[index % len(self.picture)]
        return torch.stack([self.transform(picture), self.transform(picture)])


def torchvision_maker(
    policy: str, image: Tensor, size: int, workers: int, device: str
) -> Callable[[], int]:
    _, _, strength, kernel, batch, batches = CASES[size]
    s = 0.8 * strength
    steps: list[Any] = [
        transforms.RandomResizedCrop(size, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
    ]
    if policy == "autoaugment":
        steps.append(transforms.AutoAugment(fill=[128] * 3))
    elif policy == "randaugment":
        steps.append(transforms.RandAugment(2, 9, fill=[128] * 3))
    else:
        steps.append(transforms.RandomApply([transforms.ColorJitter(s, s, s, s / 4)], p=0.8))
        steps.append(transforms.RandomGrayscale(p=0.2))
        if kernel:
            blur = transforms.GaussianBlur(kernel, (0.1, 2.0))
            steps.append(transforms.RandomApply([blur], p=0.5))
    steps.append(transforms.ToTensor())
    count = batch * batches
    loader = DataLoader(
        TwoViews(image, count, transforms.Compose(steps)),
        batch_size=max(batch // 4, 1),
        num_workers=workers,
        persistent_workers=True,
        worker_init_fn=_one_thread,
    )

    def make() -> int:
        for made in loader:
            made.to(device)
        return count

    return make


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def kornia_maker(
    policy: str, image: Tensor, size: int, device: str, compiled: bool = False
) -> Callable[[], int]:
    import kornia.augmentation as K

    _, _, strength, kernel, _, _ = CASES[size]
    s = 0.8 * strength
    steps: list[Any] = [
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
    ]
    if policy == "autoaugment":
        steps.append(K.auto.AutoAugment("imagenet"))
    elif policy == "randaugment":
        steps.append(K.auto.RandAugment(n=2, m=10))
    else:
        steps += [K.ColorJitter(s, s, s, s / 4, p=0.8), K.RandomGrayscale(p=0.2)]
        if kernel:
            steps.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    made: Callable[[Tensor], Tensor] = torch.nn.Sequential(*steps)
    made = torch.compile(made) if compiled else made
    image = image.to(device)

    def make() -> int:
        with torch.no_grad():
            for _ in range(2):
                made(image / 255)
        return len(image)

    return make


def our_maker(policy: str, image: Tensor, size: int, device: str) -> Callable[[], int]:
    ours = {"autoaugment": autoaugment, "randaugment": randaugment}.get(
        policy, simclr if CASES[size][3] else simclr_cifar
    )
    image, generator = image.to(device), torch.Generator(device).manual_seed(0)

    def make() -> int:
        views(partial(ours, size=size), image, generator)
        return len(image)

    return make


def images_a_second(make: Callable[[], int], device: str, seconds: float) -> float:
    """Calls `make` for at least so long; images, each with two views, divided by the time."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += make()
        if device != "cpu":
            torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def pictures(size: int) -> Tensor:
    side, count = CASES[size][0], CASES[size][4]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bilinear")
    return smooth.mul(255).to(torch.uint8)


def measure(
    policy: str,
    size: int,
    *,
    threads: int,
    repeats: int,
    seconds: float,
    device: str,
    compiled: bool,
) -> dict[str, Any]:
    image, missing = pictures(size), []
    makers = {
        "contrapose": our_maker(policy, image, size, device),
        "torchvision": torchvision_maker(policy, image, size, threads, device),
    }
    for name, how in (("kornia", False), ("kornia compiled", True)):
        if how and not compiled:
            continue
        try:
            makers[name] = kornia_maker(policy, image, size, device, how)
            makers[name]()
        except ImportError:
            missing.append(f"{name} is not installed: pip install -e '.[peers]' adds it")
        except Exception as error:  # of a peer, whose failure is a result
            del makers[name]
            missing.append(f"{name} failed: {str(error).strip().splitlines()[0][:100]}")
    rate: dict[str, list[float]] = {name: [] for name in makers}
    with freed_memory_kept():  # as in training
        for make in makers.values():
            make()
            make()
        for _ in range(repeats):
            for name, make in makers.items():
                rate[name].append(images_a_second(make, device, seconds))
    return {"policy": policy, "size": size, "images_per_second": rate, "missing": missing}


def hardware(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"torchvision": torchvision.__version__, "numpy": np.__version__}
    try:
        import kornia

        found["kornia"] = kornia.__version__
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="threads, and worker processes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement, at least")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], choices=list(CASES))
    parser.add_argument("--policies", nargs="+", default=["simclr"], choices=POLICIES)
    parser.add_argument("--compiled", action="store_true", help="kornia under torch.compile too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write every measurement here")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; use --device cpu")
    torch.set_num_threads(asked.threads)

    console = Console()
    result: dict[str, Any] = {
        "hardware": hardware(asked.device),
        "device": asked.device,
        "threads": asked.threads,
        "repeats": asked.repeats,
        "versions": versions(),
        "cases": [],
    }
    for policy, size in itertools.product(asked.policies, asked.sizes):
        case = measure(
            policy,
            size,
            threads=asked.threads,
            repeats=asked.repeats,
            seconds=asked.seconds,
            device=asked.device,
            compiled=asked.compiled,
        )
        result["cases"].append(case)
        console.print(_table(case, asked.threads, asked.repeats))
        for line in case["missing"]:
            console.print(line, markup=False)
    console.print(f"{result['hardware']}; " + ", ".join(map(" ".join, result["versions"].items())))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def _table(case: dict[str, Any], threads: int, repeats: int) -> Table:
    size = case["size"]
    source, _, _, kernel, _, _ = CASES[size]
    title = f"{case['policy']}, {source} -> {size} px, two views"
    if case["policy"] == "simclr":
        title += f", {'with' if kernel else 'no'} blur"
    table = Table(title=f"{title}; {threads} threads, median of {repeats}")
    for name in ("", "images/s", "range", "ours is faster"):
        table.add_column(name, justify="right" if name else "left")
    rate = case["images_per_second"]
    ours = statistics.median(rate["contrapose"])
    for name, values in rate.items():
        median = statistics.median(values)
        table.add_row(
            name,
            f"{median:,.0f}",
            f"{min(values):,.0f} - {max(values):,.0f}",
            "" if name == "contrapose" else f"{ours / median:.1f}x",
        )
    return table


if __name__ == "__main__":
    main()
