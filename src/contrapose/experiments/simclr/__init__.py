"""Experiments of SimCLR ("A Simple Framework for Contrastive Learning", 2002.05709), source S3.

What makes contrast of two views work: views, head, loss, temperature, batch, network, labels.
"""

EXPERIMENTS = (
    "augmentation_pairs",
    "bank_and_queue",
    "batch_and_epochs",
    "colour_strength",
    "depth_and_width",
    "fine_tuning",
    "histogram_shortcut",
    "kinds_of_loss",
    "linear_evaluation",
    "optimiser_and_norm",
    "projection_head",
    "temperature_and_norm",
    "video_in_time",
)
