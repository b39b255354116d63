"""S2 equations 2 to 5: SupCon with the sum over positives outside or inside the logarithm.

    contrapose reproduce in_and_out --scale cpu

Expect both gradients to equal the closed form to 1e-6 and hard pairs to weigh more than easy ones.
At scale cpu, about 1 min a seed on 2 cores, the sum outside has 0.407 against 0.452 inside at the
paper's temperature, and 0.473 against 0.464 at 0.5 (3 seeds). The paper's 11 points are of ImageNet
and ResNet-50.
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
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.supervised.protocol import (
    MEASURES,
    SCALES,
    SUPCON,
    SUPCON_IN,
    TAU,
    above,
    job,
)

CLASSES, EACH, WIDTH = 8, 12, 16  # of the drawn embeddings
COSINES = tuple(k / 10 for k in range(-9, 10))  # of one pair, the others as they are drawn
WHERE = ("out", "in")


def gradients(folder: Path, *, seed: int) -> dict[str, Any]:
    """The gradient of drawn embeddings against the closed form, and its length by hardness."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(CLASSES, 1, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(CLASSES, EACH, WIDTH, generator=generator, dtype=torch.float64)
    w = (centre + 1.5 * noise).flatten(0, 1)
    label = torch.arange(CLASSES).repeat_interleave(EACH)
    found: dict[str, Any] = {}
    values = {}
    for where, loss in zip(WHERE, (losses.supcon, losses.supcon_in), strict=True):
        found[f"error_{where}"] = _error(w, label, where)
        values[where] = float(loss(normalize(w, dim=1), label, temperature=TAU))
        for kind in ("positive", "negative"):
            pulls = [_pull(cosine, kind, where) for cosine in COSINES]
            found[f"{kind}_{where}"] = pulls
    return found | {f"loss_{where}": value for where, value in values.items()}


def closed_form(w: Tensor, label: Tensor, where: str) -> Tensor:
    """dL / dw of S2, rows of any length: with z = w / |w|, P the softmax of z_i.z_a / tau over A(i)
    and X that over P(i) (sum inside) or 1 / |P(i)| there (outside),

        dL / dz_i = 1 / (tau N) sum_j { (P_ij - X_ij) + (P_ji - X_ji) } z_j,
        dL / dw_i = (dL / dz_i - (z_i . dL / dz_i) z_i) / |w_i|

    The first summand is the paper's, of anchor i with the others held fixed; the second is the part
    of z_i in the terms of the other anchors.
    """
    z = normalize(w, dim=1)
    apart = ~torch.eye(len(w), dtype=torch.bool)
    positive = apart & (label[:, None] == label[None, :])
    share = torch.where(apart, (z @ z.T / TAU).exp(), 0.0)
    of_positives = positive.to(w) if where == "out" else share * positive
    p, x = (m / m.sum(dim=1, keepdim=True) for m in (share, of_positives))
    by_z = ((p - x) + (p - x).T) @ z / (TAU * len(w))
    along = (by_z * z).sum(dim=1, keepdim=True)
    found: Tensor = (by_z - along * z) / w.norm(dim=1, keepdim=True)
    return found


def _error(w: Tensor, label: Tensor, where: str) -> float:
    """Largest relative distance, over rows, of the library's gradient from the form."""
    loss = losses.supcon if where == "out" else losses.supcon_in
    row = w.clone().requires_grad_()
    found = torch.autograd.grad(loss(normalize(row, dim=1), label, temperature=TAU), row)[0]
    expected = closed_form(w, label, where)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def _pull(cosine: float, kind: str, where: str) -> float:
    """Length of the part of the gradient that one pair of this cosine adds, for an anchor with
    another positive at cosine 0.5 and twenty negatives at 0.3."""
    positive = torch.tensor([0.5, cosine if kind == "positive" else 0.5], dtype=torch.float64)
    negative = torch.full((20,), 0.3, dtype=torch.float64)
    if kind == "negative":
        negative[0] = cosine
    p = (torch.cat([positive, negative]) / TAU).softmax(dim=0)
    if kind == "negative":
        return float(p[2]) * math.sqrt(1 - cosine**2) / TAU
    x = torch.tensor(0.5) if where == "out" else (positive / TAU).softmax(dim=0)[1]
    return abs(float(p[1] - x)) * math.sqrt(1 - cosine**2) / TAU


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    for seed in seeds:
        call = partial(gradients, seed=seed)
        facts = {"kind": "gradients", "method": None, "tau": TAU}
        found.append(Job(name=f"gradients-seed{seed}", call=call, facts=facts, seed=seed))
        for method in (SUPCON, SUPCON_IN):
            for tau in sorted({TAU, SCALES[scale].tau(method)}):
                facts = {"kind": "training", "tau": tau}
                found.append(
                    job(
                        scale=scale, seed=seed, name=f"{method}-tau{tau:g}", facts=facts,
                        method=method, temperature=tau,
                    )
                )  # fmt: skip
    return found


