"""Time and memory of the losses and of other libraries, on the same inputs in one run.

cases       what is computed, on which inputs, at which sizes
contenders  how each library computes it, and what it is expected to take
measure     interleaved times, and the peak memory of a fresh process
run         from the request to bench.json, bench.md and bench.html
"""

from contrapose.bench.run import bench as bench
