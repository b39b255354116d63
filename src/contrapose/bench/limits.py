"""Limits of the benchmark: contenders that cannot run here, or would take too long or too much."""

import importlib.util
import statistics
from collections.abc import Sequence

from contrapose.bench.cases import Case, Contender
from contrapose.bench.measure import Measured
from contrapose.bench.record import in_bytes
from contrapose.machine import free_memory

PACKAGES = {
    "lightly": "lightly",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "faiss": "faiss-cpu",
}
SHARE = 0.5  # of the free memory that a contender may ask for
PATIENCE = 20.0  # seconds: a contender whose single step takes longer is left out, save for ours
DEADLINE = 60.0  # seconds: a contender that has not ended its first step by then is stopped


def unfit(
    case: Case, contender: Contender, size: int, device: str, before: Sequence[Measured]
) -> str | None:
    """The reason not to measure a contender at this size, or None. before: at smaller sizes."""
    if contender.needs and not present(contender.needs):
        module = contender.needs.partition(".")[0]
        return f"not installed: pip install {PACKAGES.get(module, module)}"
    pairs = case.pairs(size)
    if (needed := contender.bytes(pairs)) > SHARE * free_memory(device):
        return f"would take about {in_bytes(needed)} of memory"
    if not before or contender.ours:
        return None
    last = before[-1]
    if not last.seconds:
        return "left out as at the smaller size"
    growth = (pairs / case.pairs(last.size)) ** contender.power
    if (seconds := statistics.median(last.seconds) * growth) > PATIENCE:
        return f"would take about {seconds:,.0f} s a step"
    return None


def present(module: str) -> bool:
    """True if the package of the module is installed; imports nothing."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None
