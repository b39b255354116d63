"""The training curves of a report: quantities, how to read them, and why one may be missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrapose.report.charts import PlotlyFigure, curve_chart, path_chart
from contrapose.report.numbers import short
from contrapose.report.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small plot: title, last values, a sentence, and a figure or the reason for its
    absence."""

    id: str
    title: str
    equation: str
    reading: str
    last: tuple[str, ...]
    figure: PlotlyFigure | None
    missing: str


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    id: str
    title: str
    reading: str
    lines: tuple[tuple[str, str, str], ...]  # metric, words, dash
    equation: str = ""
    missing: str = "not recorded"  # "": a panel that is left out where there is no record
    log: bool = False
    share: bool = False


QUANTITIES = (
    _Quantity(
        id="loss",
        title="Loss",
        reading="Should fall from where it began. The dotted line is the loss of one embedding "
        "for all images: at a low temperature an encoder that learns may stay above it.",
        equation="chance for NT-Xent: ln(2B − 1)",
        lines=(("loss", "loss", "solid"), ("loss_at_chance", "chance", "dot")),
    ),
    _Quantity(
        id="contrastive_accuracy",
        title="Contrastive accuracy",
        reading="How often the other view of the same image is the most similar row of the batch. "
        "At 100 % the task has become too easy to teach more.",
        lines=(("contrastive_accuracy", "accuracy", "solid"),),
        missing="the loss compares no embeddings",
        share=True,
    ),
    _Quantity(
        id="classifier_accuracy",
        title="Accuracy of the classifier",
        reading="How often the largest logit is that of the label, on the training views of a "
        "batch; with mixed images, of the label that has the larger share.",
        equation="logits = W h + b",
        lines=(("classifier_accuracy", "accuracy", "solid"),),
        missing="",
        share=True,
    ),
    _Quantity(
        id="alignment",
        title="Alignment",
        reading="Mean squared distance of two views of one image: 0 when they meet, 2 when "
        "they are unrelated.",
        equation="E |x − y|²",
        lines=(("alignment", "alignment", "solid"),),
        missing="no positives in a batch, or a loss that compares no embeddings",
    ),
    _Quantity(
        id="uniformity",
        title="Uniformity",
        reading="How evenly embeddings cover the sphere: 0 is one single point (collapse), "
        "lower is more even.",
        equation="log E exp(−2 |x − y|²)",
        lines=(("uniformity", "uniformity", "solid"),),
    ),
    _Quantity(
        id="tolerance",
        title="Tolerance",
        reading="Mean similarity of two images of one class: high means that the class was "
        "kept together.",
        equation="E[x·y | same class]",
        lines=(("tolerance", "tolerance", "solid"),),
        missing="no labels, so no tolerance",
    ),
    _Quantity(
        id="effective_rank",
        title="Effective ranks",
        reading="How many directions carry variance: solid line the representation h, "
        "dashed the embedding z. "
        "A fall towards 1 is collapse.",
        lines=(("effective_rank_h", "h", "solid"), ("effective_rank_z", "z", "dash")),
    ),
    _Quantity(
        id="effective_negatives",
        title="Effective negatives",
        reading="Among how many negatives the loss really shares its push: few means that "
        "it sees only the hardest.",
        equation="perplexity of the softmax over negatives",
        lines=(("effective_negatives", "negatives", "solid"),),
        missing="no negatives, or a loss that compares no embeddings",
    ),
    _Quantity(
        id="part_size",
        title="Images that repel each other",
        reading="The whole batch until the encoder has been asked what it confuses; afterwards the "
        "groups of a batch, if anything was found suppressed.",
        lines=(("part_size", "images", "solid"),),
        missing="",
    ),
    _Quantity(
        id="temperature",
        title="Temperature in force",
        reading="What divides the similarities: constant where it was set, found anew in every "
        "batch where a perplexity was.",
        equation="exp H(r) = perplexity, r the softmax over negatives",
        lines=(("temperature", "temperature", "solid"),),
        missing="the loss has no temperature",
    ),
    _Quantity(
        id="gradient_norm",
        title="Gradient norm",
        reading="Length of the gradient (logarithmic). Spikes mean unstable steps; zero "
        "means that nothing is learned.",
        lines=(("gradient_norm", "norm", "solid"),),
        log=True,
    ),
    _Quantity(
        id="lr",
        title="Learning rate",
        reading="What the schedule applied: warm-up, then decay.",
        lines=(("lr", "rate", "solid"),),
    ),
    _Quantity(
        id="knn",
        title="kNN accuracy, online",
        reading="Accuracy of a nearest-neighbour vote during training. Rough: for a number "
        "to cite, see the key numbers.",
        lines=(("knn", "accuracy", "solid"),),
        missing="no labels, so no kNN accuracy",
        share=True,
    ),
)


def training_panels(runs: Sequence[Run]) -> list[Panel]:
    """One panel for each quantity; without a record it gives the reason, or is omitted."""
    panels = []
    for q in QUANTITIES:
        recorded = any(
            name in run.curves for run in runs for name, _, _ in q.lines if name != "loss_at_chance"
        )
        if not (recorded or q.missing):
            continue
        panels.append(
            Panel(
                id=q.id,
                title=q.title,
                equation=q.equation,
                reading=q.reading,
                last=tuple(_last(run, q) for run in runs) if recorded else (),
                figure=curve_chart(runs, q.lines, log=q.log, share=q.share) if recorded else None,
                missing=q.missing,
            )
        )
    return panels


def geometry_panels(runs: Sequence[Run]) -> list[Panel]:
    """The path of the runs in the planes of uniformity and tolerance, uniformity and alignment."""
    negative = "−uniformity"
    dilemma = path_chart(
        runs, x="uniformity", y="tolerance", x_title=negative, y_title="tolerance", x_sign=-1
    )
    pair = path_chart(
        runs, x="uniformity", y="alignment", x_title=negative, y_title="alignment", x_sign=-1
    )
    labelled = any("tolerance" in run.curves for run in runs)
    return [
        Panel(
            id="uniformity_tolerance",
            title="Uniformity and tolerance",
            equation="Wang & Liu 2021: the uniformity-tolerance dilemma",
            reading="Right: spread evenly over the sphere. Up: images of one class stay close. "
            "A low temperature moves the end point right and down, a high one left and up.",
            last=(),
            figure=dilemma,
            missing="uniformity was not recorded" if labelled else "no labels, so no tolerance",
        ),
        Panel(
            id="uniformity_alignment",
            title="Uniformity and alignment",
            equation="Wang & Isola 2020",
            reading="Right: spread evenly. Down: two views of one image meet. The lower "
            "right corner is the aim of "
            "contrastive learning; it needs no labels.",
            last=(),
            figure=pair,
            missing="alignment and uniformity were not recorded",
        ),
    ]


def _last(run: Run, quantity: _Quantity) -> str:
    """The last values as text, such as "2.13, chance 5.54" or "h 41.2, z 18"."""
    known = [
        (words, run.curves[name].last) for name, words, _ in quantity.lines if name in run.curves
    ]
    if not known:
        return short(None)
    texts = [f"{100 * v:.1f} %" if quantity.share and v is not None else short(v) for _, v in known]
    if quantity.id == "effective_rank":
        return ", ".join(f"{words} {text}" for (words, _), text in zip(known, texts, strict=True))
    first, *others = zip(known, texts, strict=True)
    return ", ".join([first[1], *(f"{words} {text}" for (words, _), text in others)])
