"""Measures of a trained encoder: functions from `Trained` to a dictionary of numbers or lists.

Your own measures are functions in your file; set their arguments with functools.partial.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.augment import center
from contrapose.data import ImageSet, balanced, evenly
from contrapose.errors import UserError
from contrapose.evaluation import geometry, probes
from contrapose.evaluation.embed import embed_views
from contrapose.evaluation.sgd_probe import PROTOCOLS
from contrapose.evaluation.sgd_probe import sgd_probe as by_sgd
from contrapose.experiments.trained import VIEWS_OF, Trained
from contrapose.partials import unknown

CRITERION = "instance_retrieval"  # the measure that stands in for accuracy without labels


def linear_probe(of: Trained, *, l2: float | None = None) -> dict[str, float]:
    """Test accuracy of logistic regression on h (L-BFGS); l2 is chosen on held-out training
    rows."""
    x, y = of.of_train.h.to(of.device), of.labels(of.train)
    fitted = probes.linear_probe(x, y, l2=probes.DECADES if l2 is None else l2, seed=of.seed)
    return {"linear_probe": _share(fitted.predict(of.of_test.h.to(of.device)), of)}


def sgd_probe(of: Trained, *, protocol: str = "wang_liu") -> dict[str, float]:
    """Test accuracy of a linear classifier on h trained by a paper's protocol (PROTOCOLS)."""
    if protocol not in PROTOCOLS:
        raise UserError(f"sgd_probe: there is no protocol {unknown(protocol, PROTOCOLS)}")
    x, y = of.of_train.h.to(of.device), of.labels(of.train)
    fitted = by_sgd(x, y, PROTOCOLS[protocol], seed=of.seed)
    return {"sgd_probe": _share(fitted.predict(of.of_test.h.to(of.device)), of)}


def knn(of: Trained, *, k: int = 200) -> dict[str, float]:
    """Test accuracy of the vote of the k nearest training images by h, weighted exp(s / 0.1)."""
    y = of.labels(of.train)
    voters = min(k, probes.most_neighbours(y))
    scores = probes.knn(of.of_test.h.to(of.device), of.of_train.h.to(of.device), y, k=voters)
    return {"knn": _share(scores.argmax(dim=1), of)}


def uniformity(of: Trained) -> dict[str, float]:
    """L_uniform (t = 2) of z of the test images without augmentation; lower is more uniform.

    Papers plot -L_uniform, which is also returned, as `minus_uniformity`.
    """
    value = geometry.uniformity(of.of_test.z.to(of.device))
    return {"uniformity": value, "minus_uniformity": -value}


def tolerance(of: Trained) -> dict[str, float]:
    """Mean similarity of z over pairs of test images of one class, without augmentation."""
    return {"tolerance": geometry.tolerance(of.of_test.z.to(of.device), of.labels(of.test))}


def effective_rank(of: Trained) -> dict[str, float]:
    """RankMe of h and of z of the test images."""
    seen = of.of_test
    ranks = (geometry.effective_rank(seen.h), geometry.effective_rank(seen.z))
    return dict(zip(("effective_rank_h", "effective_rank_z"), ranks, strict=True))


def local_separation(of: Trained, *, k: int = 10) -> dict[str, list[float]]:
    """Mean similarity of two views of a test image, followed by those to its k nearest others."""
    z, group = of.views_of_test
    return {"local_separation": geometry.local_separation(z, group, k=k).tolist()}


def without_labels(of: Trained) -> dict[str, float]:
    """Signals that may replace accuracy without labels, of test images and their views.

    Effective ranks of h and z (RankMe), LiDAR of h, and instance retrieval: how often the nearest
    neighbour of a view, by h, is the other view of the same image.
    """
    few = balanced(of.test, min(VIEWS_OF, len(of.test)))
    h, group = embed_views(
        of.encoder, few, of.recipe.policy, features="h", seed=of.seed, device=of.device
    )
    return {
        "effective_rank_h": geometry.effective_rank(of.of_test.h),
        "effective_rank_z": geometry.effective_rank(of.of_test.z),
        "lidar": geometry.lidar(h, group),
        "instance_retrieval": geometry.contrastive_accuracy(h, group),
    }


def rotation_probe(of: Trained, *, most: int = 300) -> dict[str, float]:
    """How well a linear classifier on h names the quarter turn of an image; chance is 0.25.

    A signal without labels: over policies of augmentation it is ordered as the accuracy of a
    linear classifier is (SelfAugment, arXiv 2009.07724: rank correlation above 0.94, photographs).
    It says little of images that have no up and down. At most `most` training and `most` test
    images, each in all four turns.
    """
    x, turn = _turned(of, of.train, most)
    fitted = probes.linear_probe(x, turn, l2=probes.DECADES[3::2], seed=of.seed)
    x, turn = _turned(of, of.test, most)
    right = float((fitted.predict(x) == turn).double().mean())
    return {"rotation_probe": right, "n_turned": len(x) // 4}


@torch.no_grad()
def _turned(
    of: Trained, images: ImageSet, most: int
) -> tuple[Float[Tensor, "N4 F"], Int[Tensor, " N4"]]:
    """h of at most `most` images in four turns, and the number of quarter turns of each row."""
    index = evenly(len(images), most)
    rows = []
    for some in torch.split(index, 256):
        square = center(images.batch(some).to(of.device), of.recipe.size)
        rows.append([of.encoder(torch.rot90(square, k, (2, 3)))[0].float() for k in range(4)])
    h = torch.cat([torch.cat(turn) for turn in zip(*rows, strict=True)])
    return h, torch.arange(4, device=h.device).repeat_interleave(len(index))


def _share(predicted: Int[Tensor, " N"], of: Trained) -> float:
    """The accuracy of predicted classes on the test images with a label."""
    label = of.labels(of.test)
    known = label >= 0
    return float((predicted[known] == label[known]).double().mean())
