"""S3 section 2.2: LARS against SGD, and the leak through local batch norm.

    contrapose reproduce optimiser_and_norm --scale cpu --jobs 2

Expect at scale cpu, after about 3 min a seed on 2 cores, local batch norm to leak (the other view
found 0.140 more often where it shares statistics) and to cost 0.043 of accuracy (0.377 and 0.420
global; shuffled 0.409), and LARS to be no better than SGD at a batch of 512.

On several processes with batch norms of their own, both views of an image share their process's
statistics, so that these tell which rows belong together. Here a batch is embedded in parts, as
many processes would. S3 computes statistics over all of them; MoCo shuffles one view.
"""

import copy
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from contrapose.augment import views as make_views
from contrapose.encoders import mlp, resnet50, small_conv
from contrapose.evaluation.geometry import contrastive_accuracy
from contrapose.experiments.charts import Chart, bars, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import above, decided
from contrapose.experiments.simclr.protocol import DIM, MEASURES, SCALES, job
from contrapose.experiments.trained import Trained
from contrapose.training import optim

SGD, LARS = "SGD", "LARS"
GLOBAL, LOCAL, SHUFFLED = "global", "local", "shuffled"
RATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {  # of the batch, tried for each optimiser
    "smoke": {SGD: (0.1,), LARS: (1.0,)},
    "cpu": {SGD: (0.05, 0.2, 0.8), LARS: (1.0, 3.0, 9.0)},
    "paper": {SGD: (0.8, 1.6, 3.2), LARS: (2.4, 4.8, 9.6)},
}
BATCHES = {"smoke": (64,), "cpu": (64, 512), "paper": (256, 4096)}
PARTS = {"smoke": 4, "cpu": 8, "paper": 32}
LOOKED_AT = 8  # batches of which the leak is measured


