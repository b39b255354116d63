"""Views a second: ours, torchvision's per-image PIL pipeline, kornia; same operations, same cores.

    python -m benchmarks.views [--threads 2] [--repeats 7] [--device cuda] [--json views.json]

Two views of each image under SimCLR's policy: 32 px sources to 32 px (B.9: strength 0.5, no blur)
and 256 px to 224 px (appendix A: strength 1, blur). torchvision runs in a DataLoader with as many
worker processes as the others have threads. All are measured in turn, `--repeats` times, after a
warm-up; the table gives medians and the range. Sources are smooth noise in memory: nothing is
decoded, and the batches' way from worker to main process counts as part of that pipeline.
"""

import argparse
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

from contrapose.augment import simclr, simclr_cifar, views

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


def torchvision_maker(image: Tensor, size: int, workers: int, device: str) -> Callable[[], int]:
    _, _, strength, kernel, batch, batches = CASES[size]
    s = 0.8 * strength
    steps: list[Any] = [
        transforms.RandomResizedCrop(size, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(s, s, s, s / 4)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
    ]
    if kernel:
        steps.append(transforms.RandomApply([transforms.GaussianBlur(kernel, (0.1, 2.0))], p=0.5))
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


def kornia_maker(image: Tensor, size: int, device: str) -> Callable[[], int]:
    import kornia.augmentation as K

    _, _, strength, kernel, _, _ = CASES[size]
    s = 0.8 * strength
    steps: list[Any] = [
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(s, s, s, s / 4, p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    if kernel:
        steps.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    policy = torch.nn.Sequential(*steps)
    image = image.to(device)

    def make() -> int:
        with torch.no_grad():
            for _ in range(2):
                policy(image / 255)
        return len(image)

    return make


def our_maker(image: Tensor, size: int, device: str) -> Callable[[], int]:
    policy = partial(simclr, size=size) if CASES[size][3] else partial(simclr_cifar, size=size)
    image, generator = image.to(device), torch.Generator(device).manual_seed(0)

    def make() -> int:
        views(policy, image, generator)
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
    size: int, *, threads: int, repeats: int, seconds: float, device: str
) -> dict[str, Any]:
    image, missing = pictures(size), []
    makers = {
        "contrapose": our_maker(image, size, device),
        "torchvision": torchvision_maker(image, size, threads, device),
    }
    try:
        makers["kornia"] = kornia_maker(image, size, device)
    except ImportError:
        missing.append("kornia")
    rate: dict[str, list[float]] = {name: [] for name in makers}
    for make in makers.values():
        make()
        make()
    for _ in range(repeats):
        for name, make in makers.items():
            rate[name].append(images_a_second(make, device, seconds))
    return {"size": size, "images_per_second": rate, "missing": missing}


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
    for size in asked.sizes:
        case = measure(
            size,
            threads=asked.threads,
            repeats=asked.repeats,
            seconds=asked.seconds,
            device=asked.device,
        )
        result["cases"].append(case)
        console.print(_table(case, asked.threads, asked.repeats))
        for name in case["missing"]:
            console.print(f"{name} is not installed: pip install -e '.[peers]' adds it")
    console.print(f"{result['hardware']}; " + ", ".join(map(" ".join, result["versions"].items())))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def _table(case: dict[str, Any], threads: int, repeats: int) -> Table:
    size = case["size"]
    source, _, _, kernel, _, _ = CASES[size]
    title = f"{source} -> {size} px, two views, {'with' if kernel else 'no'} blur"
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
