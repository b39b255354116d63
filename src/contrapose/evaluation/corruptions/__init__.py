"""The corruptions of ImageNet-C and CIFAR-10-C, batched on the device, each image its own draw."""

from contrapose.evaluation.corruptions.apply import corrupted, known_corruption, known_severity
from contrapose.evaluation.corruptions.table import BENCHMARK, CORRUPTIONS, SMALL, Corruption

__all__ = [
    "BENCHMARK",
    "CORRUPTIONS",
    "SMALL",
    "Corruption",
    "corrupted",
    "known_corruption",
    "known_severity",
]
