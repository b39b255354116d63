"""S3 figure 7: larger networks gain more without labels than with them.

    contrapose reproduce depth_and_width --scale cpu --jobs 2

Expect at scale cpu, after about 5 min a seed on 2 cores, a wider network to be better (0.366 to
0.444 with four convolutions) and a deeper one to be worse (0.346 to 0.420 with eight).
"""

from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Any

from contrapose.encoders import resnet18, resnet34, resnet50, resnet101, resnet152
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import above, decided, difference
from contrapose.experiments.simclr.protocol import MEASURES, SIMCLR, SUPERVISED, job

WIDTHS = (1, 2, 4)
DEPTHS: dict[str, tuple[int, ...]] = {
    "smoke": (4,), "cpu": (4, 8), "paper": (18, 34, 50, 101, 152),
}  # fmt: skip
RESNETS: dict[int, Any] = {
    18: resnet18, 34: resnet34, 50: resnet50, 101: resnet101, 152: resnet152,
}  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")  # a line's, by depth
PUBLISHED = {(SIMCLR, 1): 0.693, (SIMCLR, 2): 0.742, (SIMCLR, 4): 0.765, (SUPERVISED, 1): 0.765}


def size_of(of: Any) -> dict[str, float]:
    """Millions of weights of the backbone."""
    return {"parameters": sum(p.numel() for p in of.encoder.backbone.parameters()) / 1e6}


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    for seed in seeds:
        make = partial(job, scale=scale, seed=seed, measures=(size_of,))
        for method in (SIMCLR, SUPERVISED):
            for depth in DEPTHS[scale]:
                for width in WIDTHS[:2] if scale == "smoke" else WIDTHS:
                    facts = {"method": method, "depth": depth, "width": width}
                    options: dict[str, Any] = {"width": width / 2, "repeats": depth // 4}
                    if scale == "paper":
                        net = partial(RESNETS[depth], channels=3, width_multiple=width)
                        options = {"changes": {"backbone": net}}
                    name = f"{method}-{depth}layers-{width}x"
                    found.append(make(name=name, facts=facts, method=method, **options))
    return found


def _at(results: Results, method: str, *, large: bool) -> dict[str, Any]:
    which = -1 if large else 0
    return {
        "method": method,
        "depth": results.column("depth")[which],
        "width": results.column("width")[which],
    }


def wider_is_better(results: Results) -> Verdict:
    widths = results.column("width")
    return all_of(
        *(
            above(
                results,
                {"method": SIMCLR, "depth": depth, "width": widths[-1]},
                {"method": SIMCLR, "depth": depth, "width": widths[0]},
            )
            for depth in results.column("depth")
        )
    )


def deeper_is_better(results: Results) -> Verdict:
    depths = results.column("depth")
    if len(depths) < 2:
        return Verdict.not_tested("one depth")
    return all_of(
        *(
            above(
                results,
                {"method": SIMCLR, "depth": depths[-1], "width": width},
                {"method": SIMCLR, "depth": depths[0], "width": width},
            )
            for width in results.column("width")
        )
    )


def gap_shrinks(results: Results) -> Verdict:
    """What labels are ahead by, in the smallest network against the largest."""
    gaps = []
    for large in (False, True):
        taught, alone = (_at(results, m, large=large) for m in (SUPERVISED, SIMCLR))
        one, two = (results.by_seed("accuracy", **facts) for facts in (taught, alone))
        if not one.keys() & two.keys():
            return Verdict.not_tested("the smallest or the largest network lacks a result")
        gaps.append(difference(one, two, results.mean("n_test", **taught)))
    (small, e1), (large_, e2) = gaps
    words = f"supervised over SimCLR: {small:+.3f} ({e1:.3f}) in the smallest network, "
    words += f"{large_:+.3f} ({e2:.3f}) in the largest; published 0.068 at 1x, 0.018 at 4x"
    return decided(small - large_, (e1**2 + e2**2) ** 0.5, words)


def by_size(results: Results) -> Chart:
    traces = []
    for method in (SIMCLR, SUPERVISED):
        for dash, depth in zip(cycle(DASHES), results.column("depth"), strict=False):
            rows = results.where(method=method, depth=depth)
            x, y = (rows.means(m, "width") for m in ("parameters", "accuracy"))
            both = [w for w in x if w in y]
            if both:
                more: dict[str, Any] = {"text": [f"{w}x" for w in both], "legendgroup": method}
                more |= {"mode": "lines+markers+text", "textposition": "top center"}
                more |= {"line": {"dash": dash}}
                name = f"{method}, {depth} layers"
                traces.append(line(name, [x[w] for w in both], [y[w] for w in both], **more))
    return chart(traces, "millions of weights", "accuracy", xaxis={"type": "log"})


EXPERIMENT = Experiment(
    name="depth_and_width",
    title="Depth and width, with and without labels",
    source="S3 figure 7 (Chen et al., ICML 2020)",
    jobs=jobs,
    measures=MEASURES | {"parameters": "millions of weights of the backbone"},
    published=tuple(
        Published(
            "accuracy", {"method": method, "depth": 50, "width": width}, value,
            "S3 table 6 and figure 1, ImageNet, 1,000 epochs [P]",
        )
        for (method, width), value in PUBLISHED.items()
    ),
    claims=(
        Claim("SimCLR is better with a wider network.", "S3 figure 7 [P]", wider_is_better),
        Claim("SimCLR is better with a deeper network.", "S3 figure 7 [P]", deeper_is_better),
        Claim("What labels are ahead by shrinks with the size.", "S3 figure 7 [P]", gap_shrinks),
    ),
    figures=(
        Figure("Accuracy by the size of the network", by_size,
               "All rise; without labels more steeply."),
    ),
    costs={
        "smoke": "8 s on 2 cores",
        "cpu": "about 5 min a seed on 2 cores with --jobs 2",
        "paper": "30 runs on ImageNet, 100 epochs, on accelerators (not timed)",
    },
    notes=(
        "cpu: four or eight convolutions (one or two of each width), the last with 32, 64 or 128 "
        "channels. Both methods have as many epochs and the same views.",
        "Most points of figure 7 are in a picture only, and were not found.",
    ),
)  # fmt: skip
