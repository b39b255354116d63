"""Experiments of "Understanding the Behaviour of Contrastive Loss" (arXiv 2012.09740), source S1.

What the temperature of a contrastive loss does.
"""

EXPERIMENTS = (
    "perplexity",
    "relations",
    "swap",
    "temperature_gradients",
    "temperature_limits",
    "temperature_sweep",
)
