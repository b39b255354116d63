"""Landmarks by consistency between views (MobRecon, 2112.02753, shown in S2), on rendered shapes.

    contrapose reproduce landmark_consistency --scale cpu

Expect no clear gain of the consistency: at scale cpu, after about 4 min a seed on 2 busy cores,
5.55 px without, 5.67 px with that of the labelled images and 5.48 px with that of all (one seed, n
= 500, standard error 0.09).

Two views of an image are made by affine maps T_1 and T_2 that are known. A network predicts the
corners U_1 and U_2 in each, and mapped back they are the same corners of the one image:

    L = |U_1 - T_1 y| + |U_2 - T_2 y|  (labelled)  +  weight |T_1^-1 U_1 - T_2^-1 U_2|  (all),

means over corners and coordinates, in units of half a side.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from contrapose.experiments.charts import Chart, bars
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import decided
from contrapose.training.optim import adam

SIZE = 32  # px
KITE = ((0.0, -0.6), (0.45, 0.1), (0.0, 0.5), (-0.25, 0.1))  # corners, clockwise as seen
LABELLED, TESTED = 20, 500
SETTINGS = {"smoke": (100, 100), "cpu": (1000, 3000), "paper": (10_000, 10_000)}  # images, steps
NONE, OF_LABELLED, OF_ALL = "none", "of labelled images", "of all images"
WEIGHTS = {NONE: (0.0, False), OF_LABELLED: (1.0, False), OF_ALL: (1.0, True)}


def rendered(
    count: int, generator: Generator
) -> tuple[Float[Tensor, "N 1 S S"], Float[Tensor, "N 4 2"]]:
    """Kites of random place, size and angle on a shaded ground with noise; and their corners, in
    [-1, 1] from the left upper to the right lower corner of the image."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    shift = torch.stack([draw(-0.25, 0.25), draw(-0.25, 0.25)], dim=1)
    pose = affine(draw(-torch.pi, torch.pi), draw(0.7, 1.1), shift)
    corner = moved(pose, torch.tensor(KITE).expand(count, 4, 2))
    line = torch.linspace(-1, 1, SIZE + 1)[:-1] + 1 / SIZE
    at = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(1, 1, -1, 2)
    begin, side = corner[:, :, None], (corner.roll(-1, 1) - corner)[:, :, None]
    away = at - begin
    inside = (side[..., 0] * away[..., 1] - side[..., 1] * away[..., 0]) / side.norm(dim=-1)
    shape = (inside.amin(dim=1) * SIZE / 2).sigmoid().view(count, SIZE, SIZE)
    slope = torch.stack([draw(-0.2, 0.2), draw(-0.2, 0.2)], dim=1)
    ground = 0.3 + (at.view(1, -1, 2) * slope[:, None]).sum(dim=-1).view(count, SIZE, SIZE)
    image = ground * (1 - shape) + draw(0.6, 1.0)[:, None, None] * shape
    noise = 0.05 * torch.randn(count, SIZE, SIZE, generator=generator)
    return (image + noise).clamp(0, 1)[:, None], corner


def affine(
    angle: Float[Tensor, " N"], scale: Float[Tensor, " N"], shift: Float[Tensor, "N 2"]
) -> Float[Tensor, "N 2 3"]:
    """The maps x -> scale R(angle) x + shift."""
    c, s = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack([torch.stack([c, -s], dim=1), torch.stack([s, c], dim=1)], dim=1)
    return torch.cat([turn, shift[:, :, None]], dim=2)


def moved(map: Float[Tensor, "N 2 3"], point: Float[Tensor, "N K 2"]) -> Float[Tensor, "N K 2"]:
    """The points under their image's map."""
    return point @ map[:, :, :2].transpose(1, 2) + map[:, None, :, 2]


def inverse(map: Float[Tensor, "N 2 3"]) -> Float[Tensor, "N 2 3"]:
    """The maps back."""
    turn = torch.linalg.inv(map[:, :, :2])
    return torch.cat([turn, -turn @ map[:, :, 2:]], dim=2)


def view(
    image: Float[Tensor, "N 1 S S"], generator: Generator
) -> tuple[Float[Tensor, "N 1 S S"], Float[Tensor, "N 2 3"]]:
    """A view of each image and the map that made it: up to 90 degrees either way, scale within
    0.2, shift within a tenth of a side."""
    n = len(image)
    drawn = 2 * torch.rand(n, 4, generator=generator) - 1
    made = affine(drawn[:, 0] * torch.pi / 2, 1 + 0.2 * drawn[:, 1], 0.2 * drawn[:, 2:])
    shape = list(image.shape)
    grid = nn.functional.affine_grid(inverse(made), shape, align_corners=False)
    seen = nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
    return seen, made


def consistency(
    one: Float[Tensor, "N K 2"],
    two: Float[Tensor, "N K 2"],
    first: Float[Tensor, "N 2 3"],
    second: Float[Tensor, "N 2 3"],
) -> Float[Tensor, ""]:
    """mean |T_1^-1 U_1 - T_2^-1 U_2|: 0 where both predictions are of the same points."""
    return (moved(inverse(first), one) - moved(inverse(second), two)).abs().mean()


