"""Prefetching changes when images are read, and nothing else."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.quick_recipe import quick
from torch import Tensor

import contrapose
from contrapose.data import ImageSet, Prefetch, batches_ahead, open_images, prefetch
from contrapose.encoders import read_weights
from contrapose.training.batches import Drawn
from contrapose.training.run import Run


@dataclass(eq=False)
class Slow:
    """Pixels that take a while; which batches were read is noted."""

    x: Tensor
    seconds: float = 0.0
    read: list[list[int]] = field(default_factory=list)
    device = torch.device("cpu")
    channels, side = 1, 8

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> Tensor:
        time.sleep(self.seconds)
        self.read.append(index.tolist())
        return self.x[index]

    def subset(self, index: Tensor) -> "Slow":
        return Slow(self.x[index], self.seconds)

    def to(self, device: torch.device) -> "Slow":
        return self


def slow(seconds: float = 0.0, n: int = 64) -> ImageSet:
    x = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return ImageSet("slow", "all", Slow(x, seconds), None, (), 1, 8, "0")


def all_gone() -> bool:
    """Whether no thread reads any more, at once or soon."""
    until = time.monotonic() + 2
    while any(t.name.startswith("contrapose-prefetch") for t in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def on_access(tmp_path: Path, n: int = 256) -> ImageSet:
    digits = open_images("digits")
    np.save(tmp_path / "digits.npy", digits.batch(torch.arange(n)).numpy())
    return open_images(tmp_path / "digits.npy", memory=0)


def regrouped(images: int, batch_size: int) -> Drawn:
    """Batches whose order changes when an epoch begins, so that what was read ahead is wrong."""

    class Regrouped(Drawn):
        begun = 0

        def begin(self, epoch: int, *_: Any) -> None:
            self.begun = epoch

        def order(self, epoch: int, seed: int) -> Tensor:
            return super().order(epoch, seed + (1000 if epoch and self.begun == epoch else 0))

    return Regrouped(images, batch_size)


@pytest.mark.parametrize("batches", [None, regrouped])
def test_training_is_the_same_bit_for_bit_with_and_without(tmp_path, monkeypatch, batches):
    images = on_access(tmp_path)
    recipe = quick(batch_size=48, epochs=3, batches=batches)
    weights = []
    for ahead in (0, 2, 9):  # 9: beyond an epoch of 5 steps
        monkeypatch.setattr(prefetch, "AHEAD", ahead)
        run = contrapose.train(recipe, images, out=tmp_path / str(ahead), device="cpu")
        weights.append(read_weights(run.path)[0])
    assert all_gone()
    for other in weights[1:]:
        assert all(torch.equal(other[name], w) for name, w in weights[0].items())


def test_a_run_that_stops_within_an_epoch_goes_on_with_the_same_images(tmp_path):
    images, recipe = on_access(tmp_path), quick(batch_size=48, epochs=2)
    whole = contrapose.train(recipe, images, out=tmp_path / "whole", device="cpu")

    def stop(at: Any) -> None:
        if at.step == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        contrapose.train(recipe, images, out=tmp_path / "run", device="cpu", watch=stop)
    assert all_gone()
    run = contrapose.resume(tmp_path / "run", recipe=recipe, images=images, device="cpu")
    once, again = (read_weights(r.path)[0] for r in (whole, run))
    assert all(torch.equal(again[name], w) for name, w in once.items())


def test_batches_come_as_asked_for_whatever_was_announced():
    images, draw = slow(), torch.Generator().manual_seed(1)
    ahead = Prefetch(images, 4)
    for _ in range(50):
        index, *following = torch.randint(0, 3, (4, 4), generator=draw)
        assert torch.equal(ahead.take(index, following), images.pixels.x[index])
    ahead.close()
    assert all_gone()


def test_no_more_batches_are_read_than_are_stated():
    images = slow(n=10_000)
    assert batches_ahead(images, 100) == (2, 2 * 100 * 64)
    assert batches_ahead(open_images("digits"), 100) == (0, 0)  # in memory: nothing to wait for
    assert batches_ahead(images, 2**30)[0] == 1  # one is read ahead however large
    ahead = Prefetch(images, 100)
    order = torch.arange(10_000).view(-1, 100)
    ahead.take(order[0], [*order[1:]])
    time.sleep(0.2)
    assert images.pixels.read == order[:3].tolist()
    ahead.close()


def test_an_error_is_raised_by_the_step_that_takes_the_batch(tmp_path):
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    images = open_images(tmp_path, memory=0)
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[:400] + bytes(300) + whole[700:])
    ahead, order = Prefetch(images, 2), torch.arange(6).view(3, 2)
    for k in range(2):
        assert torch.equal(ahead.take(order[k], [*order[k + 1 :]]), images.batch(order[k]))
    with pytest.raises(ValueError, match=r"4\.png: .* decoding failed"):
        ahead.take(order[2])
    ahead.close()


def test_closing_does_not_wait_for_what_is_being_read(tmp_path):
    images = slow(seconds=0.3)
    ahead, order = Prefetch(images, 4), torch.arange(64).view(-1, 4)
    ahead.take(order[0], [*order[1:]])
    begun = time.monotonic()
    ahead.close()
    assert time.monotonic() - begun < 0.2
    time.sleep(0.5)
    assert all_gone() and len(images.pixels.read) <= 2  # the one that was on its way


def test_the_share_of_the_time_spent_waiting_is_a_signal(tmp_path):
    recipe, said = quick(batch_size=16, epochs=1), []
    images = slow(seconds=0.6)  # long beside a step, on a busy machine too
    run = contrapose.train(
        recipe, images, out=tmp_path / "a", device="cpu", watch=lambda at: said.append(at)
    )
    share = [row["waiting_share"] for row in Run.open(run.path).metrics()]
    assert share[0] == 0  # nothing could be read before the first step
    assert all(0.3 < x < 1 for x in share[1:]) and said[-1].waiting_share == share[-1]
    fast = contrapose.train(
        quick(epochs=1), open_images("digits"), out=tmp_path / "b", device="cpu"
    )
    assert all(row["waiting_share"] < 0.2 for row in fast.metrics())
