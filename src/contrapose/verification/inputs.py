"""Arguments for a loss by the names of its parameters, for tests and `contrapose verify`.

A loss whose parameters have these names is verified without further code; a parameter with another
name needs a value in VALUES, or a line in `data`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

Parameters = Mapping[str, inspect.Parameter]

VALUES = {
    "k": 4,
    "alpha": 0.4,
    "beta": 0.7,
    "tau_plus": 0.1,
    "epsilon": 0.1,
    "sigma": 0.5,
    "weight": 0.3,
    "bias": -1.5,
    "past_temperature": 0.1,
    "margin": 0.6,
    "share": 0.5,
    "near": 1,
    "far": 3,
    "m": 3,
}


def parameters_of(loss: Callable[..., Any]) -> Parameters:
    return inspect.signature(loss).parameters


def keywords(parameters: Parameters, temperature: float = 0.2) -> dict[str, Any]:
    """The arguments a loss needs beyond its data, at a temperature (or at one over it)."""
    generator = torch.Generator().manual_seed(0)
    varied = {"temperature": temperature, "scale": 1 / temperature, "generator": generator}
    given: dict[str, Any] = VALUES | varied
    return {name: given[name] for name in parameters if name in given}


def data(
    parameters: Parameters, z: Float[Tensor, "N D"], group: Int[Tensor, " N"]
) -> tuple[Tensor, ...]:
    """What a loss is given first: (z, group), with a memory, (query, key, match) or two towers.

    Two towers are the two halves of z; where keys are a bank, all of z is the bank.
    """
    half = len(z) // 2
    numbers = torch.arange(len(z), device=z.device)
    if "key_group" in parameters:
        return z[:half], group[:half], z[half:], group.flip(0)[half:]
    if "labels" in parameters:  # here none is shared; `Problem` has some that are
        return z, group, torch.zeros(len(z), 2, dtype=torch.int8, device=z.device)
    if "group" in parameters:
        return z, group
    if "time" in parameters:
        return z, numbers
    if "classes" in parameters:
        return z[:half], z[half:], numbers[:half]
    if "logits" in parameters:
        return z, group % z.shape[1]
    if "match" in parameters:
        return z[:half], z, numbers[:half] + half
    if "support" in parameters:
        return z[:half], z[half:], normalize(z + z.roll(3, 0), dim=1, eps=1e-3)
    return z[:half], z[half:]


def the_same_everywhere(parameters: Parameters) -> set[str]:
    """The names of the data that are the same on every process, not rows of the batch."""
    bank = {"key"} if {"match", "key_group"} & set(parameters) else set()
    return bank | {"key_group"} & set(parameters) | ({"classes", "support"} & set(parameters))
