"""Row reductions of a similarity matrix that is never stored."""

from contrapose.similarity.groups import group_sum as group_sum
from contrapose.similarity.groups import positive_mean as positive_mean
from contrapose.similarity.pairs import EVERY as EVERY
from contrapose.similarity.pairs import Pairs as Pairs
from contrapose.similarity.pairs import negatives as negatives
from contrapose.similarity.pairs import others as others
from contrapose.similarity.pairs import positives as positives
from contrapose.similarity.sharded import across as across
from contrapose.similarity.sharded import everyone as everyone
from contrapose.similarity.tiled import logsumexp as logsumexp
from contrapose.similarity.tiled import topk as topk
