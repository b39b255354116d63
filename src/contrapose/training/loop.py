"""The training loop: steps to the end of the recipe, checkpoints, and what stops it.

The images of a step depend only on (seed, epoch, step), and an image's views only on (seed, step,
image). So on a CPU a resumed run continues bit for bit, also in the middle of an epoch.
"""

import contextlib
from collections.abc import Callable

import torch

from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.errors import Interrupted, UserError
from contrapose.machine import freed_memory_kept
from contrapose.processes import Rank, shared
from contrapose.training.interruption import signals_deferred
from contrapose.training.objective import learned_label
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run
from contrapose.training.stages import stages_of
from contrapose.training.state import Progress, State
from contrapose.training.step import NonFiniteError


class InterruptedTraining(Interrupted):
    """Training was ended by Ctrl-C or a termination signal; the run is saved and can be resumed."""


def check(recipe: Recipe, images: ImageSet) -> None:
    """UserError for everything in the recipe and images that prevents training."""
    for stage in stages_of(recipe):
        if len(images) < stage.batch_size:
            first = "--batch-size (or --set batch_size=)"
            flag = first if stage is recipe else "--set second_stage.batch_size="
            raise UserError(
                f"{images.name} has {len(images)} images, fewer than a batch of "
                f"{stage.batch_size}; use {flag} {max(2, len(images) // 4)} or so"
            )
    if recipe.positives == "shared" and images.labels is None:
        raise UserError(
            f"positives=shared takes images with several labels, and those of {images.name} have "
            f"{'one' if images.label is not None else 'none'}; tell them as a matrix of 0 and 1, "
            "as lists, or as words such as cat|dog"
        )
    if recipe.learns_from_labels:
        label, _ = learned_label(recipe, images)
        if len(torch.unique(label[label >= 0])) < 2:
            raise UserError(
                f"recipe {recipe.name!r} learns from classes, and {images.name} has fewer than "
                "two; use --recipe simclr"
            )


def fit(
    recipe: Recipe,
    images: ImageSet,
    run: Run,
    encoder: Encoder,
    *,
    device: str = "cpu",
    bf16: bool = False,
    compiled: str = "off",
    watch: Callable[[Progress], None] = lambda progress: None,
    me: Rank | None = None,
) -> None:
    """Train `encoder` in place to the end of the recipe, from the newest checkpoint if any.

    compiled: one of `compiling.WAYS`. me: this process among those that share every batch; each of
    them calls this, the first one reads and writes the folder. After a training too short for the
    running statistics of batch normalisation they are estimated over training images (`batchnorm`),
    in the encoder file alone; status.json says so.

    Raises InterruptedTraining, NonFiniteError or OSError after saving what can be saved, on all
    ranks in the same step.
    """
    check(recipe, images)
    me = Rank(device=device) if me is None else me
    training = State(recipe, images, run, encoder, device, bf16, me, compiled)
    if training.done:
        return
    me.first_does(lambda: run.set_aside_findings(training.at))
    with (
        contextlib.closing(training),
        freed_memory_kept(),
        signals_deferred(
            training.stopped_at_once,
            aloud=lambda: me.first and not training.failing,
            after=1.0 if me.world > 1 else 0.0,
        ) as interrupted,
    ):
        me.first_does(lambda: training.status("running"))
        try:
            while training.at < training.steps:
                watch(training.advance())
                stopped, due = me.any(interrupted(), training.save_is_due())
                if stopped:
                    training.save()
                    training.status("interrupted", "stopped by a signal")
                    raise shared(
                        InterruptedTraining(
                            f"stopped at step {training.at} of {training.steps}, saved; "
                            f"continue with: contrapose train --resume {run.path}"
                        )
                    )
                if due:
                    training.save()
            training.finish()
        except InterruptedTraining:
            raise
        except KeyboardInterrupt:
            raise InterruptedTraining(training.stopped_at_once()) from None
        except NonFiniteError as error:
            reason = (
                f"step {training.at + 1} (epoch {training.epoch:.1f}): {error}; {run.last_good()}. "
                "Try a lower --set lr=..., --set clip=1.0 or a higher --temperature"
            )
            training.status("failed", reason)
            raise shared(NonFiniteError(reason)) from None
        except BaseException as error:
            training.failing = True
            if (lost := me.why_lost(error)) is not None:
                with contextlib.suppress(OSError):
                    training.status("failed", lost)
                raise me.without(
                    f"{lost}; {run.last_good()}; continue, on any number of ranks, with: "
                    f"contrapose train --resume {run.path}"
                ) from error
            with contextlib.suppress(OSError):  # the disk may be full for this file too
                training.status("failed", f"{type(error).__name__}: {error}")
            raise
        me.first_does(lambda: training.status("finished"))
        if me.any(interrupted())[0]:
            raise shared(InterruptedTraining(trained(run)))


def trained(run: Run) -> str:
    """What stands of a run that is interrupted once it is trained, and how to go on."""
    return (
        f"stopped after training: the encoder is trained and saved in {run.path}; for its "
        f"evaluation and report: contrapose train --resume {run.path}"
    )
