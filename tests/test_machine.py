"""Where a run computes: what `auto` finds, what each kind of device can do, what is asked for.

No machine with Apple's mps was at hand: what torch says of one is set here, and that training needs
no float64, which mps lacks, is seen from every tensor that a step makes.
"""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
from support.quick_recipe import quick
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import contrapose
from contrapose import adapt, machine, recipes
from contrapose.augment import views
from contrapose.data import open_images
from contrapose.errors import UserError
from contrapose.processes import ranks
from contrapose.training import precision
from contrapose.training.objective import Batch, objective_of
from contrapose.training.step import step


@pytest.fixture
def mac(monkeypatch):
    """torch as it is on a Mac with mps."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_finds_mps_where_there_is_no_cuda(mac, monkeypatch):
    assert machine.choose_device("auto") == machine.choose_device("mps") == "mps"
    assert machine.choose_device("cpu") == "cpu"
    why = machine.why_device("auto", "mps")
    assert "float64" in why and "on the CPU" in why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.choose_device("auto") == "cuda"


def test_mps_is_refused_where_there_is_none_and_where_it_cannot_do_the_work(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device, words in (
        ("mps", "torch sees no Metal"),
        ("mps:0", "use auto, cpu, cuda, cuda:N or mps"),
        ("tpu", "use auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", "use auto, cpu, cuda, cuda:N or mps"),
    ):
        with pytest.raises(UserError, match=words):
            machine.choose_device(device)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks._shared("auto") == "cpu"
    with pytest.raises(UserError, match="neither has float64 nor exchanges rows"):
        ranks._shared("mps")


def test_what_mps_lacks_is_done_on_the_cpu_and_bf16_only_where_it_is_asked_for():
    assert not machine.has_float64("mps") and machine.has_float64("cuda:1")
    assert not machine.choose_bf16("auto", "mps") and machine.choose_bf16("bf16", "mps")
    there = torch.zeros(2, device="meta")

    @dataclasses.dataclass(frozen=True)
    class Inner:
        x: torch.Tensor
        n: int = 3

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner
        y: torch.Tensor | None
        z: torch.Tensor

    with pytest.raises(NotImplementedError, match="meta"):  # torch: there is nothing to copy
        machine.on_cpu(Outer(Inner(there), None, torch.ones(1)))
    moved = machine.on_cpu(Outer(Inner(torch.ones(1)), None, torch.ones(1)))
    assert moved.inner.n == 3 and moved.y is None and moved.z.device.type == "cpu"


class NoFloat64(TorchDispatchMode):
    """Fails where an operation gives float64, as mps does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                raise AssertionError(f"{func} gives float64")
        return found


@pytest.mark.parametrize("name", ["simclr", "supcon", "moco", "cross_entropy", "xbm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_needs_no_float64(name, channels):
    images = open_images(
        torch.randint(0, 256, (8, 24, 24, channels), dtype=torch.uint8).numpy(),
        labels=[0, 1] * 4, channels=channels,
    )  # fmt: skip
    recipe = adapt.changed(
        recipes.recipe_for(name, 24, channels), images, encoder="small_conv", batch_size=8,
        changes=["backbone.width=8"],
    )  # fmt: skip
    encoder = adapt.build(recipe, images).train()
    optimizer = recipe.optimizer(encoder, lr=0.1)
    objective = objective_of(recipe, encoder, len(images))
    index, generator = torch.arange(8), torch.Generator().manual_seed(0)
    with NoFloat64():
        batch = Batch(images.batch(index), index, images.label)
        seen = step(encoder, optimizer, objective, batch, recipe, generator)
        objective.update(encoder, seen.compared)
    assert torch.isfinite(torch.tensor(seen.loss))


def test_the_views_of_digits_need_no_float64():
    recipe = quick()
    with NoFloat64():
        views(recipe.policy, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.Generator(), n=2)
    with pytest.raises(AssertionError, match="gives float64"), NoFloat64():
        torch.zeros(2).double()


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """A processor that multiplies bf16 by what it says of itself, where every run is measured."""
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(precision, "WORTH", 0)
    return tmp_path


def test_the_faster_precision_of_a_processor_is_measured_kept_and_resumed(measuring):
    digits, recipe = open_images("digits"), quick(epochs=0.1, warmup=0)  # one step
    run = contrapose.train(recipe, digits, out=measuring / "a", device="cpu")
    written = run.read("environment.json")
    assert re.fullmatch(
        r"measured at the start: a step of \d+ images takes .* s in bf16, .* s in fp32",
        written["why"]["precision"],
    )
    (kept,) = (measuring / "cache/precision").iterdir()
    for bf16, expected in ((0.1, "bf16"), (0.99, "fp32")):
        kept.write_text(json.dumps({"bf16": bf16, "fp32": 1.0, "images": 32}))
        run = contrapose.train(recipe, digits, out=measuring / str(bf16), device="cpu")
        written = run.read("environment.json")
        assert written["precision"] == expected
        assert written["why"]["precision"].startswith("measured before: a step of 32 images")
    kept.write_text(json.dumps({"bf16": 0.1, "fp32": 1.0, "images": 32}))
    again = contrapose.resume(run, recipe=recipe, images=digits, device="cpu")
    assert again.read("environment.json")["resumed"][0]["precision"] == "fp32"
    asked = contrapose.train(
        recipe, digits, out=measuring / "asked", device="cpu", precision="fp32"
    )
    assert asked.read("environment.json")["why"]["precision"] == "asked for by --precision fp32"


def test_unmeasured_a_processor_trains_in_bf16_only_with_units_for_it(monkeypatch):
    for flags, multiplies, auto in (
        (set(), False, False), ({"avx512_bf16"}, True, False),
        ({"avx512_bf16", "amx_bf16"}, True, True), ({"bf16"}, True, True),
    ):  # fmt: skip
        monkeypatch.setattr(machine, "_cpu_flags", lambda flags=flags: flags)
        assert machine.multiplies_bf16("cpu") == multiplies
        assert machine.choose_bf16("auto", "cpu") == auto
        assert machine.choose_bf16("bf16", "cpu")


def test_a_short_run_is_not_measured_and_measuring_draws_nothing(measuring, monkeypatch):
    digits, recipe = open_images("digits"), quick(epochs=1)
    network, state = adapt.build(recipe, digits), torch.get_rng_state()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    assert precision.faster_precision(recipe, digits, network) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    monkeypatch.setattr(precision, "WORTH", len(digits) + 1)
    assert precision.faster_precision(recipe, digits, network) is None


PAGES = """
import resource
from pathlib import Path

import torch
from contrapose import machine


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def take():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


take()
without = take()
before = resident()
with machine.freed_memory_kept():
    take()
    print(take(), resident() - before, end=" ")
print(resident() - before, end=" ")
take()
print(resident() - before, without)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step_and_given_back_at_the_end():
    """Page faults of 64 MB that are taken and freed ten times, and the resident memory after.

    In a process of its own, whose memory has no holes that other tests left. Once in five times the
    end leaves a hole that glibc fills with the next blocks and keeps: two, not all of them.
    """
    found = subprocess.run(
        [sys.executable, "-c", PAGES], capture_output=True, text=True, check=True
    )
    faults, kept, left, later, without = map(float, found.stdout.split())
    assert without > 1000 and faults < 100
    assert kept > 2**25 and left < 2**25
    assert later < 3 * 2**26
