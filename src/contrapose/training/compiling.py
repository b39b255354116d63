"""torch.compile of the encoder in a training step: off, on, or on with CUDA graphs.

    on        backbone, head and what is between them as kernels that are fused for their shapes
    graphs    these kernels recorded once and replayed: the host no longer starts each of them

Compiling takes tens of seconds, and what it gains differs from network to network, so on CUDA steps
of each way are measured before a run that is long enough. On a CPU `auto` is off: wherever it was
measured a compiled step was no quicker (ResNet-18 at 32 px: 1.82 s against 1.70).
"""

import copy
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from contrapose.data import ImageSet
from contrapose.encoders import Encoder, fastest_layout
from contrapose.errors import UserError
from contrapose.machine import freed_memory_kept
from contrapose.progress import duration
from contrapose.training.batches import shuffled
from contrapose.training.recipe import Recipe
from contrapose.training.trials import remembered, timed_step

WAYS = ("off", "on", "graphs")
IN_WORDS = {"off": "not compiled", "on": "compiled", "graphs": "with CUDA graphs"}
STEPS = 5  # of each way, in turn
WARM = 3  # before them: CUDA graphs are recorded at the second or third
GAIN = 1.05  # times as quick a compiled step must be
WORTH = 600.0  # s of a whole run, not compiled, from which it is tried


class Compiled(nn.Module):
    """The encoder's (h, z) by torch.compile, for shapes that stay the same."""

    def __init__(self, encoder: Encoder, way: str) -> None:
        super().__init__()
        self.encoder, self.way = encoder, way
        mode = "reduce-overhead" if way == "graphs" else "default"
        self._forward = torch.compile(encoder.forward, dynamic=False, mode=mode)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.way == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            h, z = self._forward(rows)
        except torch._dynamo.exc.TorchDynamoException as error:
            said = str(error).strip().partition("\n")[0]
            raise UserError(
                f"--compile {self.way}: torch.compile fails here ({said}); use --compile off"
            ) from error
        # a graph writes its results into the same memory at every step
        return (h.clone(), z.clone()) if self.way == "graphs" else (h, z)


def as_asked(encoder: Encoder, way: str) -> nn.Module:
    """What computes (h, z) in a training step: the encoder, or the compiled one."""
    return encoder if way == "off" else Compiled(encoder, way)


def check_name(asked: str) -> None:
    """UserError for a way of compiling that there is not."""
    if asked not in ("auto", *WAYS):
        raise UserError(f"--compile {asked}: use auto, on, off or graphs")


def chosen_way(
    asked: str | None,
    recipe: Recipe,
    images: ImageSet,
    network: Encoder,
    device: str,
    *,
    bf16: bool,
    ranks: int = 1,
    begun: str | None = None,
) -> tuple[str, str]:
    """(one of WAYS, why in words). `auto` is off on a CPU, and measured on CUDA (`quickest`).

    begun: the way of the run that goes on, which is kept where nothing is asked for (None); CUDA
    graphs become `on` where it goes on without them. Raises UserError for a way that there is not,
    or not for such a run.
    """
    possible = _possible(recipe, device, ranks)
    if asked is None and begun is not None:
        if begun in possible:
            return begun, "as the run was begun"
        return "on", "the run was begun with CUDA graphs, which it cannot go on with here"
    asked = asked or "auto"
    check_name(asked)
    if asked == "graphs" and asked not in possible:
        raise UserError(
            "--compile graphs: CUDA graphs take one process on a CUDA device, and a batch that is "
            "embedded at once, without --set chunk=; use --compile on"
        )
    if asked != "auto":
        return asked, f"asked for by --compile {asked}"
    if not device.startswith("cuda"):
        return "off", "no gain on such a device wherever it was measured"
    return quickest(recipe, images, network, device, possible, bf16=bf16)


def quickest(
    recipe: Recipe,
    images: ImageSet,
    network: Encoder,
    device: str,
    ways: tuple[str, ...],
    *,
    bf16: bool,
) -> tuple[str, str]:
    """(the way by which the whole run ends soonest, the measurement in words).

    A copy of the network takes steps of the run's batch, without loss and update; where the run
    takes less than WORTH seconds at their speed, nothing is compiled. What compiling takes counts.
    A way that fails is left out, and named. The result is kept (`trials.remembered`).
    """
    steps = max(1.0, len(images) // recipe.batch_size * recipe.epochs)
    tried = partial(_measured, recipe, images, network, device, bf16=bf16)
    whole = steps * tried(("off",))["off"]
    if whole < WORTH:
        return "off", f"the run takes some {duration(whole)} without: too little to compile for"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    seen, when = remembered(
        "compile", ("off",), recipe, images, lambda: tried(ways), name, bf16, recipe.chunk, ways
    )
    way, words = judged(seen, ways, steps)
    return way, f"measured {when}: a step of {recipe.batch_size} images takes {words}"


def judged(seen: Mapping[str, float], ways: Sequence[str], steps: float) -> tuple[str, str]:
    """(the way that ends soonest, the seconds of each in words), from what was measured.

    seen: seconds of a step by way, without those that failed, and of the first steps, which
    compile, by `WAY, first`. steps: of the whole run.
    """
    words = ", ".join(f"{seen[way]:.2g} s {IN_WORDS[way]}" for way in ways if way in seen)
    failed = [IN_WORDS[way] for way in ways if way not in seen]
    words += f"; {' and '.join(failed)} it fails" if failed else ""
    whole = {way: seen[way] * steps + seen.get(f"{way}, first", 0.0) for way in ways if way in seen}
    best = min(whole, key=whole.__getitem__)
    return (best if seen["off"] > GAIN * seen[best] else "off"), words


def _possible(recipe: Recipe, device: str, ranks: int) -> tuple[str, ...]:
    graphs = device.startswith("cuda") and ranks == 1 and recipe.chunk is None
    return WAYS if graphs else WAYS[:2]


def _measured(
    recipe: Recipe,
    images: ImageSet,
    network: Encoder,
    device: str,
    ways: Sequence[str],
    *,
    bf16: bool,
) -> dict[str, float]:
    """Seconds of a step by way, the median, and of its WARM first ones together."""
    own = [torch.device(device)] if device.startswith("cuda") else []
    first: dict[str, float] = {}
    with (
        torch.random.fork_rng(devices=own),
        warnings.catch_warnings(action="ignore"),
        freed_memory_kept(),
    ):
        index = shuffled(len(images), recipe.seed, 0, recipe.batch_size)[0]
        picture = images.batch(index).to(device)
        tried: dict[str, Callable[[], float]] = {}
        for way in ways:
            trial = copy.deepcopy(network).to(device)
            fastest_layout(trial, recipe.size, bf16=bf16).train()
            once = partial(timed_step, trial, recipe, picture, bf16, as_asked(trial, way))
            try:
                first[f"{way}, first"] = sum(once() for _ in range(WARM))
            except (UserError, RuntimeError):  # no compiler, no memory, an operation it lacks
                if way == "off":
                    raise
                continue
            tried[way] = once
        took: dict[str, list[float]] = {way: [] for way in tried}
        for _ in range(STEPS):
            for way, times in took.items():
                times.append(tried[way]())
    return first | {way: statistics.median(times) for way, times in took.items()}