def network() -> nn.Module:
    """Three convolutions and two dense layers, to four corners."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (SIZE // 8) ** 2, 64), nn.ReLU(), nn.Linear(64, 8), nn.Unflatten(1, (4, 2)),
    )  # fmt: skip


def trained_with(kind: str, images: Any, steps: int, seed: int) -> nn.Module:
    """The network after training with this kind of consistency; the same draws for each kind."""
    (image, corner), (other, _) = images
    weight, of_all = WEIGHTS[kind]
    torch.manual_seed(seed)
    net, generator = network(), Generator().manual_seed(seed)
    optimizer = adam(net, 1e-3)
    for _ in range(steps):
        mine = torch.randint(len(image), (16,), generator=generator)
        more = torch.randint(len(other), (48,), generator=generator)
        both = torch.cat([image[mine], other[more]])
        (one, first), (two, second) = view(both, generator), view(both, generator)
        seen = slice(None) if of_all else slice(0, 16)
        u, v = net(one[seen]), net(two[seen])
        y = corner[mine]
        loss = (u[:16] - moved(first[:16], y)).abs().mean()
        loss = loss + (v[:16] - moved(second[:16], y)).abs().mean()
        if weight:
            loss = loss + weight * consistency(u, v, first[seen], second[seen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def errors(folder: Path, *, scale: str, seed: int) -> dict[str, Any]:
    """Mean distance of predicted from true corners of test images, in px, with each kind; and the
    standard errors of the differences to "none", image by image."""
    count, steps = SETTINGS[scale]
    generator = Generator().manual_seed(1000 + seed)
    images = rendered(LABELLED, generator), rendered(count, generator)
    test, wanted = rendered(TESTED, Generator().manual_seed(7))
    found: dict[str, Any] = {"n_test": TESTED, "n_labelled": LABELLED, "n_other": count}
    each = {}
    for kind in WEIGHTS:
        net = trained_with(kind, images, steps, seed)
        with torch.no_grad():
            each[kind] = (net(test) - wanted).norm(dim=2).mean(dim=1) * SIZE / 2
        found[kind] = float(each[kind].mean())
    for kind in (OF_LABELLED, OF_ALL):
        gap = each[kind] - each[NONE]
        found[f"error {kind}"] = float(gap.std() / TESTED**0.5)
    return found


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        Job(name=f"kites-seed{s}", call=partial(errors, scale=scale, seed=s), facts={}, seed=s)
        for s in seeds
    ]


def lower(kind: str) -> Any:
    def test(results: Results) -> Verdict:
        before, after = results.values(NONE), results.values(kind)
        if not before or len(before) != len(after):
            return Verdict.not_tested("no result yet")
        gaps = [b - a for b, a in zip(before, after, strict=True)]
        n = len(gaps)
        gap = sum(gaps) / n
        between = sum((g - gap) ** 2 for g in gaps) / (n - 1) / n if n > 1 else 0.0
        error = (results.mean(f"error {kind}") ** 2 + between) ** 0.5
        words = f"error {sum(before) / n:.2f} px without, {sum(after) / n:.2f} px with consistency "
        return decided(gap, error, f"{words}{kind}: {gap:.2f} ({error:.2f}), {n} seeds")

    return test


def chart_of_errors(results: Results) -> Chart:
    rows = [
        {"seed": row["seed"], "kind": kind, "px": row[kind]}
        for row in results.rows
        for kind in WEIGHTS
    ]
    return bars(Results(rows=rows), "px", "kind", "error, px") if rows else None


EXPERIMENT = Experiment(
    name="landmark_consistency",
    title="Landmarks by consistency between views",
    source="MobRecon (Chen et al., CVPR 2022; E8), shown in S2",
    jobs=jobs,
    measures={kind: "mean distance of predicted from true corners, px" for kind in WEIGHTS}
    | {f"error {k}": "standard error of the difference to none, px" for k in (OF_LABELLED, OF_ALL)}
    | {"n_test": "test images", "n_labelled": "labelled images", "n_other": "images without label"},
    claims=(
        Claim("Consistency of all images, most of them without a label, lowers the error.",
              "E8 [C], on hands and with labels everywhere; here this project's", lower(OF_ALL)),
        Claim("Consistency of the labelled images alone lowers it too.",
              "E8 [C], on hands; here this project's", lower(OF_LABELLED)),
    ),
    figures=(Figure("Error by kind of consistency", chart_of_errors, "Shorter is better."),),
    costs={
        "smoke": "15 s on 2 cores", "cpu": "about 4 min a seed on 2 busy cores",
        "paper": "about 15 min a seed on 2 cores (not timed)",
    },
    notes=(
        "A small worked example: kites of four corners in place of hands of 21 landmarks, and the "
        "2-D term alone; the 3-D term compares vertices after the rotation between both views.",
    ),
)  # fmt: skip
