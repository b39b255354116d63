"""How often a training step makes the host wait for the device: once, for loss and gradient norm.

No GPU is needed: the step runs on torch's "meta" device, whose tensors have no values, under a mode
that counts what would wait on CUDA. It returns ones where values are read. What `meta` cannot show
is what code asks of a device of type "cuda" alone: kernels of Triton, pinned memory, autocast.
"""

import contextlib
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contrapose import adapt, recipes
from contrapose.data import open_images
from contrapose.data.images import InMemory
from contrapose.machine import on_device
from contrapose.training.objective import Batch, objective_of
from contrapose.training.step import step

ops = torch.ops.aten
OF_VALUES = {  # the shape of the result depends on values
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for the device, here `meta`."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor) and x.is_meta]
        name = func.overloadpacket.__name__
        if func is ops._local_scalar_dense.default and there:
            self.seen.append(name)
            return 1.0 if args[0].is_floating_point() else 1
        if name in OF_VALUES and there:
            self.seen.append(name)
        if name.startswith("index") and any(x.dtype == torch.bool for x in there[1:]):
            self.seen.append(f"{name} by a mask")
        if func is ops._to_copy.default:
            target = torch.device(kwargs.get("device") or args[0].device)
            if args[0].is_meta and target.type == "cpu":
                self.seen.append("copy to the host")
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if target.type == "meta" and not args[0].is_meta and not kwargs.get("non_blocking"):
                self.seen.append("copy to the device, waited for")
        if func is ops.copy_.default and args[0].is_meta != args[1].is_meta and not args[2:]:
            self.seen.append(name)
        return func(*args, **kwargs)


class Generator(torch.Generator):
    """A CPU generator that says it is the device's; without values nothing is drawn."""

    @property
    def device(self):
        return torch.device("meta")


def step_without_values(name, changes, monkeypatch):
    images = open_images(
        torch.randint(0, 256, (8, 24, 24, 3), dtype=torch.uint8).numpy(), labels=[0, 1] * 4,
        channels=3,
    )  # fmt: skip
    recipe = adapt.changed(
        recipes.recipe_for(name, 24, 3), images, encoder="small_conv", batch_size=8,
        changes=["backbone.width=8", *changes],
    )  # fmt: skip
    encoder = adapt.build(recipe, images).train().to("meta")
    optimizer = recipe.optimizer(encoder, lr=0.1)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with warnings.catch_warnings(action="ignore"):
        objective = objective_of(recipe, encoder, len(images))
        pixels = InMemory(images.pixels.pixels.to("meta"))
        with Waits() as waits:
            index = torch.arange(8)
            label = on_device(images.label, "meta") if recipe.learns_from_labels else None
            batch = Batch(pixels.batch(index), on_device(index, "meta"), label)
            seen = step(encoder, optimizer, objective, batch, recipe, Generator())
            objective.update(encoder, seen.compared)
    return waits.seen


@pytest.mark.parametrize("name", sorted({*recipes.names()} - {"time_contrastive"}))
def test_a_step_waits_once_for_the_device(name, monkeypatch):
    assert step_without_values(name, [], monkeypatch) == ["copy to the host"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("simclr", ["chunk=4"]),
        ("moco", ["chunk=4"]),
        ("supcon", ["clip=1.0", "views=randaugment"]),
        ("simclr", ["optimizer=adamw", "views=simaugment"]),
        ("simclr", ["optimizer=lars"]),
    ],
)
def test_so_does_one_in_chunks_clipped_or_by_another_optimiser(name, changes, monkeypatch):
    assert step_without_values(name, changes, monkeypatch) == ["copy to the host"]


def test_what_makes_a_host_wait_is_seen():
    with Waits() as waits:
        x = torch.arange(4.0).to("meta")
        float(x[0])
        x.tolist()
        torch.arange(4).to("meta", non_blocking=True)
        with pytest.raises(NotImplementedError):
            x[x > 0]
    assert waits.seen == [
        "copy to the device, waited for", "_local_scalar_dense", "copy to the host",
        "index by a mask",
    ]  # fmt: skip
