"""Every loss once more, from its formula alone: whole matrices, plain torch, any precision.

`ORACLE[name]` takes what the loss takes. Nothing of contrapose is used here.
"""

import math

import torch

INF = math.inf


def relations(group):
    """(positives, negatives, others) as masks."""
    same = group[:, None] == group[None, :]
    other = ~torch.eye(len(group), dtype=torch.bool)
    return same & other, ~same, other


def lse(logits, mask):
    return logits.masked_fill(~mask, -INF).logsumexp(dim=1)


def pull(logits, positive):
    return (logits * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)


def over(loss, mask):
    return loss[mask].mean()


def supcon(z, group, *, temperature):
    p, _, a = relations(group)
    s = z @ z.T / temperature
    return over(lse(s, a) - pull(s, p), p.any(1))


def supcon_in(z, group, *, temperature):
    p, _, a = relations(group)
    i = p.any(1)
    s = (z @ z.T / temperature)[i]
    return (lse(s, a[i]) - lse(s, p[i]) + p[i].sum(1).log()).mean()


def dcl(z, group, *, temperature):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    return over(lse(s, n) - pull(s, p), p.any(1) & n.any(1))


def align_uniform(z, group, *, t=2.0, weight=1.0):
    p, _, a = relations(group)
    squared = 2 - 2 * z @ z.T
    return over(pull(squared, p), p.any(1)) + weight * (-t * squared[a]).exp().mean().log()


def hard(z, group, *, temperature, k):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    nearest = s.masked_fill(~n, -INF).topk(k, dim=1).values
    positive = pull(s, p)
    return over(torch.cat([positive[:, None], nearest], 1).logsumexp(1) - positive, p.any(1))


def info_nce(query, key, match, *, temperature):
    s = query @ key.T / temperature
    return torch.nn.functional.cross_entropy(s, match)


def clip(image, text, *, scale):
    s, i = scale * image @ text.T, torch.arange(len(image))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(s, i) + cross_entropy(s.T, i)) / 2


ORACLE = {
    "nt_xent": supcon,
    "supcon": supcon,
    "supcon_in": supcon_in,
    "dcl": dcl,
    "align_uniform": align_uniform,
    "hard": hard,
    "info_nce": info_nce,
    "clip": clip,
}

# What each loss is called with in the tests, by the name of its parameter.
ARGUMENTS = {"temperature": 0.2, "k": 4, "scale": 5.0}


def keywords(parameters, temperature=0.2):
    """The arguments a loss needs beyond its data, at a temperature (or at one over it)."""
    given = ARGUMENTS | {"temperature": temperature, "scale": 1 / temperature}
    return {name: given[name] for name in parameters if name in given}


def data(parameters, z, group):
    """What a loss is given, by its parameters: (z, group), (query, key, match) or two towers.

    Two towers are the two halves of z; where the keys are given with matches, all of z is the bank.
    """
    half = len(z) // 2
    if "group" in parameters:
        return z, group
    if "match" in parameters:
        return z[:half], z, torch.arange(half) + half
    return z[:half], z[half:]