class InParts(nn.Module):
    """A network that embeds a batch of two views in parts, as processes with batch norms of their
    own do: part k has images k B / P to (k + 1) B / P, both views of them.

    shuffled: the second view is dealt to the parts at random, so that the two views of an image
    need not meet. In evaluation, and for rows that do not divide, it is the network as it is.
    """

    def __init__(self, network: nn.Module, parts: int, shuffled: bool) -> None:
        super().__init__()
        self.network, self.parts, self.shuffled = network, parts, shuffled
        for name in ("width", "unit_length"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def forward(self, x: Tensor) -> Tensor:
        half = len(x) // 2
        if not self.training or len(x) % 2 or half % self.parts or half < 2 * self.parts:
            whole: Tensor = self.network(x)
            return whole
        order = torch.arange(half)
        second = torch.randperm(half) if self.shuffled else order
        rows = torch.cat([order, half + second]).to(x.device)
        places = torch.arange(half).view(self.parts, -1)
        found = [self.network(x[rows[torch.cat([p, half + p])]]) for p in places]
        made = [torch.cat([part.chunk(2)[v] for part in found]) for v in (0, 1)]
        joined = torch.cat(made)
        out: Tensor = torch.empty_like(joined).index_copy(0, rows, joined)
        return out


def conv_in_parts(*, channels: int, width: int, parts: int, shuffled: bool) -> nn.Module:
    """`small_conv` in parts."""
    return InParts(small_conv(channels=channels, width=width), parts, shuffled)


def resnet_in_parts(*, channels: int, parts: int, shuffled: bool) -> nn.Module:
    """`resnet50` in parts."""
    return InParts(resnet50(channels=channels), parts, shuffled)


def mlp_in_parts(width: int, *, dim: int, parts: int, shuffled: bool) -> nn.Module:
    """The projection head in parts, dealt anew if shuffled."""
    return InParts(mlp(width, dim=dim), parts, shuffled)


def leak(of: Trained, *, parts: int) -> dict[str, float]:
    """How much easier the task is made by what a part's statistics tell, in training mode.

    The share of rows whose nearest other row is their other view, where both views of an image are
    in one part; less that share where the second view is shuffled. Rows, weights and the size of
    parts are the same, so that the difference is what the views have from sharing statistics.
    """
    network: Any = copy.deepcopy(of.encoder).train()
    for name in ("backbone", "head"):
        module = getattr(network, name)
        if not isinstance(module, InParts):
            setattr(network, name, InParts(module, parts, False).train())
    batch = min(of.recipe.batch_size, len(of.train) // LOOKED_AT)
    batch -= batch % parts
    generator = torch.Generator(of.device).manual_seed(of.seed)
    group = torch.arange(batch).repeat(2)
    found = {LOCAL: 0.0, SHUFFLED: 0.0}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(of.seed)
        for k in range(LOOKED_AT):
            index = torch.arange(k * batch, (k + 1) * batch)
            seen = make_views(of.recipe.policy, of.train.batch(index).to(of.device), generator)
            for norm in found:
                network.backbone.shuffled = network.head.shuffled = norm == SHUFFLED
                z = network(seen.flatten(0, 1))[1].cpu()
                found[norm] += contrastive_accuracy(z, group) / LOOKED_AT
    return {
        "found_together": found[LOCAL], "found_apart": found[SHUFFLED],
        "leak": found[LOCAL] - found[SHUFFLED], "n_leak": 2 * LOOKED_AT * batch,
    }  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    at = SCALES[scale]
    parts = PARTS[scale]
    decay = 1e-6 if scale == "paper" else 1e-4
    optimisers = {
        SGD: partial(optim.sgd, momentum=0.9, weight_decay=decay),
        LARS: partial(optim.lars, weight_decay=decay),
    }
    for seed in seeds:
        make = partial(job, scale=scale, seed=seed)
        for batch in BATCHES[scale]:
            for name, optimiser in optimisers.items():
                for rate in RATES[scale][name]:
                    facts: dict[str, Any] = {
                        "optimiser": name, "batch": batch, "rate": rate, "norm": GLOBAL,
                    }  # fmt: skip
                    changes: dict[str, Any] = {
                        "optimizer": optimiser, "batch_size": batch, "lr": rate,
                        "scaling": optim.no_scaling,
                    }  # fmt: skip
                    words = f"{name}-batch{batch}-rate{rate:g}"
                    found.append(make(name=words, facts=facts, changes=changes))
        for norm in (GLOBAL, LOCAL, SHUFFLED):
            facts = {"optimiser": "AdamW", "batch": None, "rate": None, "norm": norm}
            changes = {}
            if norm != GLOBAL:
                options: dict[str, Any] = {"parts": parts, "shuffled": norm == SHUFFLED}
                net: Any = partial(resnet_in_parts, channels=3, **options)
                dim = 128
                if at.width is not None:
                    channels = 1 if at.data == "digits" else 3
                    dim = DIM
                    net = partial(conv_in_parts, channels=channels, width=at.width, **options)
                head = partial(mlp_in_parts, dim=dim, **options)
                changes = {"backbone": net, "head": head}
            measures = (partial(leak, parts=parts),)
            found.append(make(name=f"norm-{norm}", facts=facts, changes=changes, measures=measures))
    return found


def _best(results: Results, optimiser: str, batch: int) -> dict[str, Any]:
    at = {"optimiser": optimiser, "batch": batch}
    rates = [r for r in results.where(**at).column("rate") if r is not None]
    means = results.where(**at).means("accuracy", "rate", rates)
    return at | {"rate": max(means, key=lambda r: means[r])} if means else at


def lars_at_large(results: Results) -> Verdict:
    if results.missing:
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    batch = max(b for b in results.column("batch") if b is not None)
    return above(results, _best(results, LARS, batch), _best(results, SGD, batch))


def _leak(results: Results, norm: str) -> tuple[float, float] | None:
    """(the leak of encoders trained with this norm, its standard error), or None."""
    rows = results.where(optimiser="AdamW", norm=norm).rows
    if not rows:
        return None
    both = [statistics.fmean(r[m] for r in rows) for m in ("found_together", "found_apart")]
    n = sum(r["n_leak"] for r in rows)
    return both[0] - both[1], (sum(p * (1 - p) for p in both) / n) ** 0.5


def local_leaks(results: Results) -> Verdict:
    if (found := _leak(results, LOCAL)) is None:
        return Verdict.not_tested("no result with local batch norm")
    gap, error = found
    words = f"other view found {gap:+.3f} ({error:.3f}) more often than with shuffled statistics"
    return decided(gap, error, words)


def leak_mended(results: Results) -> Verdict:
    """The leak of encoders trained with global or shuffled statistics is below half of that."""
    gaps = {norm: _leak(results, norm) for norm in (LOCAL, GLOBAL, SHUFFLED)}
    known = {norm: gap for norm, gap in gaps.items() if gap is not None}
    if len(known) < len(gaps):
        return Verdict.not_tested("not every norm has a result")
    words = ", ".join(f"{norm} {gap:+.3f} ({error:.3f})" for norm, (gap, error) in known.items())
    most = max((known[norm] for norm in (GLOBAL, SHUFFLED)), key=lambda found: found[0])
    error = (known[LOCAL][1] ** 2 / 4 + most[1] ** 2) ** 0.5
    return decided(known[LOCAL][0] / 2 - most[0], error, words)


def global_over_local(results: Results) -> Verdict:
    here, there = ({"optimiser": "AdamW", "norm": norm} for norm in (GLOBAL, LOCAL))
    return above(results, here, there)


def by_rate(results: Results) -> Chart:
    traces = []
    for optimiser in (SGD, LARS):
        for batch in (b for b in results.column("batch") if b is not None):
            at = results.where(optimiser=optimiser, batch=batch)
            rates = [r for r in at.column("rate") if r is not None]
            means = at.means("accuracy", "rate", rates)
            name = f"{optimiser}, batch {batch}"
            traces += [line(name, [*means], [*means.values()])] if means else []
    return chart(traces, "rate", "accuracy", xaxis={"type": "log"})


def leaks(results: Results) -> Chart:
    return bars(results.where(optimiser="AdamW"), "leak", "norm", "found more often")


EXPERIMENT = Experiment(
    name="optimiser_and_norm",
    title="LARS and SGD; global, local and shuffled batch norm",
    source="S3 sections 2.2 and 2.3 (Chen et al., ICML 2020); shuffling: MoCo, arXiv 1911.05722",
    jobs=jobs,
    measures=MEASURES
    | {
        "found_together": "share of rows that find their other view, both views in one part",
        "found_apart": "that share with the second view shuffled over the parts",
        "leak": "the difference of both",
        "n_leak": "rows",
    },
    claims=(
        Claim("At a large batch LARS is better than SGD, both tuned.", "S3 section 2.2 [P]",
              lars_at_large),
        Claim("Local batch norm leaks: the other view is found more often where both views share "
              "their part's statistics.",
              "S3 section 2.2 [P]; the measure is this project's", local_leaks),
        Claim("An encoder trained with global or shuffled statistics uses less than half as much "
              "of it.",
              "S3 section 2.2, MoCo section 3.3 [P]", leak_mended),
        Claim("Global batch norm is better than local.", "S3 section 2.2 [P]", global_over_local),
    ),
    figures=(
        Figure("Accuracy by rate", by_rate, "Each optimiser at its best rate is what counts."),
        Figure("The leak", leaks, "What shared statistics add to the accuracy of the task, "
               "by how the encoder was trained."),
    ),
    costs={
        "smoke": "10 s on 2 cores",
        "cpu": "about 3 min a seed on 2 cores with --jobs 2",
        "paper": "15 runs of ResNet-50 on ImageNet, 100 epochs, on accelerators (not timed)",
    },
    notes=(
        "Parts of a batch stand for processes: the same statistics, as a test on two processes "
        "shows. cpu: 8 parts of 16 images.",
    ),
)  # fmt: skip
