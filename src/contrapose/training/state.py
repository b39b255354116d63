"""The state of a run between two steps: what a checkpoint holds, and what one step changes."""

import contextlib
import math
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data import ImageSet
from contrapose.encoders import Encoder, fastest_layout, read_weights
from contrapose.errors import UserError
from contrapose.files import this_process
from contrapose.machine import on_device
from contrapose.portions import seed_of_step
from contrapose.processes import Rank
from contrapose.training.batches import Drawn
from contrapose.training.batchnorm import estimate_statistics, fewest_updates
from contrapose.training.feed import Feed
from contrapose.training.objective import Batch, learned_label, objective_of
from contrapose.training.parallel import training_of
from contrapose.training.recipe import Recipe
from contrapose.training.run import KILLED, OtherImages, Run, Weights, say
from contrapose.training.signals import online_knn, step_signals
from contrapose.training.stages import stages_of
from contrapose.training.step import NonFiniteError, step

ROWS = 100  # of metrics.jsonl in a whole run
KNN_TIMES = 10  # in a whole run
OTHER_RANK = 2**31 + 1  # from the seed of one rank's dropout to the next one's
CHECKPOINT_SECONDS = 600.0  # at least this often, besides every tenth of the run


@dataclass(frozen=True)
class Progress:
    """The progress of training, passed to `watch` after every step."""

    step: int
    steps: int
    epoch: float
    loss: float
    images_per_second: float
    row: dict[str, float] | None  # the signals, on the steps that measure them
    waiting_share: float = 0.0  # of the time since the signals before: no step, images were read


