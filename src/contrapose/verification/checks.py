"""The checks of the verification, and their tolerances."""

import itertools
import math
from dataclasses import dataclass

import torch

from contrapose.verification.problems import Inputs, Outcome, Problem

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
SMALL = Inputs("small", 24, 8, 0.2)
COLD = Inputs("cold", 24, 8, 0.005)
MANY = Inputs("many rows", 1100, 16, 0.1)  # more than two tiles of the similarity matrix

# Greatest relative error. What is reduced is float32 at least, so that operands of half precision
# cost nothing but the rounding of their gradient: a last place of theirs is added.
ARITHMETIC = {"fp64": 1e-13, "fp32": 4e-6, "bf16": 4e-6, "fp16": 4e-6}
LAST_PLACE = {"fp64": 0.0, "fp32": 0.0, "bf16": 2**-8, "fp16": 2**-10}


@dataclass(frozen=True)
class RankLayout:
    """The distribution of rows over processes, in proportion to `shares`."""

    name: str
    shares: tuple[int, ...]

    def slices(self, rows: int) -> list[slice]:
        total, edges = sum(self.shares), [0]
        for k in range(len(self.shares)):
            edges.append(round(rows * sum(self.shares[: k + 1]) / total))
        return [slice(a, b) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Check:
    """One check: a loss, its source of keys, the processes, the precision, and the errors."""

    loss: str
    keys: str
    inputs: str
    layout: str
    rows: tuple[int, ...]  # of each process
    precision: str
    loss_error: float
    gradient_error: float
    worst: str  # the argument whose gradient is farthest off
    tolerance: float  # of the gradient; of the loss: what the arithmetic is allowed
    passed: bool
    error: str | None = None


def layouts(world: int) -> list[RankLayout]:
    """One process; up to three with equal shares; uneven shares; one process without rows."""
    found = [RankLayout("1 rank", (1,))]
    for w in sorted({2, 3, world}):
        if 1 < w <= world:
            uneven = (5, 1, 6) if w == 3 else (3, *range(1, w))
            empty = (5, 0, 7) if w == 3 else (*[1] * (w - 1), 0)
            found += [
                RankLayout(f"{w} ranks", (1,) * w),
                RankLayout("uneven", uneven),
                RankLayout("one empty", empty),
            ]
    return found


def tolerances(precision: str, temperature: float) -> tuple[float, float]:
    """Tolerances of the loss and of its gradient, which grow as 1/t at a low temperature t."""
    arithmetic = ARITHMETIC[precision] * max(1, 0.05 / temperature)
    return arithmetic, arithmetic + LAST_PLACE[precision]


def loss_error(found: Outcome, expected: Outcome) -> float:
    return abs(found.loss - expected.loss) / max(1.0, abs(expected.loss))


def gradient_errors(found: Outcome, expected: Outcome) -> dict[str, float]:
    """|g - expected| / |expected| of each argument; of single numbers never above the difference.

    Where nothing is expected, what there is.
    """
    errors = {}
    for name, g in expected.gradient.items():
        size = max(1.0, float(g.abs())) if g.ndim == 0 else float(g.norm()) or 1.0
        off = float((found.gradient[name] - g).norm()) / size
        errors[name] = off if math.isfinite(off) else math.inf
    return errors


def judged(
    problem: Problem, layout: RankLayout, precision: str, found: Outcome | str, expected: Outcome
) -> Check:
    """`found` against `expected`; found is a text where the loss raised an error.

    What is ill-conditioned may be off by more than the tolerance: by twice as much as whole
    matrices are in that precision.
    """
    of_loss, of_gradient = tolerances(precision, problem.inputs.temperature)
    if isinstance(found, str):
        off, errors, error = math.inf, {"": math.inf}, found
    else:
        off, errors, error = loss_error(found, expected), gradient_errors(found, expected), None
    worst = max(errors, key=lambda name: errors[name])
    within = off <= of_loss and errors[worst] <= of_gradient
    if not within and not error and precision != "fp64":
        plain = problem.plain(PRECISIONS[precision])
        of_loss = max(of_loss, 2 * loss_error(plain, expected))
        of_gradient = max(of_gradient, 2 * max(gradient_errors(plain, expected).values()))
    return Check(
        loss=problem.name,
        keys=problem.stored or ("batch" if len(layout.shares) == 1 else "ranks"),
        inputs=problem.inputs.name,
        layout=layout.name,
        rows=tuple(s.stop - s.start for s in layout.slices(problem.rows)),
        precision=precision,
        loss_error=off,
        gradient_error=errors[worst],
        worst=worst,
        tolerance=of_gradient,
        passed=off <= of_loss and errors[worst] <= of_gradient,
        error=error,
    )
