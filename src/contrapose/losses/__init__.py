"""Contrastive losses, a function each: exact, differentiable, the same on one process or many."""

from contrapose.losses.hardness import hard as hard
from contrapose.losses.softmax import align_uniform as align_uniform
from contrapose.losses.softmax import dcl as dcl
from contrapose.losses.softmax import nt_xent as nt_xent
from contrapose.losses.softmax import supcon as supcon
from contrapose.losses.softmax import supcon_in as supcon_in
from contrapose.losses.towers import clip as clip
from contrapose.losses.towers import info_nce as info_nce
