"""Images per second from a folder of JPEG to batches [B, 3, 224, 224] in uint8, on all cores.

    python -m benchmarks.feeding [--images 2000] [--rounds 3] [--out feeding.json]

Files with a short side of 256 px, as sets for training are stored, and photographs of 2,048 px, as
cameras write them; the central square, resized to 224 px. Here: `open_images` and its `Prefetch`.
Others: torch's DataLoader with Pillow and torchvision's transforms, with as many workers as cores
and with one less, and SPDL's thread pipeline with the same function. Pillow resizes bicubically, as
it does here; "bilinear" is torchvision's default, which is less work. Nothing is trained, the
batches are dropped. Every contender runs in a fresh process, in turn, so that memory is its own and
drifts of the machine hit all alike. Needs `pip install .[peers]` for SPDL.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from contrapose.machine import cores

SIDE = 224
BATCH = 128
KINDS = {"256 px": ((341, 256), 90), "2,048 px": ((2048, 1536), 90)}  # sides, quality
CONTENDERS = (
    "contrapose",
    "DataLoader, all cores",
    "DataLoader, a core less",
    "DataLoader, bilinear",
    "SPDL",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="a quarter of them photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--kind", choices=KINDS, help="one kind of files")
    parser.add_argument("--out", help="a JSON file for the figures")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measured(arguments.contender, Path(arguments.folder))))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as top:
        for kind in [arguments.kind] if arguments.kind else KINDS:
            few = 4 if kind != "256 px" else 1
            folder = Path(top) / kind
            made(folder, max(BATCH * 3, arguments.images // few), kind)
            found[kind] = rounds(folder, arguments)
            report(kind, found[kind])
    if arguments.out:
        where = {"cores": cores(), "torch": torch.__version__, "batch": BATCH}
        Path(arguments.out).write_text(json.dumps(where | {"runs": found}, indent=1))


def made(folder: Path, count: int, kind: str) -> None:
    """Write `count` JPEG with the spectrum of a picture and some noise, in ten classes."""
    (width, height), quality = KINDS[kind]
    for k in range(count):
        draw = np.random.default_rng(k % 50)
        coarse = draw.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        x = smooth + draw.normal(0, 8, (*smooth.shape[:2], 1))
        path = folder / str(k % 10) / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if k < 50:
            Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(path, quality=quality)
        else:
            twin = folder / str(k % 50 % 10) / f"{k % 50}.jpg"
            path.write_bytes(twin.read_bytes())


def rounds(folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    names = [n for n in CONTENDERS if not arguments.only or arguments.only in n]
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.feeding"]
            command += ["--contender", name, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            seen[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {name: runs for name, runs in seen.items() if runs}


def report(kind: str, seen: dict[str, list[dict[str, float]]]) -> None:
    def middle(name: str, what: str) -> float:
        return statistics.median(run[what] for run in seen[name])

    print(f"{kind} to {SIDE} px, {cores()} cores, batches of {BATCH}, median of fresh processes")
    print(f"{'':26}{'images/s':>10}{'range':>16}{'first batch':>13}{'memory':>10}")
    for name, runs in seen.items():
        speeds = sorted(run["images_per_second"] for run in runs)
        print(
            f"{name:26}{middle(name, 'images_per_second'):>10.0f}"
            f"{f'{speeds[0]:.0f} - {speeds[-1]:.0f}':>16}{middle(name, 'start'):>11.2f} s"
            f"{middle(name, 'mb'):>7.0f} MB"
        )
    peers = [name for name in seen if name.startswith("DataLoader")]
    if "contrapose" in seen and peers:
        best = max(peers, key=lambda name: middle(name, "images_per_second"))
        pairs = zip(seen["contrapose"], seen[best], strict=False)
        ratio = statistics.median(a["images_per_second"] / b["images_per_second"] for a, b in pairs)
        print(f"contrapose / {best}: {ratio:.2f}x (median of the rounds' ratios)\n")


def measured(name: str, folder: Path) -> dict[str, float]:
    """Speed after the first batch, seconds until it comes, and the resident memory of all
    processes beside what torch alone takes."""
    os.environ["CONTRAPOSE_CACHE"] = "off"  # the first start
    before, begun = resident(), time.perf_counter()
    batches = contender(name)(folder)
    assert next(batches).shape == (BATCH, 3, SIDE, SIDE)
    first = time.perf_counter()
    count, most = 0, 0.0
    for batch in batches:
        count += len(batch)
        most = max(most, resident())
    speed = count / (time.perf_counter() - first)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images_per_second": speed, "start": first - begun, "mb": max(most, own) - before,
    }  # fmt: skip


def resident() -> float:
    """MB of memory of this process and those below it, shared pages counted once (Pss)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0.0
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def contender(name: str) -> Callable[[Path], Iterator[torch.Tensor]]:
    kind, _, how = name.partition(", ")
    if kind == "contrapose":
        return ours
    if kind == "SPDL":
        return spdl
    workers = max(1, cores() - (how == "a core less"))
    return lambda folder: loader(folder, workers, bilinear=how == "bilinear")


def ours(folder: Path) -> Iterator[torch.Tensor]:
    from contrapose.data import Prefetch, open_images

    images = open_images(folder, size=SIDE, memory=0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batches = order[: len(order) // BATCH * BATCH].view(-1, BATCH)
    prefetch = Prefetch(images, BATCH)
    for k, index in enumerate(batches):
        yield prefetch.take(index, [*batches[k + 1 : k + 3]])
    prefetch.close()


def decoder(bilinear: bool) -> Callable[[str], torch.Tensor]:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
    transform = Compose([Resize(SIDE, interpolation=mode), CenterCrop(SIDE), PILToTensor()])

    def decoded(path: str) -> torch.Tensor:
        with Image.open(path) as image:
            x: torch.Tensor = transform(image.convert("RGB"))
        return x

    return decoded


def paths(folder: Path) -> list[str]:
    from torchvision.datasets import ImageFolder

    return [path for path, _ in ImageFolder(str(folder)).samples]


class Files(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, folder: Path, bilinear: bool) -> None:
        self.paths, self.decoded = paths(folder), decoder(bilinear)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.decoded(self.paths[i])


def loader(folder: Path, workers: int, bilinear: bool) -> Iterator[torch.Tensor]:
    torch.set_num_threads(1)
    batches = torch.utils.data.DataLoader(
        Files(folder, bilinear), BATCH, shuffle=True, num_workers=workers, drop_last=True
    )
    yield from batches


def spdl(folder: Path) -> Iterator[torch.Tensor]:
    from spdl.pipeline import PipelineBuilder

    files, decoded = paths(folder), decoder(False)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    pipeline = (
        PipelineBuilder()
        .add_source(files[i] for i in order)
        .pipe(decoded, concurrency=cores())
        .aggregate(BATCH, drop_last=True)
        .pipe(torch.stack)
        .add_sink(2)
        .build(num_threads=cores())
    )
    with pipeline.auto_stop():
        yield from pipeline


if __name__ == "__main__":
    main()
