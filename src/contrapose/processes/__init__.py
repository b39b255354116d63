"""The processes that share a batch: started on one machine, or by torchrun, and watched."""

from contrapose.processes.ranks import Rank as Rank
from contrapose.processes.ranks import processes as processes
