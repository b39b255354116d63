"""Contrastive representation learning: train an encoder from images, measure it, explain it.

    import contrapose
    run = contrapose.train("simclr", "digits", epochs=60)
    encoder = contrapose.Encoder.load(run.path)

Modules such as torch are imported only when they are first needed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from contrapose.version import __version__ as __version__

if TYPE_CHECKING:
    from contrapose.api import embed as embed
    from contrapose.api import resume as resume
    from contrapose.api import train as train
    from contrapose.data import ImageSet as ImageSet
    from contrapose.data import open_images as open_images
    from contrapose.encoders import Encoder as Encoder
    from contrapose.estimator import ContrastiveEncoder as ContrastiveEncoder
    from contrapose.explain import diagnose as diagnose
    from contrapose.explain import evaluate as evaluate
    from contrapose.explain import suppression_of as suppression_of
    from contrapose.report import write_report as write_report
    from contrapose.training.recipe import Recipe as Recipe
    from contrapose.training.run import Run as Run

_HOMES = {
    "ContrastiveEncoder": "contrapose.estimator",
    "Encoder": "contrapose.encoders",
    "ImageSet": "contrapose.data",
    "Recipe": "contrapose.training.recipe",
    "Run": "contrapose.training.run",
    "diagnose": "contrapose.explain",
    "embed": "contrapose.api",
    "evaluate": "contrapose.explain",
    "open_images": "contrapose.data",
    "resume": "contrapose.api",
    "suppression_of": "contrapose.explain",
    "train": "contrapose.api",
    "write_report": "contrapose.report",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'contrapose' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
