"""The training loop: epochs of steps, signals on the way, checkpoints, and an exact way back.

Which images a step takes depends on (seed, epoch, step) alone and the views' generator is part of
the checkpoint, so on a CPU a resumed run continues bit for bit, also in the middle of an epoch.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run
from contrapose.training.signals import measure, online_knn
from contrapose.training.step import NonFiniteError, Step, positive_groups, step

ROWS = 200  # of metrics.jsonl in a whole run
KNN_TIMES = 10  # in a whole run
CHECKPOINT_SECONDS = 600.0  # at least this often, besides every tenth of the run


class InterruptedTraining(Exception):
    """Ctrl-C or a termination signal; the run is saved and can be resumed."""


@dataclass(frozen=True)
class Progress:
    """Handed to `watch` after every step."""

    step: int
    steps: int
    epoch: float
    loss: float
    images_per_second: float
    row: dict[str, float] | None  # the signals, on the steps that measure them


def check(recipe: Recipe, images: ImageSet) -> None:
    """Everything that can be refused before training is."""
    if len(images) < recipe.batch_size:
        raise ValueError(
            f"{images.name} has {len(images)} images, fewer than a batch of {recipe.batch_size}; "
            f"use --batch-size {max(2, len(images) // 4)} or so"
        )
    if recipe.positives == "class":
        positive_groups(recipe, images.label, len(images), torch.device("cpu"))
        assert images.label is not None
        if len(torch.unique(images.label[images.label >= 0])) < 2:
            raise ValueError(
                f"recipe {recipe.name!r} takes positives from classes, and {images.name} has fewer "
                "than two; use --recipe simclr"
            )


def fit(
    recipe: Recipe,
    images: ImageSet,
    run: Run,
    encoder: Encoder,
    *,
    device: str = "cpu",
    bf16: bool = False,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train `encoder` in place to the end of the recipe, from the newest checkpoint if there is one.

    Raises InterruptedTraining, NonFiniteError or OSError after saving what can be saved.
    """
    check(recipe, images)
    per_epoch = len(images) // recipe.batch_size  # the rest waits for the next epoch's order
    steps = max(1, math.floor(per_epoch * recipe.epochs))
    lr = recipe.scaling(recipe.lr, recipe.batch_size)
    encoder.to(device)
    optimizer = recipe.optimizer(encoder, lr=lr)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    restored = run.load_checkpoint()
    done, seconds = 0, 0.0
    if restored is not None:
        weights, state = restored
        _same_images(state, images, run)
        encoder.load_state_dict(weights)
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        done, seconds = state["step"], state["seconds"]
    run.cut_metrics(done)
    measure_every, knn_every = max(1, steps // ROWS), max(1, steps // KNN_TIMES)
    images = images.to(device)
    started, saved = time.monotonic() - seconds, time.monotonic()
    order, epoch_of_order = torch.empty(0, dtype=torch.long), -1

    def save(at: int) -> None:
        state = {
            "step": at,
            "seconds": time.monotonic() - started,
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "torch": torch.get_rng_state(),
            "fingerprint": images.fingerprint,
        }
        run.save_checkpoint(at, encoder.to_bytes(), state)
        status("running", at)

    def status(state: str, at: int, reason: str | None = None) -> None:
        spent = time.monotonic() - started
        run.write(
            "status.json",
            {
                "state": state,
                "epoch": at / per_epoch,
                "epochs": recipe.epochs,
                "step": at,
                "steps": steps,
                "seconds": round(spent, 1),
                "images_per_second": round(at * recipe.batch_size / max(spent, 1e-9), 1),
                "reason": reason,
            },
        )

    encoder.train()
    with _signals_deferred() as interrupted:
        status("running", done)
        at = done
        try:
            while at < steps:
                epoch, within = divmod(at, per_epoch)
                if epoch != epoch_of_order:
                    order, epoch_of_order = shuffled(len(images), recipe.seed, epoch), epoch
                index = order[within * recipe.batch_size : (within + 1) * recipe.batch_size]
                factor = recipe.schedule(at / per_epoch, recipe.epochs, warmup=recipe.warmup)
                for parameters in optimizer.param_groups:
                    parameters["lr"] = lr * factor
                label = None if images.label is None else images.label[index].to(device)
                seen = step(
                    encoder, optimizer, images.batch(index), label, recipe, generator, bf16=bf16
                )
                at += 1
                row = None
                if at % measure_every == 0 or at in (1, steps):
                    row = _row(at, per_epoch, started, lr * factor, seen, recipe)
                    if images.label is not None and (at % knn_every == 0 or at == steps):
                        if (images.label >= 0).any():
                            row["knn"] = online_knn(encoder, images, recipe, device, bf16)
                            encoder.train()
                    run.append_metrics(row)
                spent = time.monotonic() - started
                speed = at * recipe.batch_size / max(spent, 1e-9)
                watch(Progress(at, steps, at / per_epoch, seen.loss, speed, row))
                if interrupted():
                    save(at)
                    status("interrupted", at, "stopped by a signal")
                    raise InterruptedTraining(
                        f"stopped at step {at} of {steps}, saved; "
                        f"continue with: contrapose train --resume {run.path}"
                    )
                due = at % max(1, steps // 10) == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS
                if due or at == steps:
                    save(at)
                    saved = time.monotonic()
        except NonFiniteError as error:
            reason = (
                f"step {at + 1} (epoch {at / per_epoch:.1f}): {error}. The last good checkpoint is "
                "kept; try a lower --set lr, --set clip=1.0 or a higher --temperature"
            )
            status("failed", at, reason)
            raise NonFiniteError(reason) from None
        except OSError as error:
            _try(lambda: status("failed", at, str(error)))
            raise
        status("finished", at)


def shuffled(n: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    """The order of the images in an epoch, from (seed, epoch) alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def _row(
    at: int, per_epoch: int, started: float, lr: float, seen: Step, recipe: Recipe
) -> dict[str, float]:
    clock = {"step": at, "epoch": at / per_epoch, "seconds": time.monotonic() - started, "lr": lr}
    return clock | measure(seen, recipe)


def _same_images(state: dict[str, Any], images: ImageSet, run: Run) -> None:
    if state["fingerprint"] != images.fingerprint:
        raise ValueError(
            f"{run.path} was trained on images with fingerprint {state['fingerprint']}, "
            f"{images.name} now has {images.fingerprint}; restore the images, or start a new run"
        )


@contextmanager
def _signals_deferred() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait for the end of the step; a second Ctrl-C does not."""
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(kind, remember) for kind in kinds]
    except ValueError:  # not the main thread: its signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _try(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        pass
