"""Proof on demand: every loss, from every source of keys, on many processes, in every precision.

A check compares a loss and its gradient with what one process finds in float64 by the definition
(`similarity.dense`, whole matrices). That the definition is the paper's formula is tested against
oracles that share no code with it.
"""

from contrapose.verification.run import Record as Record
from contrapose.verification.run import verify as verify
