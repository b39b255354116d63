"""Augmented views: batched augmentations, drawn for each image, and the policies of papers."""

from contrapose.augment.automated import draw_autoaugment, draw_randaugment
from contrapose.augment.blur import Blur
from contrapose.augment.branches import branches, on_each_branch
from contrapose.augment.channels import on_channels
from contrapose.augment.colour import Grayscale, Jitter, Solarise
from contrapose.augment.crop import draw_box, draw_box_tf, resized_crop
from contrapose.augment.draw import bernoulli, integers, normal, uniform
from contrapose.augment.harden import blanked, hardened
from contrapose.augment.mixing import CutMix, MixUp, cutmix, mixup
from contrapose.augment.operations import OPERATIONS, ImageOperations
from contrapose.augment.policies import (
    autoaugment,
    crop_flip,
    digits,
    instance_discrimination,
    moco_v1,
    moco_v2,
    randaugment,
    simaugment,
    simclr,
    simclr_cifar,
    stacked_randaugment,
    supcon_cifar,
)
from contrapose.augment.transformations import (
    TRANSFORMATIONS,
    Noise,
    Rotation,
    Sobel,
    transformed,
)
from contrapose.augment.view import Draw, Operation, Policy, center, draws_kept, render, views
from contrapose.augment.warp import Warp

__all__ = [
    "OPERATIONS",
    "TRANSFORMATIONS",
    "Blur",
    "CutMix",
    "Draw",
    "Grayscale",
    "ImageOperations",
    "Jitter",
    "MixUp",
    "Noise",
    "Operation",
    "Policy",
    "Rotation",
    "Sobel",
    "Solarise",
    "Warp",
    "autoaugment",
    "bernoulli",
    "blanked",
    "branches",
    "center",
    "crop_flip",
    "cutmix",
    "digits",
    "draw_autoaugment",
    "draw_box",
    "draw_box_tf",
    "draw_randaugment",
    "draws_kept",
    "hardened",
    "instance_discrimination",
    "integers",
    "mixup",
    "moco_v1",
    "moco_v2",
    "normal",
    "on_channels",
    "on_each_branch",
    "randaugment",
    "render",
    "resized_crop",
    "simaugment",
    "simclr",
    "simclr_cifar",
    "stacked_randaugment",
    "supcon_cifar",
    "transformed",
    "uniform",
    "views",
]
