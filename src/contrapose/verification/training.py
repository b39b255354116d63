"""The law of training on several ranks: their number changes nothing but the speed.

Each case is trained by `contrapose.train` on one process and on the first 2 and 3 of those that
are started here, from the same command. Compared are the weights at the end, running statistics
among them, and every number of metrics.jsonl but the clock's; and the weights in each checkpoint,
ten in a training, which show how rounding grows.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrapose import api, augment, keys, losses
from contrapose.data import ImageSet, Request
from contrapose.encoders import checkpoints, heads, mlp, read_weights, resnet18, small_conv, step_of
from contrapose.errors import UserError
from contrapose.files import as_json_bytes, replace_file
from contrapose.machine import environment
from contrapose.partials import unknown
from contrapose.processes import Rank, processes
from contrapose.processes.ranks import TRAINING_ANSWERING
from contrapose.training import optim
from contrapose.training.batches import Conditional, embedded
from contrapose.training.conditional import neighbour_groups
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run
from contrapose.training.stages import linear_stage
from contrapose.training.state import Progress

FORMAT = 1
TOLERANCE = {"fp32": 1e-5, "fp64": 1e-10}  # of a weight, over the larger of it and 1
KEPT = "kept"  # folder in a run: its checkpoints, of which it keeps but two
CLOCK = ("step", "epoch", "seconds", "waiting_share", "lr")
BATCH = 100  # images, which three ranks share unevenly
ORDERS = 4  # of the sums of one process that are tried, at most
PART = 8  # images of a group that contrasts on its own, in the case `conditional`

CASES: dict[str, dict[str, Any]] = {
    "simclr": {},
    "supcon": {"loss": partial(losses.supcon, temperature=0.2), "positives": "class"},
    "moco": {
        "loss": partial(losses.info_nce, temperature=0.2),
        "keys": partial(keys.queue, size=250, momentum=0.9, chunk=40),
    },
    "bank": {
        "loss": partial(losses.info_nce, temperature=0.2),
        "keys": partial(keys.bank),
        "number_of_views": 1,
    },
    "xbm": {
        "loss": partial(losses.supcon_memory, temperature=0.2),
        "positives": "class",
        "keys": partial(keys.memory, size=250),
    },
    "nnclr": {
        "loss": partial(losses.nnclr, temperature=0.2),
        "keys": partial(keys.support, size=250),
    },
    "chunked": {"chunk": 48},
    "conditional": {"batches": None},  # set below: a function of this file
    "mixup": {
        "loss": partial(losses.cross_entropy),
        "positives": "class",
        "mixing": partial(augment.mixup),
        "head": partial(heads.none),
    },
    "two stages": {
        "loss": partial(losses.supcon, temperature=0.2),
        "positives": "class",
        "second_stage": partial(linear_stage, epochs=0.5, batch_size=90, lr=0.1),
    },
    "frozen": {
        "loss": partial(losses.supcon, temperature=0.2),
        "positives": "class",
        "freeze": ("backbone",),
    },
    "joint": {
        "loss": partial(losses.supcon, temperature=0.2),
        "positives": "class",
        "classifier": partial(losses.cross_entropy),
        "classifier_weight": 0.5,
    },
    "resnet": {"batch_size": 24, "lr": 0.005},  # its backbone is set below
}
COSTLY = ("resnet",)  # trained only where they are named


def neighbours(images: int, batch_size: int) -> "Neighbours":
    """Batches of groups of neighbours of the untrained encoder: `conditional` that has decided."""
    return Neighbours(images, batch_size)


class Neighbours(Conditional):
    def __init__(self, images: int, batch_size: int) -> None:
        super().__init__(images, batch_size, None, [PART])

    def begin(self, epoch: int, encoder: Any, images: ImageSet, recipe: Recipe, me: Rank) -> None:
        if self.groups is None:
            (z,) = embedded(encoder, images, recipe, me)
            self.groups = neighbour_groups(z, PART, torch.Generator().manual_seed(recipe.seed))

    def possible_sizes(self, recipe: Recipe) -> list[int]:
        return [PART]


CASES["conditional"] = {"batches": partial(neighbours)}


class InFloat64(nn.Module):
    """A network that computes in float64 what it is given in float32."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of, self.width = of.double(), of.width

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x.double())  # type: ignore[no-any-return]


