"""Keys from outside the batch: a memory bank, a queue with a momentum encoder, cross-batch memory.

Also gradient caching, which computes the exact gradient of a batch that does not fit into memory.
"""

from contrapose.keys.caching import cached as cached
from contrapose.keys.caching import chunked as chunked
from contrapose.keys.momentum import MomentumEncoder as MomentumEncoder
from contrapose.keys.momentum import momentum_copy as momentum_copy
from contrapose.keys.sources import bank as bank
from contrapose.keys.sources import memory as memory
from contrapose.keys.sources import queue as queue
from contrapose.keys.sources import support as support
from contrapose.keys.stores import Bank as Bank
from contrapose.keys.stores import Queue as Queue
