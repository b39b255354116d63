"""Experiments of "Intriguing Properties of Contrastive Losses" (arXiv 2011.02803), source S0.

What generalised losses share, and how easy features suppress others.
"""

EXPERIMENTS = (
    "batch_size",
    "digit_sizes",
    "digits_on_images",
    "generalised_losses",
    "local_features",
    "multiple_objects",
    "random_bits",
    "random_bits_details",
    "random_bits_notebook",
    "remedies",
    "who_keeps_both",
)