def conv64(*, channels: int, width: int) -> nn.Module:
    """`small_conv` in float64."""
    return InFloat64(small_conv(channels=channels, width=width))


class _InParts(nn.Module):
    """A layer of as many parts of a batch, one after the other, whose gradients are summed.

    The weights' gradient is a sum over the batch, which ranks, too, make in parts.
    """

    parts: int

    def forward(self, input: Tensor) -> Tensor:
        of = super().forward
        return torch.cat([of(part) for part in input.chunk(self.parts)])


class ConvolutionInParts(_InParts, nn.Conv2d):
    pass


class LinearInParts(_InParts, nn.Linear):
    pass


IN_PARTS: dict[type, type] = {nn.Conv2d: ConvolutionInParts, nn.Linear: LinearInParts}


def summed_in_parts(*width: int, network: Callable[..., nn.Module], parts: int) -> nn.Module:
    """A backbone, or a head for a `width`, in parts: on one process, another order of its sums.

    The first convolution, whose gradient training sums exactly, stays as it is.
    """
    made = network(*width)
    first = next((layer for layer in made.modules() if isinstance(layer, nn.Conv2d)), None)
    for layer in made.modules():
        if type(layer) in IN_PARTS and layer is not first:
            layer.__class__, layer.parts = IN_PARTS[type(layer)], parts  # type: ignore[assignment]
    return made


def resnet64(*, channels: int) -> nn.Module:
    """`resnet18` with the stem for small images in float64."""
    return InFloat64(resnet18(channels=channels, stem="cifar"))


def mlp64(width: int, *, dim: int) -> nn.Module:
    """`mlp` in float64."""
    return mlp(width, dim=dim).double()


def recipe_of(case: str, precision: str, channels: int, size: int, batch: int) -> Recipe:
    """The recipe of a case: a small network, and plain SGD, whose steps are linear in gradients.

    AdamW divides a gradient by its own size, and would show the rounding of one that is 0.
    """
    wide = precision == "fp64"
    plain: dict[str, Any] = {
        "head": partial(mlp64 if wide else mlp, dim=16),
        "backbone": partial(conv64 if wide else small_conv, channels=channels, width=16),
        "loss": partial(losses.nt_xent, temperature=0.2),
        "batch_size": batch,
        "lr": 0.02,
    } | CASES[case]
    if case == "resnet":
        narrow = partial(resnet18, channels=channels, stem="cifar")
        plain["backbone"] = partial(resnet64, channels=channels) if wide else narrow
    return Recipe(
        name=case,
        views=partial(augment.digits if channels == 1 else augment.simclr_cifar),
        optimizer=partial(optim.sgd, momentum=0.9, weight_decay=1e-4),
        schedule=partial(optim.warmup_cosine),
        scaling=optim.no_scaling,
        size=size,
        epochs=1,
        warmup=0.1,
        **plain,
    )


@dataclass(frozen=True)
class Law:
    """One comparison: a case on so many ranks beside one process."""

    case: str
    data: str
    precision: str
    ranks: int
    steps: int
    weights: float  # greatest difference of a weight, over the larger of it and 1
    worst: str  # which
    metrics: float  # greatest difference of a number in metrics.jsonl, likewise
    alone: float  # of the weights of one process in this precision to those in float64
    exact: float  # the same of these ranks
    tolerance: float
    growth: list[tuple[int, float]]  # (step, difference of weights) of each checkpoint
    rounding: float | None = None  # of weights, one process that sums in parts

    @property
    def passed(self) -> bool:
        """Within the tolerance, or at most twice as far as one process comes apart from itself
        where it sums over its batch in parts.

        A few roundings are all that is between the two, yet they may grow: where the input of a
        ReLU is within rounding of 0, its gradient is there on one side and not on the other.
        """
        return self.weights <= max(self.tolerance, 2 * (self.rounding or 0.0))


