"""Row reductions (log-sum-exp, sum of softplus, top-k) of a similarity matrix, in O(N D) memory.

The N x M matrix of similarities query_i . key_j is never stored: it is computed tile by tile, and
again in the backward pass. The losses are written with these functions.
"""

from contrapose.similarity.backend import logsumexp as logsumexp
from contrapose.similarity.backend import logsumexp_both as logsumexp_both
from contrapose.similarity.backend import logsumexps as logsumexps
from contrapose.similarity.backend import softplus_sum as softplus_sum
from contrapose.similarity.backend import topk as topk
from contrapose.similarity.backend import using as using
from contrapose.similarity.dense import paired as paired
from contrapose.similarity.dense import safe_logsumexp as safe_logsumexp
from contrapose.similarity.groups import few_positives as few_positives
from contrapose.similarity.groups import group_sum as group_sum
from contrapose.similarity.groups import positive_count as positive_count
from contrapose.similarity.groups import positive_similarity as positive_similarity
from contrapose.similarity.groups import positives_of as positives_of
from contrapose.similarity.groups import similarity_at as similarity_at
from contrapose.similarity.groups import unlabelled_apart as unlabelled_apart
from contrapose.similarity.groups import whole_numbers as whole_numbers
from contrapose.similarity.pairs import EVERY as EVERY
from contrapose.similarity.pairs import Pairs as Pairs
from contrapose.similarity.pairs import negatives as negatives
from contrapose.similarity.pairs import others as others
from contrapose.similarity.pairs import positives as positives
from contrapose.similarity.sharded import across as across
from contrapose.similarity.sharded import anchor_mean as anchor_mean
from contrapose.similarity.sharded import gather_rows as gather_rows
from contrapose.similarity.sharded import row_ids as row_ids
from contrapose.similarity.wide import products as products
from contrapose.similarity.wide import widen as widen
