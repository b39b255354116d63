"""What the tests of several ranks ask of three real processes, which are started once for all.

    python tests/support/on_ranks.py FOLDER [STEPS CASE,CASE ...]

Writes FOLDER/found.pt: by name what each part returned on the first rank.
"""

import copy
import resource
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from contrapose import adapt, api, augment, explain, losses, recipes
from contrapose.data import ImageSet, Request, open_images
from contrapose.data.video import TIME
from contrapose.encoders import Encoder, mlp, small_conv
from contrapose.errors import Interrupted
from contrapose.evaluation import embed
from contrapose.files import read_json
from contrapose.processes import Rank, processes
from contrapose.similarity import across
from contrapose.training.batches import conditional, embedded
from contrapose.training.global_batchnorm import over_ranks
from contrapose.training.in_time import moments
from contrapose.training.run import Run
from contrapose.verification import training as law

LAYOUTS = {"planes": torch.contiguous_format, "channels last": torch.channels_last}
SHARES = (slice(0, 4), slice(4, 4), slice(4, 11))  # of images, one rank has none


def network() -> Encoder:
    torch.manual_seed(0)
    head = mlp(8, dim=3).double()
    encoder = Encoder(small_conv(channels=2, width=8).double(), head, (0, 0), (1, 1))
    return encoder.train()


