"""Time-contrastive networks (arXiv 1704.06888): frames near in time attract, far ones repel.

    contrapose train clip.mp4 --recipe time_contrastive
    contrapose train FRAMES --recipe time_contrastive --fps 25

Expect an alignment error of 0.11 of the duration between a clip of 250 frames and its altered copy
(`contrapose align`; 0.31 before training, 0.34 at random) after 30 epochs of a small network, which
take 30 s on 2 cores.

One camera: positives within 0.2 s of a frame, negatives beyond 0.4 s, as in the released code (6
and 12 frames at 29 per second). Several cameras (ACTION/CAMERA/ folders), where a frame's positive
is the other camera's at the same time: --set loss=triplet_semi_hard --set loss.margin=0.2
--set batches.near=0, or N-pairs: --set loss=n_pairs --set batches.near=0 --set number_of_views=1
"""

from dataclasses import replace
from functools import partial

from contrapose import augment
from contrapose.encoders import mlp
from contrapose.losses import time_contrastive
from contrapose.recipes import simclr
from contrapose.training import optim
from contrapose.training.in_time import moments
from contrapose.training.recipe import Recipe


def recipe(size: int, channels: int) -> Recipe:
    """SimCLR's networks, mild views, Adam at 1e-3; embeddings of 32 dimensions as in the paper."""
    views = partial(augment.simclr, strength=0.5, blur=False, area=(0.5, 1.0), flip=0.0)
    return replace(
        simclr.recipe(size, channels),
        name="time_contrastive",
        views=views,
        head=partial(mlp, dim=32),
        loss=partial(time_contrastive, near=200, far=400, margin=0.2),
        positives="time",
        batches=partial(moments, near=200),
        optimizer=partial(optim.adamw, weight_decay=1e-4),
        scaling=optim.no_scaling,
        batch_size=64,
        epochs=100,
        warmup=2,
        lr=1e-3,
    )
