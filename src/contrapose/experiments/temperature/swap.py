"""S1 figure 1: exchanging two images together with their views changes no loss.

    contrapose reproduce swap

Expect losses that the exchange changes by less than rounding, 1e-16 of their value, and the control
by 0.003 and more, after about 5 s.

A contrastive loss does not depend on which image is where: if image j and all its views exchange
places with image k and its views, the value stays the same. So the loss cannot distinguish an
arrangement that keeps classes together from one that does not.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from contrapose.experiments.evidence import spread
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.losses import nt_xent

TEMPERATURES = (0.07, 0.2, 0.3, 0.7, 1.0)  # those that S1 names
IMAGES, NOISE = 512, 2.0  # noise of a view, in the digits' 0 to 16


def measure(folder: Path, *, temperature: float, seed: int) -> dict[str, Any]:
    """NT-Xent of two noisy views of digits before and after the exchange of two random images.

    Exchange: the embeddings of image j and of image k change places, all views of each. Control:
    only one view of each does, which separates positives. In float64.
    """
    from sklearn.datasets import load_digits  # here, so that listing experiments stays quick

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(load_digits().data[:IMAGES])
    noise = torch.randn(2, *pixels.shape, generator=generator, dtype=torch.float64)
    z = F.normalize(pixels + NOISE * noise - pixels.mean(dim=0), dim=2)  # [V B D]
    group = torch.arange(IMAGES).repeat(2)
    j, k = torch.randperm(IMAGES, generator=generator)[:2].tolist()
    together, torn = z.clone(), z.clone()
    together[:, [j, k]] = z[:, [k, j]]
    torn[0, [j, k]] = z[0, [k, j]]

    def loss(rows: torch.Tensor) -> float:
        return float(nt_xent(rows.flatten(0, 1), group, temperature=temperature))

    before = loss(z)
    return {
        "loss": before,
        "change": abs(loss(together) - before),
        "change_torn": abs(loss(torn) - before),
    }


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        Job(
            name=f"tau{temperature}-seed{seed}",
            call=partial(measure, temperature=temperature, seed=seed),
            facts={"tau": temperature},
            seed=seed,
        )
        for temperature in TEMPERATURES
        for seed in seeds
    ]


def unchanged(results: Results) -> Verdict:
    """Holds if no loss changes by more than rounding in float64."""
    change = [row["change"] for row in results.rows]
    relative = max(row["change"] / row["loss"] for row in results.rows)
    words = (
        f"largest change of {len(change)} losses at {len(results.column('tau'))} temperatures: "
        f"{max(change):.1e}, {relative:.1e} of the loss (float64 rounds at 1.1e-16)"
    )
    return Verdict(relative < 1e-12, words)


def torn_changes(results: Results) -> Verdict:
    """Holds if every loss changes by more than a millionth."""
    change = [row["change_torn"] for row in results.rows]
    words = f"change of the loss {spread(change).partition(' (')[0]}, smallest {min(change):.1e}"
    return Verdict(min(change) > 1e-6, f"{words}, {len(change)} losses")


def draw(results: Results) -> dict[str, Any]:
    tau = results.column("tau")
    bars = [("exchanged together", "change"), ("views torn apart", "change_torn")]
    return {
        "data": [
            {
                "type": "bar",
                "name": name,
                "x": [f"\N{GREEK SMALL LETTER TAU} {t}" for t in tau],
                "y": [max(results.mean(measure, tau=t), 1e-17) for t in tau],
            }
            for name, measure in bars
        ],
        "layout": {
            "yaxis": {"type": "log", "title": {"text": "change of the loss"}, "exponentformat": "e"}
        },
    }


EXPERIMENT = Experiment(
    name="swap",
    title="Exchanging two images with their views changes no loss",
    source="S1 figure 1 (Wang & Liu, CVPR 2021)",
    jobs=jobs,
    measures={
        "loss": "NT-Xent of 512 digits, two views each",
        "change": "|change of the loss| when two images change places, all their views with them",
        "change_torn": "|change of the loss| when one view of each changes places alone",
    },
    claims=(
        Claim(
            "Exchanging two images together with all their views leaves the loss as it is.",
            "S1 figure 1 [S1]",
            unchanged,
        ),
        Claim(
            "Control: exchanging one view of each alone changes it.", "this project", torn_changes
        ),
    ),
    figures=(
        Figure(
            "Change of the loss by exchange",
            draw,
            "Logarithmic. Rounding alone moves the loss when images change places with all "
            "their views; tearing views apart moves it visibly.",
        ),
    ),
    costs={"smoke": "5 s"},
    notes=(
        "S1 draws the exchange on one sphere without numbers; the images (digits), the number of "
        "them, the noise that makes views, and the control are this project's choice.",
        "Embeddings are the centred pixels themselves: the statement is about the loss, whatever "
        "the encoder.",
    ),
)
