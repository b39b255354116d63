"""S0: what SimCLR learns is local too: k-means on the maps before pooling finds parts of images.

    contrapose reproduce local_features --scale cpu --jobs 2

Expect at scale cpu that clusters of SimCLR's maps agree with known digits by 0.18 (pixels 0.39),
and that clusters split as K grows (0.79, shuffled 0.06), after about 4 min on 2 cores.

Canvases of digits have a known digit at each position, so that clusters of different numbers can be
compared with it. Runs on photographs write pages with pictures of the clusters.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from contrapose.data import ImageSet, evenly, open_images
from contrapose.data.composed import layout
from contrapose.evaluation.local import (
    CONTROL,
    LocalMaps,
    adjusted_mutual_information,
    feature_maps,
    hierarchy,
    local_maps,
    truth_map,
)
from contrapose.evaluation.local_page import write_map_page
from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of, spread
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.suppression.multiple_objects import canvases
from contrapose.experiments.suppression.protocol import READABLE, SIMCLR, UNTRAINED, job
from contrapose.experiments.trained import Trained

CLUSTERS = (2, 4, 8, 16)
EACH, TOGETHER = "each image by itself", "all images together"
CANVASES, PHOTOGRAPHS = "canvases", "photographs"
DIGITS = 4  # scattered over a canvas four of them wide
MORE = 0.1  # by how much clusters must tell more than shuffled ones


@dataclass(frozen=True, kw_only=True)
class Setting:
    glyphs: str
    glyph: int | None  # px
    photographs: str  # that the encoder learns from
    size: int | None  # px, of those
    looked_at: tuple[str, ...]  # photographs that are clustered
    side: int  # px, of those
    count: int  # images that are clustered, of each set
    stages: int  # the last so many of the encoder's
    restarts: int


SETTINGS = {
    "smoke": Setting(
        glyphs="digits", glyph=None, photographs="digits", size=None, looked_at=("digits",),
        side=32, count=6, stages=2, restarts=1,
    ),
    "cpu": Setting(
        glyphs="mnist", glyph=8, photographs="tiny-imagenet-50", size=32,
        looked_at=("coco128", "imagenet-sample-1000"), side=128, count=32, stages=2, restarts=3,
    ),
    "paper": Setting(
        glyphs="mnist", glyph=None, photographs="imagenet", size=224,
        looked_at=("coco128", "imagenet"), side=448, count=64, stages=4, restarts=10,
    ),
}  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    at = SETTINGS[scale]
    source = partial(canvases, glyphs=at.glyphs, glyph=at.glyph, placement="random")
    digits = partial(on_canvases, count=at.count, stages=at.stages, restarts=at.restarts)
    photographs = partial(
        on_photographs, looked_at=at.looked_at, side=at.side, count=at.count, stages=at.stages,
        restarts=at.restarts,
    )  # fmt: skip
    found = []
    for seed in seeds:
        for method in (SIMCLR, UNTRAINED):
            make = partial(job, scale=scale, seed=seed, method=method)
            found += [
                make(
                    images=partial(source, digits=DIGITS), probed=partial(source, digits=1),
                    measures=(digits,), facts={"data": CANVASES}, name=f"{CANVASES}-{method}",
                ),
                make(
                    images=at.photographs, size=at.size, measures=(photographs,),
                    facts={"data": PHOTOGRAPHS}, name=f"{PHOTOGRAPHS}-{method}",
                ),
            ]  # fmt: skip
    return found


# ---- measures ------------------------------------------------------------------------------------


def on_canvases(of: Trained, *, count: int, stages: int, restarts: int) -> dict[str, Any]:
    """Adjusted mutual information of clusters of positions with the known digits there.

    `what`: clusters shared by all images, and the class of the digit at a position. `where`:
    clusters of each image, and which of its digits it is. Positions outside digits are a class.
    The best over stages and K, and the best of pixels on the same grids.
    """
    images = of.test.subset(evenly(len(of.test), count))
    at = layout(images, torch.arange(len(images)))
    number = torch.arange(at.digit.shape[1]).expand_as(at.digit)
    found: dict[str, Any] = {}
    for name, joint, which in (("what", True, at.digit), ("where", False, number)):
        maps = _maps(of, images, images.size, stages, joint, restarts)
        by_stage = {}
        for stage, by_k in maps.labels.items():
            shape = next(iter(by_k.values())).shape[1:]
            truth = truth_map(at.box, images.size, (shape[0], shape[1]), which)
            by_stage[stage] = [
                adjusted_mutual_information(truth, label, joint=joint) for label in by_k.values()
            ]
        found |= _best(name, by_stage)
    return found


def on_photographs(
    of: Trained, *, looked_at: Sequence[str], side: int, count: int, stages: int, restarts: int
) -> dict[str, Any]:
    """The uncertainty coefficient of clusters given those of the next larger K, mean over K.

    Of the last stage and of the pixels on its grid, for each image and for all together. Also
    writes pages to browse beside the run of a trained encoder: `maps-coco128.html`.
    """
    values: dict[str, list[float]] = {}
    for name in looked_at:
        whole = open_images(name, size=side, channels=of.encoder.channels)
        images = whole.subset(evenly(len(whole), count))
        every = {
            kind: _maps(of, images, side, stages, kind == TOGETHER, restarts)
            for kind in (EACH, TOGETHER)
        }
        if of.run is not None:
            write_map_page(images, every, of.run.path.parent / f"maps-{name}.html")
        for kind, maps in every.items():
            last = [stage for stage in maps.labels if not stage.startswith(CONTROL)][-1]
            shape = next(iter(maps.labels[last].values())).shape[1:]
            for stage, suffix in ((last, ""), (f"{CONTROL} {shape[0]}x{shape[1]}", "_pixels")):
                told = hierarchy(maps, stage).values()
                key = ("hierarchy" if kind == EACH else "hierarchy_joint") + suffix
                values.setdefault(key, []).append(statistics.fmean(t.value for t in told))
                values.setdefault(f"{key}_shuffled", []).append(
                    statistics.fmean(t.shuffled for t in told)
                )
    return {key: statistics.fmean(found) for key, found in values.items()}


def _maps(
    of: Trained, images: ImageSet, size: int, stages: int, joint: bool, restarts: int
) -> LocalMaps:
    blank = torch.zeros(1, of.encoder.channels, size, size, device=of.device)
    names = list(feature_maps(of.encoder.to(of.device), blank))[-stages:]
    return local_maps(
        of.encoder, images, clusters=CLUSTERS, size=size, names=names, joint=joint,
        restarts=restarts, device=of.device, seed=of.seed,
    )  # fmt: skip


def _best(name: str, by_stage: dict[str, list[float]]) -> dict[str, Any]:
    own = {s: v for s, v in by_stage.items() if not s.startswith(CONTROL)}
    pixels = [v for s, v in by_stage.items() if s.startswith(CONTROL)]
    return {
        name: max(map(max, own.values())),
        f"{name}_pixels": max(map(max, pixels)),
        f"{name}_by_k": by_stage,
    }


# ---- claims --------------------------------------------------------------------------------------


def tell_more_than_pixels(results: Results) -> Verdict:
    def test(name: str) -> Verdict:
        at = {"data": CANVASES, "method": SIMCLR}
        own, pixels = results.values(name, **at), results.values(f"{name}_pixels", **at)
        if not own:
            return Verdict.not_tested("no result on canvases")
        words = f"{name}: {spread(own)}, pixels {spread(pixels)}"
        above = sum(a > b for a, b in zip(own, pixels, strict=True))
        return Verdict(None if 0 < above < len(own) else above > 0, words)

    return all_of(test("what"), test("where"))


def tell_more_than_untrained(results: Results) -> Verdict:
    at = {"data": CANVASES}
    here, there = at | {"method": SIMCLR}, at | {"method": UNTRAINED}
    return all_of(*(evidence.higher(results, name, here, there) for name in ("what", "where")))


def are_a_hierarchy(results: Results) -> Verdict:
    def test(name: str) -> Verdict:
        at = {"data": PHOTOGRAPHS, "method": SIMCLR}
        value, shuffled = results.mean(name, **at), results.mean(f"{name}_shuffled", **at)
        if math.isnan(value):
            return Verdict.not_tested("no result on photographs")
        n = len(results.column("seed"))
        words = f"{name}: {value:.3f}, shuffled {shuffled:.3f} ({n} seed{'s' * (n > 1)})"
        return Verdict(value > shuffled + MORE, words)

    return all_of(test("hierarchy"), test("hierarchy_joint"))


def by_clusters(results: Results) -> Chart:
    traces = []
    for method, dash in ((SIMCLR, "solid"), (UNTRAINED, "dot")):
        rows = results.where(data=CANVASES, method=method).rows
        row = next((row for row in rows if row.get("what_by_k")), None)
        if row is None:
            continue
        for stage, values in row["what_by_k"].items():
            if stage.startswith(CONTROL) and method == UNTRAINED:
                continue
            name = stage if stage.startswith(CONTROL) else f"{stage}, {method}"
            x = [str(k) for k in CLUSTERS[: len(values)]]
            traces.append(line(name, x, values, line={"dash": dash}))
    return chart(traces, "clusters", "agreement with the digit's class")


EXPERIMENT = Experiment(
    name="local_features",
    title="Local features: clusters of positions are parts of images",
    source="S0, local features by k-means (Chen, Luo and Li, NeurIPS 2021)",
    jobs=jobs,
    measures={
        "what": "AMI of joint clusters with the class of the digit there, best stage and K",
        "what_pixels": "the same of pixels under the same grids",
        "where": "AMI of each image's clusters with which of its digits lies there, best likewise",
        "where_pixels": "the same of pixels",
        "what_by_k": "the same by stage and K",
        "where_by_k": "the same by stage and K",
        "hierarchy": "share of the entropy of K clusters that the next K tell, in each image",
        "hierarchy_shuffled": "the same after shuffling positions",
        "hierarchy_pixels": "the same of pixels",
        "hierarchy_pixels_shuffled": "the same of pixels after shuffling positions",
        "hierarchy_joint": "the same of clusters that all images share",
        "hierarchy_joint_shuffled": "the same after shuffling positions",
        "hierarchy_joint_pixels": "the same of pixels",
        "hierarchy_joint_pixels_shuffled": "the same of pixels after shuffling positions",
        **READABLE,
    },
    claims=(
        Claim(
            "Clusters of SimCLR's maps agree with known digits better than clusters of pixels.",
            "S0 [S0] shows pictures; the numbers are this project's",
            tell_more_than_pixels,
        ),
        Claim(
            "They agree better than clusters of the maps of an untrained encoder.",
            "this project",
            tell_more_than_untrained,
        ),
        Claim(
            f"Clusters split as K grows: the next K tell {MORE:g} more than shuffled ones do.",
            "S0's website shows a hierarchy; the number is this project's",
            are_a_hierarchy,
        ),
    ),
    figures=(
        Figure(
            "Agreement of joint clusters with the class of the digit",
            by_clusters,
            "Adjusted mutual information: 1 for equal partitions, 0 for unrelated ones; one seed.",
        ),
    ),
    costs={
        "smoke": "30 s on 2 cores",
        "cpu": "4 min on 2 cores with --jobs 2",
        "paper": "ResNet-50 on ImageNet, 400 epochs, on GPUs (not timed)",
    },
    notes=(
        "Numbers of clusters, and whether images are clustered one by one or together, were not "
        "found: K is 2, 4, 8 and 16, both ways. Positions are brought to unit length; pixels are "
        "clustered as they are.",
        "The pages to browse lie in the folder of each trained job on photographs, by name of the "
        "set: maps-coco128.html and so on.",
        "Scale cpu: the encoder learns from 5,000 photographs of 50 classes of Tiny ImageNet at "
        "32 px and looks at others of 128 px; re-implementers of the figure used 448 px [R].",
        "On canvases four digits are scattered, since in cells of a grid pixels would be aligned "
        "with them. Where two overlap, the one drawn later counts.",
    ),
)
