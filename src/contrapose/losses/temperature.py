"""Perplexity of the softmax over negatives (their effective number), and its temperature.

Notation as in `softmax.py`. With r_ij = e^{s_ij/t} / sum_{n in N(i)} e^{s_in/t} (S1, eq. 5: the
share of negative j in what repels anchor i) and H its entropy, e^{H(r_i)} is a perplexity: the
effective number of negatives, from 1 (the nearest alone) to |N(i)| (all alike). It falls as t does:

    d H(r_i) / d log t = Var_{r_i}(s_i) / t^2,        Var the variance of s_ij under r_i

so that a temperature for every perplexity in between exists and is found by Newton's method, kept
inside a bracket. S1 is "Understanding the Behaviour of Contrastive Loss" (Wang & Liu, CVPR 2021);
perplexity in place of a width is t-SNE's idea, not S1's.

In a loss a perplexity is a floor. With p_i the mean similarity of i's positives, and a factor k
that spreads all similarities, the loss at the temperature t changes as

    d L / d log k  ~  mean over i of  (E_{r_i} s_i - p_i) / t

Above 0, the negatives that repel are nearer than the positives and the step draws all embeddings
together. A fixed t ends that, since it then weighs negatives more and more alike. The t of a fixed
perplexity shrinks with the similarities, and nothing ends it: loss and gradient grow as 1 / t. So
the temperature in force is the one of the perplexity, or the lowest at which the mean is not above
0, whichever is higher, the latter no higher than HOT.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.losses.checks import check_positive
from contrapose.similarity import EVERY, Pairs, gather_rows, logsumexps, widen

Per = Literal["batch", "anchor"]
Positives = tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]  # mean similarity; are there any

LOWEST, HIGHEST = 1e-3, 1e3  # temperatures beyond these are not looked for
STEPS = 60  # of the search at most: as many as bisection alone would need
DEVICE_STEPS = 16  # on an accelerator, where asking whether it is done would stall
NONE = -1e30  # similarity of a pair that does not count: its exponential is 0
HOT = 1.0  # where similarities of unit vectors weigh nearly alike: no need to go beyond it
REACHED = 1e-3  # relative error of a perplexity that counts as reached
KEEP, DEVICE_KEEP = 24 * 2**20, 2**29  # bytes of similarities kept between steps; else made again


def temperature_in_force(
    name: str,
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    temperature: float | Float[Tensor, ""] | None,
    perplexity: float | None,
    per: Per,
    negatives: Callable[[], Pairs],
    positives: Callable[[], Positives],
    match: Int[Tensor, " N"] | None = None,
) -> float | Float[Tensor, "..."]:
    """The temperature a loss was given, or the one for its perplexity on these rows.

    That is `temperature_at`, or where positives are farther than the negatives that repel, the
    lowest temperature at which they are not: see the head of this file. per="anchor": all
    temperatures are raised by one factor. positives: mean similarity of each row to its positives,
    and whether it has any.
    In a loss it is a setting, not a term: no gradient flows through it. With one, the loss would
    not change if all similarities were multiplied by one number, and nothing would spread the
    embeddings; without one, the gradient is that of the loss at the temperature in force.
    Raises UserError unless exactly one of `temperature` and `perplexity` is given.
    """
    if (temperature is None) == (perplexity is None):
        given = "neither" if temperature is None else "both"
        raise UserError(
            f"{name}: got {given} of temperature={temperature} and perplexity={perplexity}; "
            "give exactly one of them"
        )
    if temperature is not None:
        check_positive(name, temperature=temperature)
        return temperature
    assert perplexity is not None
    _check(name, perplexity, per)
    query, key = widen(query.detach()), widen(key.detach())
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        tiles = Similarities(query, key, negatives(), match)
        x, _, _ = _search(name, tiles, perplexity, per)
        return (-_not_drawing_together(tiles, x, *positives())).exp()


def tempered_logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    temperature: float | Float[Tensor, "..."],
    rules: tuple[Pairs, ...],
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], ...]:
    """log sum_j e^{s_ij / t} for each rule about j, with one temperature or one for each row."""
    if isinstance(temperature, Tensor) and temperature.ndim:
        return logsumexps(query / temperature[:, None], key, rules=rules, match=match)
    return logsumexps(query, key, scale=1 / temperature, rules=rules, match=match)


def temperature_at(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    perplexity: float,
    per: Per = "batch",
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
    name: str = "temperature_at",
) -> Float[Tensor, "..."]:
    """The temperature at which the effective number of negatives is `perplexity`.

    per="batch": one for all rows, mean over i of e^{H(r_i)} = perplexity (over the rows of all
    processes inside `across`; `key` then being the rows of all). per="anchor": one for each, every
    e^{H(r_i)} = perplexity. `pairs` says which keys are negatives; `match` names one key of each
    row that is not. Differentiable in query and key (implicit function theorem):

        dt / ds_ij = t r_ij (s_ij - E_{r_i} s_i) / Var_{r_i}(s_i)        per anchor

    Between LOWEST and HIGHEST: similarities that are (all but) equal have their perplexity at any
    temperature and get LOWEST, with a warning that counts them. Raises UserError for a perplexity
    that is not above 1 and below the number of negatives.
    """
    _check(name, perplexity, per)
    query, key = widen(query), widen(key)
    tiles = Similarities(query.detach(), key.detach(), pairs, match)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        x, slope, reached = _search(name, tiles, perplexity, per)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        h = entropy(query, key, scale=x.exp(), pairs=pairs, match=match)
        y = h if per == "anchor" else _log_mean_exp(h, tiles.count > 0)
        x = x - torch.where(reached, (y - y.detach()) / torch.where(reached, slope, 1.0), 0.0)
    return (-x).exp()


def entropy(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, "..."],
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """H(r_i), r_i the softmax of scale * s_ij over the pairs that count; 0 where none does.

    `scale` = 1/t is one number, or one for each row. Differentiable in query, key and scale:
    dH/ds_ij = -scale^2 r_ij (s_ij - E_r s),  dH/dscale = -scale Var_r(s). Memory O(N + M).
    """
    query, key = widen(query), widen(key)
    rows = torch.as_tensor(scale, dtype=query.dtype, device=query.device).expand(len(query))
    with torch.autocast(query.device.type, enabled=False):
        found: Tensor = _Entropy.apply(query, key, rows, pairs, match)
    return found


@torch.no_grad()
def effective_negatives(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    temperature: float | Float[Tensor, "..."],
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
) -> float:
    """Mean over rows of the perplexity e^{H(r_i)} of the softmax over their negatives.

    How many negatives share the repulsion of an anchor: all of them at a high temperature, the
    nearest one at a low one. One temperature or one for each row; `pairs` and `match` as in
    `temperature_at`. NaN where no row has a negative.
    """
    tiles = Similarities(widen(query), widen(key), pairs, match)
    return float(tiles.moments(1 / temperature).effective_negatives())


@dataclass(frozen=True)
class Moments:
    """Of s_ij under r_i, a row each; a row without pairs has log_sum -inf and zeros."""

    log_sum: Float[Tensor, " N"]  # log sum_j e^{scale (s_ij - top_i)}
    mean: Float[Tensor, " N"]  # E_r s
    variance: Float[Tensor, " N"]  # Var_r s
    entropy: Float[Tensor, " N"]  # H(r)

    def effective_negatives(self) -> Float[Tensor, ""]:
        """Mean of e^{H(r_i)} over the rows that have a pair."""
        return self.entropy[self.log_sum > -math.inf].double().exp().mean()


class Similarities:
    """The similarities of rows to the keys that count, a tile at a time.

    Kept between passes where all of them are small, made again in each pass otherwise. `top` and
    `count`: the greatest similarity of each row, and how many count.
    """

    def __init__(
        self,
        query: Float[Tensor, "N D"],
        key: Float[Tensor, "M D"],
        pairs: Pairs = EVERY,
        match: Int[Tensor, " N"] | None = None,
    ) -> None:
        pairs.check(len(query), len(key))
        self._operands = query, key, pairs, match
        size = query.element_size() * len(query) * len(key)
        small = size <= (KEEP if query.device.type == "cpu" else DEVICE_KEEP)
        made = list(_tiles(*self._operands)) if small else _tiles(*self._operands)
        self.top, self.count = query.new_full((len(query),), NONE), query.new_zeros(len(query))
        for I, _, s in made:
            self.top[I] = torch.maximum(self.top[I], s.amax(dim=1))
            self.count[I] += (s > NONE).sum(dim=1)
        self.top = torch.where(self.count > 0, self.top, 0.0)
        self._kept = [(I, s.sub_(self.top[I, None])) for I, _, s in made] if small else None

    def moments(self, scale: float | Float[Tensor, "..."]) -> Moments:
        """Under the softmax of scale * s_ij, one scale or one for each row."""
        scale = torch.as_tensor(scale, dtype=self.top.dtype, device=self.top.device)
        scale = scale.expand(len(self.top))
        sum0, sum1, sum2 = (torch.zeros_like(self.top) for _ in range(3))
        for I, below in self.below():
            e = (below * scale[I, None]).exp_()
            sum0[I] += e.sum(dim=1)
            sum1[I] += e.mul_(below).sum(dim=1)
            sum2[I] += e.mul_(below).sum(dim=1)
        some = self.count > 0
        total = torch.where(some, sum0, 1.0)
        mean, log_sum = sum1 / total, total.log()
        return Moments(
            torch.where(some, log_sum, -math.inf),
            mean + self.top,
            (sum2 / total - mean.square()).clamp(min=0),
            (log_sum - scale * mean).clamp(min=0),
        )

    def below(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, s_ij - top_i) of every tile: never above 0, so that no exponential overflows."""
        if self._kept is not None:
            yield from self._kept
        else:
            for I, _, s in _tiles(*self._operands):
                yield I, s.sub_(self.top[I, None])


