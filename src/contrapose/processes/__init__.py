"""Processes that share work, started here or by torchrun, and their supervision."""

from contrapose.processes.ranks import Rank as Rank
from contrapose.processes.ranks import is_launched as is_launched
from contrapose.processes.ranks import launched as launched
from contrapose.processes.ranks import processes as processes
from contrapose.processes.ranks import rank_in_force as rank_in_force
from contrapose.processes.ranks import shared as shared
