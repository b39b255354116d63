"""What the views of a recipe are of, on one's own images: crops, and what their colours tell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrapose import adapt, recipes
from contrapose.data import ImageSet
from contrapose.evaluation.crops import Crops, crops_of
from contrapose.explain.pictures import CROPPED, crop_arrays
from contrapose.partials import describe
from contrapose.report.views import write_views


def examine(
    images: ImageSet,
    *,
    recipe: str = "simclr",
    changes: Sequence[str] = (),
    out: Path | str = "views.html",
    command: str | None = None,
) -> tuple[Crops, Path]:
    """The crops of the recipe's views on these images, and the page that draws them.

    Raises UserError for a policy whose views are no crops.
    """
    chosen = recipes.recipe_for(recipe, images.size, images.shown)
    chosen = adapt.beside_constants(adapt.changed(chosen, images, changes=changes), images)
    few = CROPPED if chosen.size <= 64 else CROPPED // 5
    found = crops_of(images, chosen.views, size=chosen.size, count=few, seed=chosen.seed)
    page = write_views(
        found.as_json(), crop_arrays(found), Path(out), data=images.name, recipe=recipe,
        policy=_worded(describe(chosen.views)), command=command,
    )  # fmt: skip
    return found, page


def _worded(policy: Any) -> str:
    """A policy as text: `simclr, strength=0.5`."""
    if isinstance(policy, str):
        return policy.rpartition(".")[2]
    if not isinstance(policy, dict):
        return str(policy)
    values = [f"{name}={_worded(v)}" for name, v in policy.items() if name != "call"]
    name = _worded(policy["call"]) if "call" in policy else ""
    return f"{name} ({', '.join(values)})" if values else name
