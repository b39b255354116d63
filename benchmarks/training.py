"""Images per second of a whole SimCLR training step: contrapose against lightly's pieces.

    python -m benchmarks.training [--rounds 3] [--steps 4] [--out training.json]

ResNet-18 with the CIFAR stem, 32 px, two views, batch 256, SGD, the same number of threads. lightly
contributes its transform, collation, projection head and loss in a plain loop, with its loader at
0, 1 and 2 workers; the best of them counts. Every contender runs in a fresh process, in turn, so
that memory is its own and drifts of the machine hit all alike. Needs `pip install .[peers]`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

CONTENDERS = {
    "contrapose bf16": ("ours", "bf16", 0),
    "contrapose fp32": ("ours", "fp32", 0),
    "lightly fp32, 0 workers": ("lightly", "fp32", 0),
    "lightly fp32, 1 worker": ("lightly", "fp32", 1),
    "lightly fp32, 2 workers": ("lightly", "fp32", 2),
    "lightly bf16, 2 workers": ("lightly", "bf16", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a process")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--out", help="a JSON file for the figures")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(one(arguments)))
        return
    names = [n for n in CONTENDERS if not arguments.only or arguments.only in n]
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            seen[name].append(fresh_process(name))
    report(seen, arguments)


def fresh_process(name: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training", "--contender", name]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(seen: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    def middle(name: str, what: str) -> float:
        return statistics.median(run[what] for run in seen[name])

    print(
        f"torch {torch.__version__}, lightly {version('lightly')}, {arguments.device}, "
        f"{arguments.threads} threads, {platform.machine()}; median of {arguments.rounds} fresh "
        f"processes of {arguments.steps} timed steps of {arguments.batch} images, two views, 32 px"
    )
    print(f"{'':26}{'images/s':>10}{'range':>18}{'peak memory':>14}")
    for name, runs in seen.items():
        speeds = sorted(run["images_per_second"] for run in runs)
        spread = f"{speeds[0]:.1f} - {speeds[-1]:.1f}"
        memory = f"{middle(name, 'peak_mb'):,.0f} MB"
        print(f"{name:26}{middle(name, 'images_per_second'):>10.1f}{spread:>18}{memory:>14}")
    lightly = [n for n in seen if n.startswith("lightly")]
    ratios = {}
    if lightly:
        best = max(lightly, key=lambda name: middle(name, "images_per_second"))
        for name in seen:
            if name.startswith("contrapose"):
                pairs = zip(seen[name], seen[best], strict=True)
                each = [a["images_per_second"] / b["images_per_second"] for a, b in pairs]
                ratios[f"{name} / {best}"] = statistics.median(each)
        for name, ratio in ratios.items():
            print(f"{name}: {ratio:.2f}x (median of the rounds' ratios)")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"runs": seen, "ratios": ratios, "torch": torch.__version__}, file, indent=1)


def one(arguments: argparse.Namespace) -> dict[str, float]:
    kind, precision, workers = CONTENDERS[arguments.contender]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    bf16 = precision == "bf16"
    steps = arguments.steps + 1  # the first warms up
    if kind == "ours":
        run = ours(bf16, arguments.device, steps, arguments.batch)
    else:
        run = peer(bf16, arguments.device, steps, workers, arguments.batch)
    next(run)
    synchronise(arguments.device)
    start, count = time.perf_counter(), 0
    for _ in run:
        count += arguments.batch
    synchronise(arguments.device)
    seconds = time.perf_counter() - start
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * workers
    return {"images_per_second": count / seconds, "peak_mb": (own + children) / 1024}


def ours(bf16: bool, device: str, steps: int, batch_size: int) -> Iterator[None]:
    """The library's own step, as `contrapose train cifar10 --encoder resnet18` takes it."""
    from contrapose import adapt
    from contrapose.data import open_images
    from contrapose.encoders import fastest_layout
    from contrapose.machine import freed_memory_kept, on_device
    from contrapose.recipes import recipe_for
    from contrapose.training import optim
    from contrapose.training.global_batchnorm import exactly
    from contrapose.training.objective import Batch, objective_of
    from contrapose.training.step import step

    images = open_images(pixels(steps * batch_size)).to(torch.device(device))
    recipe = recipe_for("simclr", 32, 3)
    encoder = adapt.build(recipe, images).to(device).train()
    exactly(fastest_layout(encoder, 32, bf16=bf16))
    optimizer = partial(optim.sgd, momentum=0.9)(encoder, lr=0.03)
    generator = torch.Generator(device).manual_seed(0)
    objective = objective_of(recipe, encoder, len(images))
    with freed_memory_kept():
        for i in range(steps):
            index = torch.arange(i * batch_size, (i + 1) * batch_size)
            batch = Batch(images.batch(index), on_device(index, device))
            step(encoder, optimizer, objective, batch, recipe, generator, bf16=bf16)
            yield


def peer(bf16: bool, device: str, steps: int, workers: int, batch_size: int) -> Iterator[None]:
    """lightly's transform, head and loss around torchvision's ResNet-18 with the CIFAR stem."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision.models import resnet18

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    count = steps * batch_size

    class Views(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.image = [Image.fromarray(x) for x in pixels(count).permute(0, 2, 3, 1).numpy()]

        def __len__(self) -> int:
            return len(self.image)

        def __getitem__(self, i: int) -> Any:
            return transform(self.image[i])

    backbone = resnet18()
    backbone.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    backbone.maxpool = backbone.fc = torch.nn.Identity()
    head = SimCLRProjectionHead(512, 512, 128)
    model = torch.nn.Sequential(backbone, head).to(device)
    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    loader = DataLoader(Views(), batch_size, num_workers=workers, persistent_workers=workers > 0)
    model.train()
    for a, b in loader:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            za, zb = model(a.to(device)), model(b.to(device))
            loss = criterion(za, zb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        yield


def pixels(count: int) -> torch.Tensor:
    """CIFAR-10 where CONTRAPOSE_DATA has it, else noise: the arithmetic is the same."""
    from contrapose.data import open_images

    try:
        return open_images("cifar10").batch(torch.arange(count))
    except (FileNotFoundError, ValueError):
        return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