def _tiles(
    query: Tensor, key: Tensor, pairs: Pairs, match: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, similarity) of every tile, NONE where a pair does not count."""
    size = 512 if query.device.type == "cpu" else 4096
    for I in _slices(len(query), size):
        for J in _slices(len(key), size):
            s, mask = query[I] @ key[J].T, pairs.mask(I, J)
            if match is not None:
                column = torch.arange(J.start, J.stop, device=key.device)
                other = column != match[I, None]
                mask = other if mask is None else mask & other
            yield I, J, s if mask is None else s.masked_fill_(~mask, NONE)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, scale, pairs, match):  # type: ignore[no-untyped-def]
        tiles = Similarities(query, key, pairs, match)
        at = tiles.moments(scale)
        ctx.save_for_backward(query, key, scale, tiles.top, at.log_sum, at.mean, at.variance)
        ctx.pairs, ctx.match = pairs, match
        return at.entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, scale, top, log_sum, mean, variance = ctx.saved_tensors
        log_sum = torch.where(log_sum == -math.inf, 0.0, log_sum)
        weight = -grad * scale.square()
        dquery, dkey = torch.zeros_like(query), torch.zeros_like(key)
        with torch.autocast(query.device.type, enabled=False):
            for I, J, s in _tiles(query, key, ctx.pairs, ctx.match):
                r = ((s - top[I, None]) * scale[I, None] - log_sum[I, None]).exp()
                g = r * (s - mean[I, None]) * weight[I, None]
                dquery[I] += g @ key[J]
                dkey[J] += g.T @ query[I]
        return dquery, dkey, -grad * scale * variance, None, None


def _check(name: str, perplexity: float, per: str) -> None:
    if per not in ("batch", "anchor"):
        raise UserError(f"{name}: per={per!r}; use 'batch' (one for all) or 'anchor' (one each)")
    if not (math.isfinite(perplexity) and perplexity > 1):
        raise UserError(
            f"{name}: perplexity={perplexity}; give a number of negatives above 1 (1 is the limit "
            "of temperature 0)"
        )


def _not_drawing_together(
    tiles: Similarities,
    x: Float[Tensor, "..."],
    similarity: Float[Tensor, " N"],
    some: Bool[Tensor, " N"],
) -> Float[Tensor, "..."]:
    """x = log 1/t, less what makes g = sum over i of (E_{r_i} s_i - p_i) / t_i at most 0.

    Over the anchors of all processes with a positive and a negative. One amount y >= 0 for all, by
    Newton's method inside a bracket: g falls as y grows, dg/dy = - sum of Var_{r_i}(s_i) / t_i^2
    with 1/t_i taken at y = 0 in one of its two factors. No t goes above HOT.
    """
    warmest = -math.log(HOT)
    start = x.exp().expand(len(some))
    some = some & (tiles.count > 0)

    def g_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
        scale = (x - y).exp().expand(len(some))
        at = tiles.moments(scale)
        g = start * (at.mean - similarity)
        rows = torch.stack([g, -start * scale * at.variance], dim=1)
        total = gather_rows(torch.where(some[:, None], rows, 0.0)).sum(dim=0)
        return total[0], total[1]

    y = tiles.top.new_zeros(())
    low, high = y, y + max(0.0, -math.log(LOWEST) - warmest)
    cpu, accuracy = y.device.type == "cpu", 1e-5 if y.dtype == torch.float32 else 1e-13
    g, slope = g_and_slope(y)
    draws = g > 0
    for _ in range(STEPS if cpu else DEVICE_STEPS):
        if cpu and not bool(draws & (high - low > accuracy)):
            break
        low, high = torch.where(g > 0, y, low), torch.where(g > 0, high, y)
        newton = y - g / slope
        inside = (newton > low) & (newton < high)
        if cpu and bool(inside & ((newton - y).abs() < accuracy)):
            break
        y = torch.where(inside, newton, (low + high) / 2)
        g, slope = g_and_slope(y)
    return torch.where(draws & (x > warmest), (x - y).clamp(min=warmest), x)


def _search(
    name: str, tiles: Similarities, perplexity: float, per: Per
) -> tuple[Tensor, Tensor, Tensor]:
    """(x = log 1/t, dy/dx there, whether it was reached), a number each or one for every row.

    y(x) is H(r_i), or the log of the mean of e^{H(r_i)}; it falls from log |N(i)| as x grows.
    """
    target = math.log(perplexity)
    some = tiles.count > 0

    def y_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        at = tiles.moments(x.exp())
        slope = -(2 * x).exp() * at.variance
        if per == "anchor":
            return at.entropy, slope
        rows = gather_rows(torch.stack([at.entropy, slope, some.to(slope)], dim=1))
        h, slope, counted = rows.unbind(dim=1)
        weight = torch.where(counted > 0, h, -math.inf).softmax(dim=0)
        return h.where(counted > 0, -math.inf).logsumexp(0) - counted.sum().log(), weight @ slope

    count = tiles.count
    if per == "batch":  # the mean over all that have a negative
        every = gather_rows(count)
        count = every.sum() / (every > 0).sum().clamp(min=1)
    none, cpu = count == 0, count.device.type == "cpu"
    if cpu and bool(((count <= perplexity) & ~none).any()):
        fewest = float(count[~none].min())
        raise UserError(
            f"{name}: perplexity={perplexity:g} effective negatives, but there are {fewest:g} in "
            "all; give less than that, or larger batches"
        )
    accuracy = 1e-4 if count.dtype == torch.float32 else 1e-13
    coldest, hottest = -math.log(LOWEST), -math.log(HIGHEST)
    variance = tiles.moments(1 / HIGHEST).variance
    if per == "batch":
        variance = gather_rows(variance).sum() / every.gt(0).sum().clamp(min=1)
    # to second order in e^x: y = log n - e^{2 x} variance / 2
    x = ((2 * (count.clamp(min=1).log() - target) / variance).log() / 2).clamp(hottest, coldest)
    x = torch.where(x.isfinite(), x, 0.0)
    low, high = torch.full_like(x, -math.inf), torch.full_like(x, math.inf)
    y, slope = y_and_slope(x)
    for _ in range(STEPS if cpu else DEVICE_STEPS):
        low, high = torch.where(y > target, x, low), torch.where(y < target, x, high)
        done = ((y - target).abs() < accuracy) | (high - low < accuracy)
        if cpu and bool((done | none | (low >= coldest) | (high <= hottest)).all()):
            break
        newton = (x - (y - target) / slope).clamp(hottest, coldest)
        middle = (low.clamp(min=hottest) + high.clamp(max=coldest)) / 2
        better = torch.where((newton > low) & (newton < high), newton, middle)
        x = torch.where(done, x, better)  # rounding may put a finished one outside its bracket
        y, slope = y_and_slope(x)
    reached = ((y - target).abs() < REACHED) & (slope < 0)
    beyond = torch.where(y > target, coldest, hottest)
    if cpu and not bool((reached | none).all()):
        off, of = int((~reached & ~none).sum()), max(1, int((~none).sum()))
        warnings.warn(
            f"{name}: perplexity={perplexity:g} is at no temperature from {LOWEST:g} to "
            f"{HIGHEST:g} for {off} of {of} (similarities all but equal?); the nearest is used",
            stacklevel=4,
        )
    return torch.where(reached, x, torch.where(none, 0.0, beyond)), slope, reached


def _log_mean_exp(h: Float[Tensor, " N"], some: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """log of the mean of e^h over the rows of all processes that have a negative."""
    every, counted = gather_rows(h), gather_rows(some)
    return every[counted].logsumexp(dim=0) - counted.sum().to(h.dtype).log()
