"""The pictures of a report, as arrays in pictures.npz: views, map, neighbours, similarities."""

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from contrapose.augment import center
from contrapose.augment import views as make_views
from contrapose.data import ImageSet, evenly
from contrapose.errors import UserError
from contrapose.evaluation import geometry
from contrapose.evaluation.crops import Crops, crops_of
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.projection import project
from contrapose.files import replace_file
from contrapose.similarity import Pairs, topk
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run, say

SHEET = 8  # images on the contact sheet
SHOWN_VIEWS = 6  # of each
QUERIES = 24  # images whose neighbours are shown
NEIGHBOURS = 8
MAP = 1000  # points
THUMB = 32  # px, of the map and the neighbours
SHEET_SIDE = 96  # px
CROPPED = 1000  # images whose crops are compared; a fifth of them at large sizes


def add(run: Run, **arrays: NDArray[Any]) -> None:
    """Add arrays to the run's pictures.npz; others in it stay."""
    path = run.path / "pictures.npz"
    kept: dict[str, NDArray[Any]] = {}
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as old:
                kept = {name: old[name] for name in old.files}
        except Exception as error:  # a damaged archive makes NumPy raise anything
            say(f"{path} is damaged ({error}) and made anew")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(kept | arrays))  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())


def of_run(
    recipe: Recipe,
    images: ImageSet,
    embedded: Embedded,
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
) -> dict[str, NDArray[Any]]:
    """Contact sheet, map, neighbours and similarity distributions of these images."""
    label = torch.full((len(images),), -1) if images.label is None else images.label
    return (
        {"views": contact_sheet(recipe, images), "classes": np.array(images.classes, np.str_)}
        | embedding_map(images, embedded, label)
        | neighbours(images, embedded, label)
        | similarities(z, group, label)
    )


def contact_sheet(recipe: Recipe, images: ImageSet) -> UInt8[np.ndarray, "R V H W C"]:
    """A few images, each followed by views as in training."""
    batch = images.batch(evenly(len(images), SHEET)).cpu()
    seen = make_views(recipe.policy, batch, torch.Generator().manual_seed(0), n=SHOWN_VIEWS)
    side = min(recipe.size, SHEET_SIDE)
    columns = [center(batch, side), *(center(view, side) for view in seen)]
    return to_uint8(images.picture(torch.stack(columns, dim=1)))


def crops(run: Run, recipe: Recipe, images: ImageSet) -> dict[str, NDArray[Any]]:
    """What the crops of the recipe's views are: numbers in views.json, pictures returned."""
    few = CROPPED if recipe.size <= 64 else CROPPED // 5
    try:
        found = crops_of(images, recipe.views, size=recipe.size, count=few, seed=recipe.seed)
    except UserError as error:
        run.write("views.json", {"format": 1, "not": str(error)})
        return {}
    run.write("views.json", {"format": 1, **found.as_json()})
    return crop_arrays(found)


def crop_arrays(found: Crops) -> dict[str, NDArray[Any]]:
    """The pictures of crops as arrays of pictures.npz."""
    return {
        "crop_image": found.image.movedim(1, -1).contiguous().numpy(),
        "crop_boxes": found.boxes.float().numpy(),
        "crop_kind": np.array(found.kind, np.str_),
        "crop_of": found.of.movedim(1, -1).contiguous().numpy(),
        "crop_histogram": found.histogram.float().numpy(),
    }


def embedding_map(
    images: ImageSet, embedded: Embedded, label: Int[Tensor, " N"]
) -> dict[str, NDArray[Any]]:
    found = project(embedded.h, max_points=MAP)
    files = np.array(images.files, np.str_)
    return {
        "map_xy": found.xy.numpy().astype(np.float32),
        "map_label": label[found.index].numpy(),
        "map_index": images.index[found.index].numpy(),
        "map_file": files[found.index.numpy()],
        "map_thumb": thumbs(images, found.index),
        "map_method": np.array(f"{found.method}, of h, {images.split} images"),
    }


def neighbours(
    images: ImageSet, embedded: Embedded, label: Int[Tensor, " N"]
) -> dict[str, NDArray[Any]]:
    """The nearest other images of a few images, by the cosine of h."""
    n = len(images)
    if n < 2:
        return {}
    query = evenly(n, QUERIES)
    h = torch.nn.functional.normalize(embedded.h, dim=1)
    pairs = Pairs(row_id=query, col_id=torch.arange(n))
    similarity, index = topk(h[query], h, min(NEIGHBOURS, n - 1), pairs=pairs)
    shape = (len(query), index.shape[1])
    picture = thumbs(images, index.flatten())
    files = np.array(images.files, np.str_)
    return {
        "neighbour_query": thumbs(images, query),
        "neighbour_query_label": label[query].numpy(),
        "neighbour_image": picture.reshape(*shape, *picture.shape[1:]),
        "neighbour_label": label[index].numpy(),
        "neighbour_query_file": files[query.numpy()],
        "neighbour_file": files[index.numpy()],
        "neighbour_similarity": similarity.float().numpy(),
    }


def similarities(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], label: Int[Tensor, " B"]
) -> dict[str, NDArray[Any]]:
    """Histograms of the similarity of view pairs: of one image, of one class, of different ones."""
    known = label if (label >= 0).any() else None
    views = len(z) // len(label)
    found = geometry.similarity_histogram(z, group, None if known is None else known.repeat(views))
    counts = {
        "similarity_edges": found.edges.numpy().astype(np.float32),
        "similarity_positive": found.positive.numpy(),
        "similarity_negative": found.negative.numpy(),
    }
    return counts if known is None else counts | {"similarity_same_class": found.same_class.numpy()}


def thumbs(images: ImageSet, index: Int[Tensor, " B"]) -> UInt8[np.ndarray, "B H W C"]:
    picture = images.picture(images.batch(index))
    return to_uint8(center(picture.cpu(), min(images.size, THUMB)))


def to_uint8(x: Float[Tensor, "*batch C H W"]) -> UInt8[np.ndarray, "*batch H W C"]:
    return x.mul(255).round().clamp(0, 255).byte().movedim(-3, -1).contiguous().numpy()
