"""Contrastive losses, each a function: exact, differentiable, the same on one process or several.

Rows of one group are positives of each other. Groups are integers of any type, or bool. A negative
number (-1) means "no label": each such row is alone in its group, also if other rows, on any
process, have the same number. It is a negative of every other row; since it has no positive, it is
left out of the mean and counted in a warning. `large_margin_softmax` leaves such rows out entirely.

A batch may be empty, on some processes or on all: the loss is then 0, with a graph. On a CPU, rows
that hold NaN or infinity, or whose products would leave float32, raise UserError; rows that are
not of unit length, where a loss expects that, are counted in a warning.
"""

from contrapose.losses.classification import cross_entropy as cross_entropy
from contrapose.losses.distribution import gcl_coupled as gcl_coupled
from contrapose.losses.distribution import gcl_decoupled as gcl_decoupled
from contrapose.losses.distribution import gcl_notebook as gcl_notebook
from contrapose.losses.distribution import gcl_swd_hypercube as gcl_swd_hypercube
from contrapose.losses.distribution import gcl_swd_hypersphere as gcl_swd_hypersphere
from contrapose.losses.distribution import gcl_swd_normal as gcl_swd_normal
from contrapose.losses.hardness import cold_limit as cold_limit
from contrapose.losses.hardness import debiased as debiased
from contrapose.losses.hardness import hard as hard
from contrapose.losses.hardness import hard_quantile as hard_quantile
from contrapose.losses.hardness import hard_simple as hard_simple
from contrapose.losses.hardness import hcl as hcl
from contrapose.losses.hardness import hot_limit as hot_limit
from contrapose.losses.hardness import ifm as ifm
from contrapose.losses.hardness import simple as simple
from contrapose.losses.margin import large_margin_softmax as large_margin_softmax
from contrapose.losses.margin import max_margin as max_margin
from contrapose.losses.margin import nt_logistic as nt_logistic
from contrapose.losses.margin import nt_logistic_semi_hard as nt_logistic_semi_hard
from contrapose.losses.margin import time_contrastive as time_contrastive
from contrapose.losses.margin import triplet as triplet
from contrapose.losses.margin import triplet_batch_hard as triplet_batch_hard
from contrapose.losses.margin import triplet_distance_weighted as triplet_distance_weighted
from contrapose.losses.margin import triplet_ohem as triplet_ohem
from contrapose.losses.margin import triplet_semi_hard as triplet_semi_hard
from contrapose.losses.shared import supcon_shared as supcon_shared
from contrapose.losses.softmax import align_uniform as align_uniform
from contrapose.losses.softmax import align_uniform_joined as align_uniform_joined
from contrapose.losses.softmax import dcl as dcl
from contrapose.losses.softmax import dclw as dclw
from contrapose.losses.softmax import nt_xent as nt_xent
from contrapose.losses.softmax import nt_xent_pairs as nt_xent_pairs
from contrapose.losses.softmax import supcon as supcon
from contrapose.losses.softmax import supcon_in as supcon_in
from contrapose.losses.softmax import supcon_one_positive as supcon_one_positive
from contrapose.losses.towers import clip as clip
from contrapose.losses.towers import hard_info_nce as hard_info_nce
from contrapose.losses.towers import hard_simple_info_nce as hard_simple_info_nce
from contrapose.losses.towers import info_nce as info_nce
from contrapose.losses.towers import n_pairs as n_pairs
from contrapose.losses.towers import nnclr as nnclr
from contrapose.losses.towers import relation_distillation as relation_distillation
from contrapose.losses.towers import siglip as siglip
from contrapose.losses.towers import simple_info_nce as simple_info_nce
from contrapose.losses.towers import supcon_memory as supcon_memory