def images() -> torch.Tensor:
    return torch.randn(11, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def weights() -> torch.Tensor:
    return torch.randn(11, 3, generator=torch.Generator().manual_seed(2)).double()


def batch_norm(me: Rank, folder: Path):
    """By layout of every rank: (z, gradients of weights, gradient of the images, buffers)."""
    return {layout: normalised(me, how) for layout, how in LAYOUTS.items()}


def normalised(me: Rank, layout: torch.memory_format):
    encoder = network().to(memory_format=layout)
    over_ranks(encoder, cuda=False)
    x = images()[SHARES[me.rank]].to(memory_format=layout).requires_grad_()
    with across(me.group):
        z = encoder.head(encoder.backbone(x))
        (z.sin() * weights()[SHARES[me.rank]]).sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    return me.gathered((z.detach(), gradients, x.grad, dict(encoder.named_buffers())))


def digits() -> ImageSet:
    mixed = torch.randperm(1400, generator=torch.Generator().manual_seed(0))
    return Request.of("digits").open("train").subset(mixed[:400])


def trained(me: Rank, out: Path, recipe=None, *, data=None, world=3, resumed=False, **how) -> str:
    """Train on the first ranks; the error that this rank ends with, by its type, "" for none."""
    if me.rank >= world:
        return ""
    recipe = law.recipe_of("moco", "fp64", 1, 8, 100) if recipe is None else recipe
    how = {"device": "cpu", "precision": "fp32", **how}
    try:
        with me.among(world).in_force():
            if resumed:
                api.resume(out, recipe=recipe, images=data or digits(), **how)
            else:
                api.train(recipe, data or digits(), out=out, held_out=0.0, **how)
    except (ValueError, OSError, ArithmeticError, Interrupted) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def other_ranks(me: Rank, folder: Path):
    """(metrics of a run undisturbed, of one on 1, then 3, then 2 ranks, its ends, weights alike).

    Each time it is stopped in the middle of an epoch by a signal to one rank.
    """
    recipe = replace(law.recipe_of("moco", "fp64", 1, 8, 100), epochs=3)

    def stop_at(step, rank):
        def watch(progress):
            if progress.step == step and me.rank == rank:
                signal.raise_signal(signal.SIGTERM)

        return watch

    moved, whole = folder / "moved", folder / "whole"
    trained(me, whole, recipe, world=1)
    ends = [
        me.every(trained(me, moved, recipe, world=1, watch=stop_at(3, 0))),
        me.every(trained(me, moved, recipe, resumed=True, watch=stop_at(7, 2))),
        me.every(trained(me, moved, recipe, world=2, resumed=True)),
    ]
    if not me.first:
        return None
    a, b = (law.checkpoint_of(Run(path)) for path in (moved, whole))
    ranks = [then.get("ranks", 1) for then in read_json(moved / "environment.json")["resumed"]]
    return Run(whole).metrics(), Run(moved).metrics(), ends, law.off(a, b)[0], ranks


def own_numbers(image, generator, *, size):
    """Views with numbers that are drawn past contrapose's functions."""
    view = augment.digits(image, generator, size=size)
    return view * torch.rand(len(view), 1, 1, 1, generator=generator)


own_numbers.__module__ = "own"  # as the first rank's main module has another name than the others'


def refused(me: Rank, folder: Path):
    """By what is wrong: the error on every rank."""
    recipe = law.recipe_of("simclr", "fp64", 1, 8, 100)
    some = digits()
    data = some if me.rank < 2 else some.subset(torch.arange(len(some)).flip(0))
    tiny = replace(recipe, batch_size=2)
    bad = replace(recipe, views=own_numbers)
    return {
        "images": me.every(trained(me, folder / "images", recipe, data=data)),
        "size": me.every(trained(me, folder / "size", tiny)),
        "draws": me.every(trained(me, folder / "draws", bad)),
        "folder": me.every(trained(me, folder / "whole", recipe)),
        "made": [path.name for path in folder.iterdir()] if me.first else None,
    }


def full_disk(me: Rank, folder: Path):
    """(the error on every rank, the status) where the first one cannot write a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def watch(progress):
        if progress.step == 2 and me.first:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))

    said = trained(me, folder / "full", watch=watch)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return me.every(said)


def not_finite(me: Rank, folder: Path):
    """The error on every rank of a learning rate that ends in NaN."""
    recipe = replace(law.recipe_of("simclr", "fp32", 1, 8, 100), lr=1e30, warmup=0)
    plain = replace(digits(), label=None, classes=())  # without a kNN, which would fail before
    return me.every(trained(me, folder / "nan", recipe, data=plain))


def scored(me: Rank, folder: Path):
    """What three ranks and one process find of one run, and of rows in batches of several sizes."""
    recipe, some = law.recipe_of("supcon", "fp32", 1, 8, 100), digits()
    trained(me, folder / "one", recipe, world=1)
    if me.first:
        shutil.copytree(folder / "one", folder / "three")
    me.every(None)
    found = {}
    for name, of in (("one", me.among(1)), ("three", me)):
        if me.rank < of.world:
            with of.in_force():
                run = folder / name
                scores = explain.evaluate(run, some, device="cpu")
                diagnosis = explain.diagnose(run, some, device="cpu")
                h = api.embed(run, some, device="cpu")[0].h
                found[name] = scores, diagnosis, h
        me.every(None)
    encoder = Encoder.load(folder / "one")
    rows = {
        size: [embed(encoder, some, size=8, batch_size=size, me=of) for of in (me.among(1), me)]
        for size in (400, 150, 40)  # batches: 1, 3, 10
    }
    return me.every((found, rows))


def frames(me: Rank, folder: Path):
    """By loss: weights and metrics of three ranks beside those of one process, for frames of video
    with positives in time."""
    some = digits()
    some = replace(some, features={TIME: torch.arange(len(some)) * 40})
    plain = replace(
        law.recipe_of("simclr", "fp64", 1, 8, 100), positives="time",
        batches=partial(moments, near=200), number_of_views=1,
    )  # fmt: skip
    found = {}
    for name, loss in (
        ("n_pairs", partial(losses.n_pairs)),
        ("time_contrastive", partial(losses.time_contrastive, near=200, far=400, margin=0.2)),
    ):
        recipe = replace(plain, name=name, loss=loss)
        runs = [law.trained(me, w, recipe, some, folder / f"{name}-{w}") for w in (1, 3)]
        me.gets_on()
        found[name] = law.compared(runs[1], runs[0]) if me.first else None
    return found


def unlike(me: Rank, folder: Path):
    """The error on every rank where one of them reads other images, weights, or none."""

    def said(of) -> str:
        try:
            with me.in_force():
                explain.evaluate(folder / "three", of, device="cpu")
        except (ValueError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    some = digits()
    swapped = some.subset(torch.arange(len(some)).flip(0))
    return {
        "images": me.every(said(swapped if me.rank == 1 else some)),
        "none": me.every(said(folder / "nowhere" if me.rank == 1 else some)),
    }


def finder(me: Rank, folder: Path):
    """What one, two and three ranks find of an encoder that has learned bits beside digits: z, the
    groups of its conditional batches, and z in training mode of a network with dropout."""
    images = open_images("random-bits(digits, bits=6)")
    recipe = replace(
        recipes.recipe_for("simclr", 8, 1), epochs=3, warmup=0, batch_size=128,
        backbone=partial(small_conv, channels=1, width=32),
    )  # fmt: skip
    recipe = adapt.beside_constants(recipe, images)
    trained(me, folder / "finder", recipe, data=images, world=1)
    me.every(None)
    encoder = Encoder.load(folder / "finder")
    over_ranks(encoder, cuda=False)
    dropping = copy.deepcopy(encoder)
    dropping.head = torch.nn.Sequential(dropping.head, torch.nn.Dropout())
    found = {}
    for world in (1, 2, 3):
        of, batches = me.among(world), conditional(len(images), 128)
        if me.rank < world:
            batches.begin(3, encoder, images, recipe, of)
            some = images.subset(torch.arange(400))
            rows = [
                embedded(dropping, some, replace(recipe, batch_size=size), of, n=2)
                for size in (400, 150, 40)  # batches: 1, 3, 10
            ]
            found[world] = batches.groups, rows
        me.gets_on()
    return me.every(found)


PARTS = (batch_norm, other_ranks, refused, full_disk, not_finite, scored, frames, unlike, finder)


def on_ranks(me: Rank, folder: str, steps: int, cases: tuple[str, ...]):
    """All of it, on every rank in the same order."""
    found = {}
    for part in PARTS:
        found[part.__name__] = part(me, Path(folder))
        me.gets_on()
    settings = (cases, ("digits",), ("fp64",), steps)
    found["laws"] = list(law.trained_on_ranks(me, f"{folder}/laws", *settings))
    return found


if __name__ == "__main__":
    where, steps = sys.argv[1], int(sys.argv[2])
    cases = tuple(sys.argv[3].split(","))
    with processes(3, "cpu", on_ranks, where, steps, cases) as me:
        torch.save(on_ranks(me, where, steps, cases), f"{where}/found.pt")
