"""S3's time-contrastive example: frames near in time attract, and clips come into step.

    contrapose reproduce video_in_time --scale cpu --jobs 2

Expect at scale cpu alignment errors of 0.05 to 0.27 with triplets on six clips, 0.23 to 0.45 before
training, after about 3 min on 2 cores; N-pairs are worse on all six, SimCLR is as good.

A network is trained on the frames of a clip, and matches each frame of it with one of a copy that
is mirrored and darker (`contrapose align`). Beside the losses of time-contrastive networks stand
SimCLR on the same frames, which knows of no time, and the network before training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrapose import adapt, api, losses, recipes
from contrapose.data import ImageSet, Request
from contrapose.data.video import TIME, times_of
from contrapose.downstream.align import altered
from contrapose.encoders import mlp, small_conv
from contrapose.evaluation.alignment import align
from contrapose.evaluation.embed import embed
from contrapose.experiments.charts import Chart, chart
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.machine import choose_device
from contrapose.training.in_time import moments
from contrapose.training.recipe import Recipe

TRIPLETS, PAIRS, SIMCLR, UNTRAINED = "triplets in time", "N-pairs in time", "SimCLR", "untrained"
METHODS = (TRIPLETS, PAIRS, SIMCLR, UNTRAINED)
CLIPS: Mapping[str, tuple[str, ...]] = {
    "smoke": ("drawn",),
    "cpu": ("bikes", "bigbuckbunny", "carphone", "cockatoo", "davis_bmx-trees", "davis_tennis"),
}
SIZE = {"smoke": 16, "cpu": 32}
WIDTH = {"smoke": 16, "cpu": 64}
EPOCHS = {"smoke": 3, "cpu": 60}
TOLERANCE = 200.0  # ms
FEWEST = 5  # pairs of clip and seed from which a sign test decides at 5 %


def frames_of(clip: str, size: int) -> ImageSet:
    """A clip of the folder video-frames, or a square that is drawn on its way."""
    if clip != "drawn":
        return Request(f"video-frames/{clip}", size=size).open("train")
    pixels = np.full((60, size, size, 3), 30, np.uint8)
    for k in range(60):
        left = round(k / 59 * (size - 4))
        pixels[k, 6:10, left : left + 4] = (250, 200 - 3 * k, 60 + 2 * k)
    images = Request(pixels).open("train")
    return replace(images, features={TIME: 40 * torch.arange(60)})


def recipe_of(method: str, scale: str) -> Recipe:
    """The recipe `time_contrastive` with a small network, or its views and network with another
    loss."""
    base = recipes.recipe_for("time_contrastive", SIZE[scale], 3)
    found = replace(
        base, backbone=partial(small_conv, channels=3, width=WIDTH[scale]), batch_size=32,
        epochs=EPOCHS[scale], warmup=EPOCHS[scale] / 10,
    )  # fmt: skip
    if method == PAIRS:
        head = partial(mlp, dim=32, unit_length=False)
        pairs = {"loss": partial(losses.n_pairs), "number_of_views": 1, "head": head}
        return replace(found, batches=partial(moments, near=200), **pairs)  # type: ignore[arg-type]
    if method == SIMCLR:
        loss = partial(losses.nt_xent, temperature=0.2)
        return replace(found, loss=loss, positives="image", batches=None)
    return found


def aligned(folder: Path, *, clip: str, method: str, scale: str, seed: int) -> dict[str, Any]:
    """The alignment of a clip with its altered copy, by z and by h."""
    images = frames_of(clip, SIZE[scale])
    recipe = replace(recipe_of(method, scale), seed=seed)
    if method == UNTRAINED:
        encoder = adapt.untrained(recipe, images)
    else:
        encoder = api.encoder_in(folder / "run", recipe, images)
    encoder.eval()
    device = choose_device("auto")
    time, copy = times_of(images), altered(images)
    one, two = (embed(encoder, side, size=recipe.size, device=device) for side in (images, copy))
    by_z = align(one.z, time, two.z, time, tolerance=TOLERANCE)
    by_h = align(one.h, time, two.h, time, tolerance=TOLERANCE)
    return {
        "error": by_z.error, "random": by_z.random, "within": by_z.within,
        "random_within": by_z.random_within, "error_h": by_h.error, "within_h": by_h.within,
        "frames": len(images),
    }  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        Job(
            name=f"{clip}-{method.replace(' ', '-')}-seed{seed}",
            call=partial(aligned, clip=clip, method=method, scale=scale, seed=seed),
            facts={"clip": clip, "method": method},
            seed=seed,
        )
        for seed in seeds
        for clip in CLIPS[scale]
        for method in METHODS
    ]


def nearer(results: Results, here: str, there: str) -> Verdict:
    """Whether the error is lower here than there for each clip and seed, by a sign test."""
    gaps = []
    for clip in results.column("clip"):
        one, two = (results.by_seed("error", clip=clip, method=m) for m in (here, there))
        gaps += [two[s] - one[s] for s in sorted(one.keys() & two.keys())]
    if not gaps:
        return Verdict.not_tested(f"no clip has {here} and {there}")
    from scipy import stats  # a second to import

    above = sum(g > 0 for g in gaps)
    p = float(stats.binomtest(above, len(gaps)).pvalue)
    words = f"error lower with {here} than {there} in {above} of {len(gaps)} clips and seeds, by "
    words += f"{sum(gaps) / len(gaps):+.3f} in the mean, sign test p = {p:.2g}"
    if len(gaps) < FEWEST or p >= 0.05:
        return Verdict(None, f"undecided: {words}")
    return Verdict(above * 2 > len(gaps), words)


def over_untrained(results: Results) -> Verdict:
    return nearer(results, TRIPLETS, UNTRAINED)


def over_simclr(results: Results) -> Verdict:
    return nearer(results, TRIPLETS, SIMCLR)


def pairs_over_triplets(results: Results) -> Verdict:
    return nearer(results, PAIRS, TRIPLETS)


def errors(results: Results) -> Chart:
    traces = []
    for method in METHODS:
        at = results.where(method=method)
        means = at.means("error", "clip")
        if means:
            trace = {"type": "bar", "name": method, "x": [*means], "y": [*means.values()]}
            traces.append(trace)
    drawn = chart(traces, None, "alignment error, share of the duration")
    return None if drawn is None else drawn | {"layout": drawn["layout"] | {"barmode": "group"}}


EXPERIMENT = Experiment(
    name="video_in_time",
    title="Time-contrastive video",
    source="S3, its example; Sermanet et al., arXiv 1704.06888",
    jobs=jobs,
    measures={
        "error": "alignment error by z, share of the duration",
        "random": "that of matches drawn at random",
        "within": f"share of frames whose match is within {TOLERANCE:g} ms, by z",
        "random_within": "that at random",
        "error_h": "alignment error by h",
        "within_h": "share of frames whose match is right, by h",
        "frames": "of the clip",
    },
    claims=(
        Claim("Triplets in time align a clip better than the network before training.",
              "S3; the comparison is this project's", over_untrained),
        Claim("Triplets in time align a clip better than SimCLR on its frames.",
              "S3; the comparison is this project's", over_simclr),
        Claim("N-pairs in time align better than triplets.",
              "1704.06888, whose pouring runs take N-pairs [C]", pairs_over_triplets),
    ),
    figures=(Figure("Alignment error by clip", errors, "Lower is better; a third is chance."),),
    costs={"smoke": "15 s on 2 cores", "cpu": "3 min a seed on 2 cores with --jobs 2"},
    notes=(
        "The published measures are of robots and pouring, with an Inception network; none is "
        "comparable. The copy is mirrored and 0.7 times as bright, at the same times.",
        "A network is trained on the clip that it aligns, without its copy. Clips with cuts and "
        "repeated shots have an error that no encoder takes away.",
        "N-pairs compare with all other pairs, those in between near and far too, and have one "
        "view of a frame where the others have two.",
    ),
)  # fmt: skip