def chosen(only: Sequence[str]) -> list[str]:
    """The cases that are named, or all but the costly ones. UserError for an unknown one."""
    for name in only:
        if name not in CASES:
            raise UserError(f"verify --training --only {name}: no case {unknown(name, CASES)}")
    return [case for case in CASES if case in only or not (only or case in COSTLY)]


def verify_training(
    only: Sequence[str] = (),
    *,
    data: Sequence[str] = ("digits",),
    precisions: Sequence[str] = ("fp32", "fp64"),
    ranks: int = 3,
    steps: int | None = 8,
    subset: int | None = None,
    device: str = "auto",
    out: Path | None = None,
    watch: Callable[[Law, int, int], None] = lambda law, done, of: None,
) -> list[Law] | None:
    """Train every case on 1 to `ranks` processes, and compare; None on others than the first.

    data: names of sets; steps: of each training, None for an epoch, of at most `subset` images.
    Over an epoch, and where a tolerance is missed, one process that sums over its batch in as many
    parts as there are ranks is trained too: how far rounding alone goes. Where that does not say
    why, it is tried in up to ORDERS numbers of parts: what side of 0 an input of a ReLU is on, that
    is within rounding of it, is a matter of chance.
    out: a JSON file of every comparison. Raises UserError for a case or a precision that there is
    not, ChildProcessError where a process is lost.
    """
    for name in precisions:
        if name not in TOLERANCE:
            raise UserError(f"--precision {name}: there is no {unknown(name, TOLERANCE)}")
    names, begun = chosen(only), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="contrapose-law-") as folder:
        settings = (folder, names, tuple(data), tuple(precisions), steps, subset)
        how = {"answering": TRAINING_ANSWERING}  # some wait while others train
        with processes(ranks, device, take_part, *settings, **how) as me:
            found = []
            for law in trained_on_ranks(me, *settings):
                found.append(law)
                of = len(data) * len(names) * len({"fp64", *precisions}) * (min(me.world, 3) - 1)
                watch(law, len(found), of)
    if me.rank:
        return None
    if out is not None:
        record = {
            "format": FORMAT,
            "passed": all(law.passed for law in found),
            "laws": [asdict(law) for law in found],
            "seconds": round(time.perf_counter() - begun, 1),
            "environment": environment(me.device, False) | {"ranks": me.world},
        }
        replace_file(out, as_json_bytes(record))
    return found


def take_part(me: Rank, *settings: Any) -> None:
    """What the processes besides the first do."""
    for _ in trained_on_ranks(me, *settings):
        pass


