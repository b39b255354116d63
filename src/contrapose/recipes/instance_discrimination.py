"""Instance discrimination (Wu et al., CVPR 2018): a memory bank of every image, one view a step.

    contrapose train cifar10 --recipe instance_discrimination --set loss.temperature=0.3

Expect 0.98 linear accuracy on digits (raw pixels 0.95), about 1 min on 2 cores; with the paper's
protocol at the scale of two cores 0.52 on CIFAR-10 (5,000 images, 3 min). The whole set was not
run.

The setting in which Wang & Liu (CVPR 2021, arXiv 2012.09740) studied the temperature; their other
losses: `--set loss=hard_info_nce --set loss.k=4095`; `simple_info_nce` and `hard_simple_info_nce`
with `--set loss.weight=...` too. Evaluate with `--protocol wang_liu`.
"""

from dataclasses import replace
from functools import partial

from contrapose import augment, keys
from contrapose.encoders import linear, resnet18, resnet50
from contrapose.losses import info_nce
from contrapose.recipes import simclr
from contrapose.training import optim
from contrapose.training.recipe import Recipe


def recipe(size: int, channels: int) -> Recipe:
    """Wang & Liu's setting for photographs; for glyphs SimCLR's of this library, with the bank."""
    loss = partial(info_nce, temperature=0.07)  # Wu et al.; best for Wang & Liu: 0.3 of 0.07 to 1
    bank = partial(keys.bank, momentum=0.5)
    if channels == 1 and size <= 64:
        return replace(
            simclr.recipe(size, channels), name="instance_discrimination", loss=loss, keys=bank,
            number_of_views=1,
        )  # fmt: skip
    small = size <= 64
    network = partial(resnet18, stem="cifar") if small else partial(resnet50, stem="imagenet")
    return Recipe(
        name="instance_discrimination",
        views=partial(augment.instance_discrimination, flip=0.5)
        if small
        else partial(augment.moco_v2),  # the same and blur: jitter with p 0.8, hue 0.1
        backbone=partial(network, channels=channels),
        head=partial(linear, dim=128, batch_norm=False),
        loss=loss,
        # as plain PyTorch decays: BN parameters and biases too
        optimizer=partial(
            optim.sgd, momentum=0.9, weight_decay=5e-4 if small else 1e-4, decay_vectors=True
        ),
        schedule=partial(optim.steps, milestones=(160 / 200, 190 / 200)),
        scaling=optim.no_scaling,
        keys=bank,
        number_of_views=1,
        size=min(size, 224),
        batch_size=128,
        epochs=200,
        warmup=0,
        lr=0.03,
    )
