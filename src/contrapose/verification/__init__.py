"""`contrapose verify`: every loss, with every source of keys, on several processes, by precision.

A check compares a loss and its gradient with the result of one process in float64 by the definition
(`similarity.dense`, whole matrices). Tests compare the definition with the formulas of papers, by
oracles that share no code with it.
"""

from contrapose.verification.run import Record as Record
from contrapose.verification.run import verify as verify