def trained_on_ranks(
    me: Rank,
    folder: str,
    names: Sequence[str],
    data: Sequence[str],
    precisions: Sequence[str],
    steps: int | None,
    subset: int | None = None,
) -> Iterator[Law]:
    """On the first process every comparison; the others take part in the trainings."""
    for source in data:
        images = Request.of(source, subset=subset).open("train")
        mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        few = images if steps is None else images.subset(mixed[: (steps + 1) * BATCH])
        for case in names:
            exact: Run | None = None  # on one process in float64
            for precision in ("fp64", *(p for p in precisions if p != "fp64")):
                batch = BATCH if case != "conditional" else BATCH // PART * PART
                recipe = recipe_of(case, precision, images.channels, images.size, batch)
                if steps is not None:
                    some = min(1.0, steps / (len(few) // recipe.batch_size))
                    recipe = replace(recipe, epochs=some)
                name = f"{source}-{case}-{precision}"
                worlds = [w for w in sorted({1, 2, 3, me.world}) if w <= me.world]
                runs = {
                    w: trained(me, w, recipe, few, Path(folder) / f"{name}-{w}") for w in worlds
                }
                if me.first:
                    exact = exact or runs[1]
                    apart = {
                        w: off(checkpoint_of(runs[w]), checkpoint_of(exact))[0] for w in worlds
                    }
                    for world in worlds[1:]:
                        law = Law(
                            case, source, precision, world,
                            *compared(runs[world], runs[1]), apart[1], apart[world],
                            TOLERANCE[precision], grown(runs[world], runs[1]),
                        )  # fmt: skip
                        for parts in range(world, world + ORDERS):
                            if law.passed and (steps is not None or law.rounding is not None):
                                break
                            made: dict[str, Any] = {
                                name: partial(summed_in_parts, network=network, parts=parts)
                                for name, network in (
                                    ("backbone", recipe.backbone), ("head", recipe.head),
                                )
                            }  # fmt: skip
                            other = replace(recipe, **made)
                            control = trained(
                                me, 1, other, few, Path(folder) / f"{name}-in-{parts}"
                            )
                            rounding = off(checkpoint_of(control), checkpoint_of(runs[1]))[0]
                            shutil.rmtree(control.path)
                            law = replace(law, rounding=max(rounding, law.rounding or 0.0))
                        yield law
                    for run in runs.values():
                        shutil.rmtree(run.path / KEPT)


def trained(me: Rank, world: int, recipe: Recipe, images: ImageSet, out: Path) -> Run:
    """The run on the first `world` processes; the others have nothing to do."""
    if me.rank >= world:
        return Run(out)

    def watch(progress: Progress) -> None:
        me.gets_on()
        if me.first:
            keep_newest(out)

    with me.among(world).in_force():
        run = api.train(
            recipe, images, out=out, held_out=0.0, device=me.device, precision="fp32", watch=watch
        )
    if me.first:
        keep_newest(out)
    return run


def keep_newest(run: Path) -> None:
    """Keep the newest checkpoint of a run, which keeps two, by another name of its files."""
    for newest in checkpoints(run)[-1:]:
        place = run / KEPT / newest.name / "checkpoints" / newest.name
        if not place.exists():
            shutil.copytree(newest, place, copy_function=os.link)


def grown(run: Run, alone: Run) -> list[tuple[int, float]]:
    """(step, difference of weights) of each checkpoint that both runs have."""
    found = []
    for folder in sorted((run.path / KEPT).iterdir()):
        each = [_whole(Run(of.path / KEPT / folder.name)) for of in (run, alone)]
        found.append((step_of(folder), off(*each)[0]))
    return found


def compared(run: Run, alone: Run) -> tuple[int, float, str, float]:
    """(steps, difference of weights, in which, difference of metrics) to one process."""
    apart_by, worst = off(checkpoint_of(run), checkpoint_of(alone))
    rows, wanted = run.metrics(), alone.metrics()
    if [row.keys() for row in rows] != [row.keys() for row in wanted]:
        apart = float("inf")
    else:
        apart = max(
            difference(torch.tensor(row[name]), torch.tensor(other[name]))
            for row, other in zip(rows, wanted, strict=True)
            for name in other
            if name not in CLOCK
        )
    return wanted[-1]["step"], apart_by, worst, apart


def off(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The greatest difference of weights, and where it is."""
    each = {name: difference(weights[name], x) for name, x in expected.items()}
    worst = max(each, key=lambda name: each[name])
    return each[worst], worst


def checkpoint_of(run: Run) -> dict[str, Tensor]:
    """The weights at the end, and all that lives beside them, by names alike in all precisions."""
    return _whole(run) | _renamed(read_weights(run.path)[0])


def _whole(run: Run) -> dict[str, Tensor]:
    """The weights in the newest checkpoint, and all that lives beside them."""
    found = run.load_checkpoint()
    assert found is not None
    beside = {n: x for n, x in found[1]["objective"].items() if isinstance(x, Tensor)}
    return _renamed(found[0] | beside)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("backbone.of.", "backbone."): x for name, x in weights.items()}


def difference(x: Tensor, expected: Tensor) -> float:
    """max |x - e| / max(1, |e|)."""
    x, expected = x.double(), expected.double()
    off = (x - expected).abs() / expected.abs().clamp(min=1)
    return float(off.max()) if off.numel() else 0.0
