"""Experiments of "Supervised Contrastive Learning" (arXiv 2004.11362), source S2.

What labels add to contrast, beside cross-entropy with the same network, views, steps and tuning.
"""

EXPERIMENTS = (
    "applied_transformation",
    "batch_epochs_temperature",
    "by_severity",
    "continual",
    "few_labels",
    "hadsell",
    "in_and_out",
    "landmark_consistency",
    "methods",
    "optimiser_pairs",
    "policy_pairs",
    "positives",
    "special_cases",
    "stability",
    "transfer_to_sets",
)
