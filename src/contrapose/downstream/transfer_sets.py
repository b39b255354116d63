"""The sets that `contrapose transfer` knows: metric, split rule, source and licence of each.

Adding a set is adding an entry to SETS. The twelve of SimCLR's table 8 have the metrics and rules
of that table (arXiv 2002.05709, appendix B.8). None is fetched from here: a set is at hand if
`open_images` finds it under its name, in the folder that CONTRAPOSE_DATA names.
"""

from dataclasses import dataclass, field
from typing import Literal

Metric = Literal["top-1", "mean per class", "11-point mAP"]
AS_GIVEN = "the split of its creators"
NOT_SAID = "not stated by its creators, as far as this project knows: ask them before publishing"


@dataclass(frozen=True, kw_only=True)
class TransferSet:
    """A set to transfer to; accuracy is measured on its test images by its own metric."""

    title: str
    metric: Metric = "top-1"
    split: str = AS_GIVEN
    validation: str = "a fifth of training, of every class"  # what chooses the regulariser
    train_each: int | None = None  # training images of each class, drawn; the others are the test
    source: str  # where its creators publish it
    licence: str = NOT_SAID  # as this project knows it; the page of its creators decides
    # accuracy in percent of ResNet-50, by method and pretraining: SimCLR table B.5
    published: dict[str, float] = field(default_factory=dict)


def _published(*values: float) -> dict[str, float]:
    names = (
        "linear, SimCLR", "linear, supervised", "finetuned, SimCLR", "finetuned, supervised",
        "scratch",
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


CREATORS = "the validation split of its creators where there is a folder val/, else a fifth"
SETS: dict[str, TransferSet] = {
    "food101": TransferSet(
        title="Food-101", source="data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        published=_published(68.4, 72.3, 88.2, 88.3, 86.9),
    ),
    "cifar10": TransferSet(
        title="CIFAR-10", source="www.cs.toronto.edu/~kriz/cifar.html",
        published=_published(90.6, 93.6, 97.7, 97.5, 95.9),
    ),
    "cifar100": TransferSet(
        title="CIFAR-100", source="www.cs.toronto.edu/~kriz/cifar.html",
        published=_published(71.6, 78.3, 85.9, 86.4, 80.2),
    ),
    "birdsnap": TransferSet(
        title="Birdsnap", source="thomasberg.org",
        published=_published(37.4, 53.7, 75.9, 75.8, 76.1),
    ),
    "sun397": TransferSet(
        title="SUN397", split="the first of its creators' splits",
        source="vision.princeton.edu/projects/2010/SUN",
        published=_published(58.8, 61.9, 63.5, 64.3, 53.6),
    ),
    "cars": TransferSet(
        title="Stanford Cars", source="ai.stanford.edu/~jkrause/cars/car_dataset.html",
        published=_published(50.3, 66.7, 91.3, 92.1, 91.4),
    ),
    "aircraft": TransferSet(
        title="FGVC Aircraft", metric="mean per class", validation=CREATORS,
        source="www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        licence="for non-commercial research", published=_published(50.3, 61.0, 88.1, 86.0, 85.9),
    ),
    "voc2007": TransferSet(
        title="PASCAL VOC 2007", metric="11-point mAP", validation=CREATORS,
        source="host.robots.ox.ac.uk/pascal/VOC/voc2007",
        licence="the terms of Flickr, where the photographs are from",
        published=_published(80.5, 82.8, 84.1, 85.0, 67.3),
    ),
    "dtd": TransferSet(
        title="Describable Textures", split="the first of its creators' splits",
        validation=CREATORS, source="www.robots.ox.ac.uk/~vgg/data/dtd", licence="for research",
        published=_published(74.5, 74.9, 73.2, 74.6, 64.8),
    ),
    "pets": TransferSet(
        title="Oxford-IIIT Pets", metric="mean per class",
        source="www.robots.ox.ac.uk/~vgg/data/pets", licence="CC BY-SA 4.0",
        published=_published(83.6, 91.5, 89.2, 92.1, 81.5),
    ),
    "caltech101": TransferSet(
        title="Caltech-101", metric="mean per class",
        split="30 training images of each class, drawn by the seed; the others are the test",
        train_each=30, source="data.caltech.edu/records/mzrjq-6wc02", licence="CC BY 4.0",
        published=_published(90.3, 94.5, 92.1, 93.3, 72.6),
    ),
    "flowers102": TransferSet(
        title="Oxford 102 Flowers", metric="mean per class", validation=CREATORS,
        source="www.robots.ox.ac.uk/~vgg/data/flowers/102",
        published=_published(91.2, 94.7, 97.0, 97.6, 92.0),
    ),
    # not of the table
    "mnist": TransferSet(title="MNIST", source="yann.lecun.com/exdb/mnist"),
    "tiny-imagenet-50": TransferSet(
        title="50 classes of Tiny ImageNet", source="cs231n.stanford.edu",
        licence="for non-commercial research, as ImageNet",
    ),
    "flowers-64": TransferSet(
        title="Flower photographs, 5 classes, 64 px",
        source="download.tensorflow.org/example_images/flower_photos.tgz",
        licence="CC BY, each photograph by its author",
    ),
    "digits": TransferSet(
        title="Digits of 8 px", split="a fifth of every class is the test",
        source="archive.ics.uci.edu/dataset/80", licence="CC BY 4.0",
    ),
}  # fmt: skip


def described(name: str) -> TransferSet:
    """The entry of that name; for images of the user's own, top-1 by their own split."""
    return SETS.get(name) or TransferSet(
        title=name, split="its test split, else a fifth of every class held out", source=name,
        licence="yours",
    )  # fmt: skip
