"""Augmented views: batched augmentations, drawn for each image, and the policies of papers."""

from contrapose.augment.blur import Blur
from contrapose.augment.channels import on_channels
from contrapose.augment.colour import Grayscale, Jitter, Solarise
from contrapose.augment.crop import draw_box, draw_box_tf, resized_crop
from contrapose.augment.draw import bernoulli, uniform
from contrapose.augment.harden import blanked, hardened
from contrapose.augment.policies import (
    crop_flip,
    digits,
    instance_discrimination,
    moco_v1,
    moco_v2,
    simclr,
    simclr_cifar,
    supcon_cifar,
)
from contrapose.augment.view import Operation, Policy, center, render, views

__all__ = [
    "Blur",
    "Grayscale",
    "Jitter",
    "Operation",
    "Policy",
    "Solarise",
    "bernoulli",
    "blanked",
    "center",
    "crop_flip",
    "digits",
    "draw_box",
    "draw_box_tf",
    "hardened",
    "instance_discrimination",
    "moco_v1",
    "moco_v2",
    "on_channels",
    "render",
    "resized_crop",
    "simclr",
    "simclr_cifar",
    "supcon_cifar",
    "uniform",
    "views",
]
