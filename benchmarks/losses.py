"""NT-Xent, forward and backward: contrapose against plain torch and lightly on the same rows.

    python -m benchmarks.losses [--images 128 256 512 1024 4096] [--repeats 7] [--threads 2]

D = 128, temperature 0.1, two views an image, fp32. All run in turn `--repeats` times after a
warm-up; the table gives medians, the range, and the median of the ratios to ours. lightly is left
out, with a word, where it is not installed.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from contrapose import losses

TEMPERATURE = 0.1
Loss = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[128, 256, 512, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, D = 128, T = {TEMPERATURE}")
    print(f"{'rows':>10}  {'loss':14}{'median':>12}{'range':>24}{'ours is faster':>16}")
    for images in arguments.images:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * images, 128, generator=generator)
        rows(images, x, contenders(images), arguments.repeats)


def contenders(images: int) -> dict[str, Loss]:
    group = torch.arange(images).repeat(2)
    partner = (torch.arange(2 * images) + images) % (2 * images)

    def plain(z: Tensor) -> Tensor:
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return torch.nn.functional.cross_entropy(logits, partner)

    found: dict[str, Loss] = {
        "contrapose": lambda z: losses.nt_xent(z, group, temperature=TEMPERATURE),
        "plain torch": plain,
    }
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        print("lightly is not installed: pip install '.[peers]'")
    else:
        theirs = NTXentLoss(temperature=TEMPERATURE)
        found["lightly"] = lambda z: theirs(z[:images], z[images:])
    return found


def rows(images: int, x: Tensor, found: dict[str, Loss], repeats: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in found}
    values: dict[str, float] = {}
    often = max(1, 256 // images)  # small ones several times, to be above the clock
    for repeat in range(repeats + 1):
        for name, loss in found.items():
            z = torch.nn.functional.normalize(x, dim=1).requires_grad_()
            start = time.perf_counter()
            for _ in range(often):
                z.grad = None
                value = loss(z)
                value.backward()
            if repeat:  # the first warms up
                seconds[name].append((time.perf_counter() - start) / often)
            values[name] = float(value)
    assert max(values.values()) - min(values.values()) < 1e-3, values  # the same work
    for name, times in seconds.items():
        spread = f"{min(times) * 1e3:.2f} - {max(times) * 1e3:.2f} ms"
        ratio = statistics.median(b / a for a, b in zip(seconds["contrapose"], times, strict=True))
        faster = "" if name == "contrapose" else f"{ratio:.2f}x"
        middle = f"{statistics.median(times) * 1e3:.2f} ms"
        print(f"{f'2 x {images}':>10}  {name:14}{middle:>12}{spread:>24}{faster:>16}")


if __name__ == "__main__":
    main()
