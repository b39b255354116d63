"""S2 section 3.2.3: older losses as special cases of SupCon, checked exactly.

    contrapose reproduce special_cases

Expect every identity to hold to rounding in float64, and the figure to show where a triplet loss of
margin 2 tau follows the contrastive one. It takes about 5 s at every scale.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contrapose import losses
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict

EXACT = 1e-12  # of float64, relative
TAU = 0.1
GAPS = tuple(x / 10 for x in range(-40, 21))  # (s_an - s_ap) / tau of the figure
IDENTITIES = ("self_supervised", "self_supervised_in", "n_pairs", "margin", "hinge")


def identities(folder: Path, *, seed: int) -> dict[str, Any]:
    """Largest relative differences of both sides on drawn unit vectors, float64."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return normalize(drawn, dim=-1)

    z, image = rows(24, 8), torch.arange(12).repeat(2)
    similar = (z @ z.T / TAU).fill_diagonal_(-math.inf)
    by_image = -similar.log_softmax(dim=1)[
        torch.arange(24), torch.arange(12).repeat(2) + torch.tensor([12, 0]).repeat_interleave(12)
    ].mean()
    query, key, other = rows(16, 8), rows(16, 8), rows(16, 8)
    every = query @ key.T
    n_pairs = (every - every.diag()[:, None]).exp().sum(dim=1).log().mean()
    # of one positive and one negative: both squared distances, and the linear form of the loss
    near, far = ((query - x).square().sum(dim=1) for x in (key, other))
    gap = ((query * other).sum(dim=1) - (query * key).sum(dim=1)) / TAU
    four, pair = torch.stack([query[0], key[0], other[0], other[1]]), torch.tensor([0, 0, 1, 1])
    hinge = losses.triplet(four, pair, margin=2 * TAU)
    cosine = (four @ four.T).tolist()
    by_hand = [
        max(0.0, 2 * TAU * (1 + (cosine[i][n] - cosine[i][p]) / TAU))
        for i, p, negatives in ((0, 1, (2, 3)), (1, 0, (2, 3)), (2, 3, (0, 1)), (3, 2, (0, 1)))
        for n in negatives
    ]
    of_one = (
        losses.info_nce(query, key, torch.arange(16), temperature=1.0),
        losses.n_pairs(query, key),
    )
    return {
        "self_supervised": _apart(losses.supcon(z, image, temperature=TAU), by_image),
        "self_supervised_in": _apart(losses.supcon_in(z, image, temperature=TAU), by_image),
        "n_pairs": max(_apart(x, n_pairs) for x in of_one),
        "margin": _apart(1 + gap, (near - far + 2 * TAU) / (2 * TAU)),
        "hinge": _apart(hinge, torch.tensor(sum(by_hand) / 8, dtype=torch.float64)),
        "exact_loss": [math.log1p(math.exp(x)) for x in GAPS],
        "first_step": [math.exp(x) for x in GAPS],
        "second_step": [1 + x for x in GAPS],
        "triplet": [max(0.0, 1 + x) for x in GAPS],
    }


def _apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / b.abs().clamp(min=1e-3)).max())


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        Job(name=f"identities-seed{s}", call=partial(identities, seed=s), facts={}, seed=s)
        for s in seeds
    ]


def holds(*names: str) -> Any:
    def test(results: Results) -> Verdict:
        worst = {n: max(results.values(n), default=math.nan) for n in names}
        if any(v != v for v in worst.values()):
            return Verdict.not_tested("no result yet")
        words = ", ".join(f"{n.replace('_', ' ')} {v:.1e}" for n, v in worst.items())
        return Verdict(max(worst.values()) < EXACT, f"largest relative difference: {words}")

    return test


def steps_apart(results: Results) -> Verdict:
    """Where the first Taylor step (log(1 + e^x) to e^x) is within 10 %, the second is not."""
    exact, first, second = (results.curve(n) for n in ("exact_loss", "first_step", "second_step"))
    if not exact:
        return Verdict.not_tested("no result yet")
    good = [
        [abs(a / e - 1) < 0.1 for a, e in zip(step, exact, strict=True)] for step in (first, second)
    ]
    reach = [[GAPS[k] for k, g in enumerate(row) if g] for row in good]
    ends = [f"{min(r):g} to {max(r):g}" if r else "nowhere" for r in reach]
    words = f"within 10 % of the loss: e^x for x from {ends[0]}, 1 + x for x {ends[1]}"
    both = [a and b for a, b in zip(*good, strict=True)]
    return Verdict(not any(both), words)


def curves(results: Results) -> Chart:
    names = {
        "exact_loss": "log(1 + e^x), the loss of one positive and one negative",
        "first_step": "e^x", "second_step": "1 + x, the triplet loss of margin 2 tau over 2 tau",
        "triplet": "max(0, 1 + x)",
    }  # fmt: skip
    found = {n: results.curve(n) for n in names}
    dash = {"first_step": "dot", "second_step": "dash"}
    traces = [
        line(names[n], GAPS, y, mode="lines", line={"dash": dash.get(n, "solid")})
        for n, y in found.items()
        if y
    ]
    return chart(traces, "x = (s_an - s_ap) / tau", "loss", yaxis={"range": [-1, 4]})


EXPERIMENT = Experiment(
    name="special_cases",
    title="Older losses as special cases",
    source="S2 section 3.2.3 (Khosla et al., NeurIPS 2020)",
    jobs=jobs,
    measures={n: "largest relative difference of both sides, float64" for n in IDENTITIES}
    | {n: "by x in GAPS" for n in ("exact_loss", "first_step", "second_step", "triplet")},
    claims=(
        Claim("With the other view as the only positive, both forms of SupCon are NT-Xent.",
              "S2 section 3.2.3 [P]", holds("self_supervised", "self_supervised_in")),
        Claim("With one positive of another image and tau = 1 it is the N-pairs loss.",
              "S2 section 3.2.3 [P]", holds("n_pairs")),
        Claim("1 + (s_an - s_ap) / tau is |a - p|^2 - |a - n|^2 + 2 tau over 2 tau: the triplet "
              "loss of margin 2 tau.", "S2 section 3.2.3 [P]; exact for unit vectors [D]",
              holds("margin", "hinge")),
        Claim("No x makes both Taylor steps to the triplet loss good to 10 %: the first needs a "
              "small e^x, the second a small x.", "this project's", steps_apart),
    ),
    figures=(
        Figure("From the contrastive loss to the triplet loss", curves,
               "The dashed line touches e^x at 0, where e^x is no longer near the loss."),
    ),
    costs={"smoke": "5 s", "cpu": "5 s", "paper": "5 s"},
    notes=(
        "Published for N-pairs trained on ImageNet, ResNet-50: 0.574, against 0.787 for SupCon "
        "(S2 section 4.1 [P]); it is not trained here.",
    ),
)  # fmt: skip
