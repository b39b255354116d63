"""Contrastive losses, a function each: exact, differentiable, the same on one process or many."""

from contrapose.losses.hardness import cold_limit as cold_limit
from contrapose.losses.hardness import debiased as debiased
from contrapose.losses.hardness import hard as hard
from contrapose.losses.hardness import hard_quantile as hard_quantile
from contrapose.losses.hardness import hard_simple as hard_simple
from contrapose.losses.hardness import hcl as hcl
from contrapose.losses.hardness import hot_limit as hot_limit
from contrapose.losses.hardness import simple as simple
from contrapose.losses.softmax import align_uniform as align_uniform
from contrapose.losses.softmax import dcl as dcl
from contrapose.losses.softmax import dclw as dclw
from contrapose.losses.softmax import nt_xent as nt_xent
from contrapose.losses.softmax import nt_xent_pairs as nt_xent_pairs
from contrapose.losses.softmax import supcon as supcon
from contrapose.losses.softmax import supcon_in as supcon_in
from contrapose.losses.softmax import supcon_one_positive as supcon_one_positive
from contrapose.losses.towers import clip as clip
from contrapose.losses.towers import info_nce as info_nce
from contrapose.losses.towers import n_pairs as n_pairs
from contrapose.losses.towers import nnclr as nnclr
from contrapose.losses.towers import relation_distillation as relation_distillation
from contrapose.losses.towers import siglip as siglip