def form(results: Results) -> Verdict:
    worst = [max(results.values(f"error_{w}", kind="gradients"), default=math.nan) for w in WHERE]
    if any(map(math.isnan, worst)):
        return Verdict.not_tested("no gradients yet")
    words = f"largest relative error {worst[0]:.1e} outside, {worst[1]:.1e} inside, float64"
    return Verdict(max(worst) < 1e-6, words)


def jensen(results: Results) -> Verdict:
    out, inside = (results.values(f"loss_{w}", kind="gradients") for w in WHERE)
    if not out:
        return Verdict.not_tested("no losses yet")
    words = f"out {out[0]:.4f}, in {inside[0]:.4f} on {CLASSES * EACH} drawn rows"
    return Verdict(all(i <= o for o, i in zip(out, inside, strict=True)), words)


def hard_weigh_more(results: Results) -> Verdict:
    """The pull of a positive at cosine 0 against one at 0.9; of a negative against one at -0.9."""
    kinds = ("positive", "negative")
    by = {k: results.curve(f"{k}_out", kind="gradients") for k in kinds}
    if not all(by.values()):
        return Verdict.not_tested("no gradients yet")
    middle = COSINES.index(0.0)
    easy = {"positive": -1, "negative": 0}
    pairs = [(c[middle], c[easy[k]]) for k, c in by.items()]
    words = "; ".join(
        f"{k}: hard {h:.2g}, easy {e:.2g}" for k, (h, e) in zip(by, pairs, strict=True)
    )
    return Verdict(all(h > e for h, e in pairs), words)


def out_above_in(results: Results) -> Verdict:
    """At the paper's temperature, and at that which suits the network of the scale."""
    found = results.where(kind="training")
    if not found.rows:
        return Verdict.not_tested("no training yet")
    return all_of(
        *(
            above(found, {"method": SUPCON, "tau": tau}, {"method": SUPCON_IN, "tau": tau})
            for tau in found.column("tau")
        )
    )


def pulls(results: Results) -> Chart:
    traces = []
    for kind in ("positive", "negative"):
        for where in WHERE:
            curve = results.curve(f"{kind}_{where}", kind="gradients")
            traces += [line(f"{kind}, sum {where}side", COSINES, curve)] if curve else []
    return chart(traces, "cosine of the pair", "length of its part of the gradient")


EXPERIMENT = Experiment(
    name="in_and_out",
    title="The sum over positives outside or inside the logarithm",
    source="S2 equations 2 to 5, table 1 (Khosla et al., NeurIPS 2020)",
    jobs=jobs,
    measures=MEASURES
    | {
        **{f"error_{w}": "largest relative error of the gradient to the form" for w in WHERE},
        **{f"loss_{w}": "the loss on drawn embeddings" for w in WHERE},
        **{f"{k}_{w}": "length by COSINES" for k in ("positive", "negative") for w in WHERE},
    },
    published=(
        Published(
            "accuracy", {"method": SUPCON, "tau": TAU}, 0.787, "S2 table 1, ImageNet, ResNet-50 [P]"
        ),
        Published(
            "accuracy",
            {"method": SUPCON_IN, "tau": TAU},
            0.674,
            "S2 table 1, ImageNet, ResNet-50 [P]",
        ),
    ),
    claims=(
        Claim("The gradient is the paper's closed form, to 1e-6.", "S2 appendix [P]", form),
        Claim("The sum inside is at most the sum outside.", "S2, Jensen [P]", jensen),
        Claim(
            "Hard positives and negatives pull more than easy ones, with the sum outside.",
            "S2 section 3.2 [P]",
            hard_weigh_more,
        ),
        Claim("Trained with the sum outside, accuracy is higher.", "S2 table 1 [P]", out_above_in),
    ),
    figures=(
        Figure(
            "What one pair adds to the gradient, by its cosine",
            pulls,
            "Nothing at cosine 1 and -1, where the pull points out of the sphere. Outside, a far "
            "positive pulls most; inside, it is left to the nearer one.",
        ),
    ),
    costs={"smoke": "12 s on 2 cores", "cpu": "about 1 min a seed on 2 cores"},
    notes=("The drawn embeddings are this project's: 8 classes of 12 rows around a centre each.",),
)