class State:
    """The state of a run between two steps, which a checkpoint stores or `at` determines."""

    def __init__(
        self,
        recipe: Recipe,
        images: ImageSet,
        run: Run,
        encoder: Encoder,
        device: str,
        bf16: bool,
        me: Rank,
        compiled: str = "off",
    ) -> None:
        self.run, self.encoder, self.bf16, self.me = run, encoder, bf16, me
        self.compiled = compiled
        self.failing = False
        self.device = device
        self.stages = stages_of(recipe)
        ends = accumulate(steps_of(stage, len(images)) for stage in self.stages)
        self.begins = [0, *ends]  # the step before which each stage begins, and the last step
        self.steps = self.begins[-1]
        self.generator = torch.Generator(device)
        self.images = images.to(torch.device(device))
        fastest_layout(encoder.to(device), recipe.size, bf16=bf16).train()
        self.trainable = [weight for weight in encoder.parameters() if weight.requires_grad]
        self._enter(0)
        before, self.at, seconds = me.first_does(self._opened)
        self.estimated: dict[str, int] = before.get("estimated_statistics") or {}
        self._same_everywhere()
        self.done = before.get("state") == "finished" and self.at >= self.steps
        self.started, self.saved = time.monotonic() - seconds, time.monotonic()
        self.feed.start_clock()

    def _enter(self, stage: int) -> None:
        """Make all that a stage of training has of its own, for the encoder as it is."""
        self.stage, self.recipe = stage, self.stages[stage]
        recipe, encoder = self.recipe, self.encoder
        self.first = self.begins[stage]
        self.lr = recipe.scaling(recipe.lr, recipe.batch_size)
        for weight in self.trainable:
            weight.requires_grad_(True)
            weight.grad = None  # of the stage before, which would count where the weight is frozen
        encoder.freeze(recipe.freeze)
        self.sharing = training_of(encoder, recipe, self.me, self.compiled)
        self.optimizer = recipe.optimizer(encoder, lr=self.lr)
        self.objective = objective_of(recipe, encoder, len(self.images))
        self.feed = Feed(
            recipe, self.images, self.sharing, me=self.me, begin=self.first,
            end=self.begins[stage + 1], epochs_before=self._epochs_before,
        )  # fmt: skip
        self.label = learned_label(recipe, self.images)[0] if recipe.learns_from_labels else None

    def _cross(self) -> None:
        """Go from the first stage to the second: settle statistics, draw the classifier anew.

        All of it follows from the encoder and the seed, so that a run which is resumed at the
        border is the same.
        """
        self._estimate()
        self.feed.close()
        self._seeded()
        classifier = self.encoder.classifier
        assert classifier is not None
        kind = classifier.weight.dtype
        classifier.float().reset_parameters()  # the same numbers in any precision
        classifier.to(kind)
        self._enter(self.stage + 1)
        self._same_everywhere()
        self.feed.start_clock()

    def _opened(self) -> tuple[dict[str, Any], int, float]:
        """(status, step, seconds) of the run folder, whose newest checkpoint is taken up."""
        run, before, at, seconds = self.run, self.run.status(), 0, 0.0
        restored = run.load_checkpoint(self._restore)
        if restored is not None:
            at, seconds = restored[1]["step"], restored[1]["seconds"]
            run.settle(at)
        elif before.get("state") == "finished":
            self._finished_without_checkpoints(before)
            at = self.steps
        else:
            run.settle(0)
        if before.get("state") in ("running", "killed"):  # this process holds the folder now
            say(
                f"{run.path} was killed after step {before.get('step')} of {self.steps} "
                f"({KILLED}); going on from step {at}"
            )
        return before, at, seconds

    def _same_everywhere(self) -> None:
        """Give the other ranks the state of the first one: weights, optimiser, keys, batches.

        Only then are gradients exchanged: what comes before may be done by the first one alone.
        """
        if self.me.world == 1:
            return
        stage = self.me.first_does(lambda: self.stage)
        if stage != self.stage:
            self._enter(stage)
        parts = self.encoder, self.optimizer, self.objective, self.feed.batches
        first = self.me.first_does(lambda: [_on_host(part.state_dict()) for part in parts])
        if not self.me.first:
            for part, state in zip(parts, first, strict=True):
                part.load_state_dict(state)
        self.sharing.join()

    def _restore(self, weights: Weights, state: dict[str, Any]) -> None:
        """Everything but the clock as the checkpoint has it; OtherImages for those of another."""
        _same_images(state, self.images, self.run)
        stage = sum(state["step"] > end for end in self.begins[1:-1])
        if stage != self.stage:
            self._enter(stage)
        self.encoder.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        older = {f"keys.{name}": x for name, x in (state.get("keys") or {}).items()}
        self.objective.load_state_dict(state.get("objective", older))
        if (kept := state.get("batches")) is not None:  # None: of an older run
            self.feed.batches.load_state_dict(kept)
        if state["device"] != self.generator.device.type:
            warnings.warn(
                f"{self.run.path} was trained on {state['device']} until step {state['step']}; its "
                f"views are now drawn on {self.device}, with other random numbers",
                stacklevel=2,
            )

    def _finished_without_checkpoints(self, status: dict[str, Any]) -> None:
        """The weights of a finished run whose checkpoints were removed to save space."""
        if status.get("steps") != self.steps:
            raise UserError(
                f"{self.run.path} is finished and its checkpoints were removed, so it cannot be "
                "trained further; start a new run"
            )
        self.encoder.load_state_dict(read_weights(self.run.path)[0])

    @property
    def epoch(self) -> float:
        """Epochs so far, those of the first stage in the second."""
        return self._epochs_before + self._epoch_of_stage

    @property
    def _epoch_of_stage(self) -> float:
        return (self.at - self.first) / self.feed.per_epoch

    @property
    def _epochs_before(self) -> float:
        return sum(stage.epochs for stage in self.stages[: self.stage])

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def advance(self) -> Progress:
        """One step, and its row of signals where one is due."""
        if self.at == self.begins[self.stage + 1]:
            self._cross()
        recipe, batches = self.recipe, self.feed.batches
        whole = self.feed.index(self.at, self.encoder)
        place = self.sharing.place(len(whole))
        index = whole[place]
        factor = recipe.schedule(self._epoch_of_stage, recipe.epochs, warmup=recipe.warmup)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.lr * factor
        label = _of(self.images.label, index, self.device)
        seen = step(
            self.encoder,
            self.optimizer,
            self.objective,
            Batch(
                image=self.feed.take(self.at, index),
                index=on_device(index, self.device),
                label=_of(self.label, index, self.device),
                several=_of(self.images.labels, index, self.device),
                part=_of(part_of(batches.size, len(whole)), place, self.device),
                place=None if isinstance(place, slice) else on_device(place, self.device),
            ),
            recipe,
            self._seeded(),
            label=label,
            bf16=self.bf16,
            sharing=self.sharing,
            images=len(whole),
        )
        self.at += 1
        row = None
        due = self.at % max(1, self.steps // ROWS) == 0 or self.at in (1, self.steps)
        if due or seen.compared.entries is not None:
            seen = seen.of_all(self.objective, self.sharing, len(whole))
        if due:
            clock = {"step": self.at, "epoch": self.epoch, "seconds": self.seconds}
            clock["waiting_share"] = self.feed.measure_waiting()
            clock["lr"] = self.lr * factor
            if not isinstance(batches, Drawn):
                clock["part_size"] = float(batches.size or len(whole))
            knn = self._knn()
            row = self.me.first_does(lambda: clock | step_signals(seen, self.objective) | knn)
        self.objective.update(self.encoder, seen.compared)
        if row is not None:
            self.me.first_does(partial(self.run.append_metrics, row))
        speed = self._images_seen / max(self.seconds, 1e-9)
        waiting = self.feed.waiting_share
        return Progress(self.at, self.steps, self.epoch, seen.loss, speed, row, waiting)

    def close(self) -> None:
        self.feed.close()

    def save_is_due(self) -> bool:
        tenth = self.at % max(1, self.steps // 10) == 0 or self.at in self.begins[1:]
        return tenth or time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def save(self) -> None:
        objective = self.objective.state_dict()
        for name, held in (("a weight", self.encoder.state_dict()), ("a key", objective)):
            if not all(bool(x.isfinite().all()) for x in held.values()):
                raise NonFiniteError(f"the update made {name} NaN or infinite")
        state = {
            "device": self.generator.device.type,
            "step": self.at,
            "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
            "objective": objective,
            "batches": self.feed.batches.state_dict(),
            "fingerprint": self.images.fingerprint,
        }
        self.me.first_does(
            lambda: self.run.save_checkpoint(self.at, self.encoder.to_bytes(), state)
        )
        self.saved = time.monotonic()
        self.status("running")

    def finish(self) -> None:
        """After few updates, write the encoder with statistics of batch normalisation estimated.

        Checkpoints stay as they are, and so does encoder.safetensors after many updates.
        """
        if self._estimate():
            written = self.encoder.to_bytes(final_step=self.at)
            self.me.first_does(lambda: self.run.write_encoder(written))

    def _estimate(self) -> bool:
        """Estimate the statistics of batch normalisation after few updates; False after many."""
        updates = fewest_updates(self.encoder)
        if updates is None:
            return False
        recipe = self.recipe
        looked_at = estimate_statistics(
            self.encoder, self.images, recipe.policy, seed=recipe.seed,
            number_of_views=recipe.number_of_views, device=self.device,
        )  # fmt: skip
        self.estimated = {"updates": updates, "images": looked_at, "views": recipe.number_of_views}
        return True

    def stopped_at_once(self) -> str:
        """Note in the folder that a second signal ended the run in the middle of a step; words."""
        with contextlib.suppress(OSError):
            self.status("interrupted", "stopped at once by a second signal")
        return (
            f"stopped at once, after step {self.at} of {self.steps}; {self.run.last_good()}; "
            f"continue with: contrapose train --resume {self.run.path}"
        )

    def status(self, state: str, reason: str | None = None) -> None:
        if not self.me.first:
            return
        done = self._images_seen
        self.run.write(
            "status.json",
            {
                "state": state,
                "epoch": self.epoch,
                "epochs": sum(stage.epochs for stage in self.stages),
                "step": self.at,
                "steps": self.steps,
                "seconds": round(self.seconds, 1),
                "images_per_second": round(done / max(self.seconds, 1e-9), 1),
                "reason": reason,
                **({"estimated_statistics": self.estimated} if self.estimated else {}),
                **this_process(),
            },
        )

    @property
    def _images_seen(self) -> int:
        done = ((max(0, min(self.at, end) - begin)) for begin, end in pairwise(self.begins))
        return sum(n * stage.batch_size for n, stage in zip(done, self.stages, strict=True))

    def _seeded(self) -> torch.Generator:
        """The generator of the views, and torch's own (dropout), as (seed, step) set them."""
        seed = seed_of_step(self.recipe.seed, self.at)
        torch.manual_seed(seed + OTHER_RANK * self.me.rank)  # dropout is another on each rank
        return self.generator.manual_seed(seed)

    def _knn(self) -> dict[str, float]:
        due = self.at % max(1, self.steps // KNN_TIMES) == 0 or self.at == self.steps
        if not due or self.images.label is None or int((self.images.label >= 0).sum()) < 2:
            return {}
        found = online_knn(self.encoder, self.images, self.recipe, self.device, self.bf16, self.me)
        self.encoder.train()
        return {"knn": found}


def steps_of(recipe: Recipe, images: int) -> int:
    """Steps of one stage: whole batches of each epoch, one step at least."""
    return max(1, math.floor(images // recipe.batch_size * recipe.epochs))


def part_of(size: int | None, images: int) -> Int[Tensor, " B"] | None:
    """The number of the part (of `size` images) of each image of a batch; None for one part."""
    return None if size is None else torch.arange(images) // size


def _on_host(state: Any) -> Any:
    """The state with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {name: _on_host(x) for name, x in state.items()}
    return [_on_host(x) for x in state] if isinstance(state, list) else state


def _of(values: Tensor | None, index: Int[Tensor, " B"] | slice, device: str) -> Tensor | None:
    """Those of the batch, on the device."""
    return None if values is None else on_device(values[index], device)


def _same_images(state: dict[str, Any], images: ImageSet, run: Run) -> None:
    if not images.holds(state["fingerprint"]):
        raise OtherImages(
            f"{run.path} was trained on images with fingerprint {state['fingerprint']}, "
            f"{images.name} now has {images.fingerprint}; restore the images, or start a new run"
        )
