"""Processes that share a batch, started here or by torchrun, and their supervision."""

from contrapose.processes.ranks import Rank as Rank
from contrapose.processes.ranks import processes as processes
