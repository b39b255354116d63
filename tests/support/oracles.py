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


def supcon_shared(z, group, labels, *, temperature):
    p, _, a = relations(group)
    shared = torch.tensor([[bool(((x == 1) & (y == 1)).any()) for y in labels] for x in labels])
    p = (p | shared.reshape(p.shape)) & a
    s = z @ z.T / temperature
    return over(lse(s, a) - pull(s, p), p.any(1))


def supcon_in(z, group, *, temperature):
    p, _, a = relations(group)
    i = p.any(1)
    s = (z @ z.T / temperature)[i]
    return (lse(s, a[i]) - lse(s, p[i]) + p[i].sum(1).to(z.dtype).log()).mean()


def dcl(z, group, *, temperature):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    return over(lse(s, n) - pull(s, p), p.any(1) & n.any(1))


def align_uniform(z, group, *, t=2.0, weight=1.0):
    p, n, _ = relations(group)
    return aligned_and_uniform(z, p, n, t, weight)


def align_uniform_joined(z, group, *, t=2.0, weight=1.0):
    p, _, a = relations(group)
    return aligned_and_uniform(z, p, a, t, weight)


def aligned_and_uniform(z, p, apart, t, weight):
    squared = 2 - 2 * z @ z.T
    return over(pull(squared, p), p.any(1)) + weight * (-t * squared[apart]).exp().mean().log()


def hard(z, group, *, temperature, k):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    nearest = s.masked_fill(~n, -INF).topk(k, dim=1).values
    positive = pull(s, p)
    return over(torch.cat([positive[:, None], nearest], 1).logsumexp(1) - positive, p.any(1))


def info_nce(query, key, match, *, temperature):
    s = query @ key.T / temperature
    return torch.nn.functional.cross_entropy(s, match)


def matched(query, key, match):
    """(s_i,match(i), the other similarities of row i)."""
    s, j = query @ key.T, torch.arange(len(key))
    others = torch.stack([row[j != m] for row, m in zip(s, match, strict=True)])
    return s.gather(1, match[:, None]), others


def ifm(z, group, *, temperature, epsilon):
    p, n, _ = relations(group)
    s, rows = z @ z.T, p.any(1) & n.any(1)
    positive, total = pull(s, p), 0.0
    for e in (0.0, epsilon):
        up = (positive - e) / temperature
        total = total + torch.logaddexp(up, lse((s + e) / temperature, n)) - up
    return over(total / 2, rows)


def hard_info_nce(query, key, match, *, temperature, k):
    positive, others = matched(query, key, match)
    s = torch.cat([positive, others.topk(k, dim=1).values], 1) / temperature
    return -s.log_softmax(1)[:, 0].mean()


def simple_info_nce(query, key, match, *, weight):
    positive, others = matched(query, key, match)
    return (weight * others.sum(1) - positive[:, 0]).mean()


def hard_simple_info_nce(query, key, match, *, weight, k):
    positive, others = matched(query, key, match)
    return (weight * others.topk(k, dim=1).values.sum(1) - positive[:, 0]).mean()


def supcon_memory(z, group, key, key_group, *, temperature):
    loss = []
    for i in range(len(z)):
        other = torch.arange(len(z)) != i
        s = torch.cat([z[other], key]) @ z[i] / temperature
        p = torch.cat([group[other], key_group]) == group[i]
        if p.any():
            loss.append(s.logsumexp(0) - s[p].mean())
    return torch.stack(loss).mean()


def clip(image, text, *, scale):
    s, i = scale * image @ text.T, torch.arange(len(image))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(s, i) + cross_entropy(s.T, i)) / 2


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def dclw(z, group, *, temperature, sigma):
    p, n, _ = relations(group)
    s, i = z @ z.T, p.any(1) & n.any(1)
    positive = pull(s, p)[i]
    weight = 2 - (positive / sigma).exp() / (positive / sigma).exp().mean()
    return (lse(s / temperature, n)[i] - weight * positive / temperature).mean()


def one_positive(z, group, temperature):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    negative = lse(s[p.any(1)], n[p.any(1)])
    pairs = torch.logaddexp(s[p.any(1)], negative[:, None]) - s[p.any(1)]
    return pairs, p[p.any(1)]


def supcon_one_positive(z, group, *, temperature):
    return pull(*one_positive(z, group, temperature)).mean()


def nt_xent_pairs(z, group, *, temperature):
    pairs, p = one_positive(z, group, temperature)
    return pairs[p].mean()


def nearest_negatives(s, n, k):
    return s.masked_fill(~n, -INF).topk(k, dim=1).values


def hard_quantile(z, group, *, temperature, alpha):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    loss = []
    for i in range(len(z)):
        if p[i].any():
            positive, k = s[i][p[i]].mean(), max(1, round(alpha * int(n[i].sum())))
            chosen = s[i][n[i]].topk(k).values
            loss.append(torch.cat([positive[None], chosen]).logsumexp(0) - positive)
    return torch.stack(loss).mean()


def hcl(z, group, *, temperature, beta, tau_plus):
    p, n, _ = relations(group)
    s, count = z @ z.T / temperature, n.sum(1)
    i = p.any(1) & n.any(1)
    s, p, n, count = s[i], p[i], n[i], count[i]
    shift = s.detach().amax(1)
    positive, negative = (pull(s, p) - shift).exp(), (s - shift[:, None]).exp() * n
    important = (beta * (s - shift[:, None])).exp() * n
    reweighted = count * (important * negative).sum(1) / important.sum(1)
    g = (reweighted - count * positive * tau_plus) / (1 - tau_plus)
    g = torch.maximum(g, count * (-1 / temperature - shift).exp())
    return -(positive / (positive + g)).log().mean()


def debiased(z, group, *, temperature, tau_plus):
    return hcl(z, group, temperature=temperature, beta=0.0, tau_plus=tau_plus)


def simple(z, group, *, weight):
    p, n, _ = relations(group)
    s = z @ z.T
    return over(weight * (s * n).sum(1) - pull(s, p), p.any(1))


def hard_simple(z, group, *, weight, k):
    p, n, _ = relations(group)
    s = z @ z.T
    return over(weight * nearest_negatives(s, n, k).sum(1) - pull(s, p), p.any(1))


def cold_limit(z, group, *, temperature):
    p, n, _ = relations(group)
    s = z @ z.T
    return over((nearest_negatives(s, n, 1)[:, 0] - pull(s, p)).relu() / temperature, p.any(1))


def hot_limit(z, group, *, temperature):
    p, n, _ = relations(group)
    s, m = z @ z.T, n.sum(1).to(z.dtype) + 1
    loss = (
        (s * n).sum(1) / (m * temperature)
        - (m - 1) / (m * temperature) * pull(s, p)
        + m.to(z.dtype).log()
    )
    return over(loss, p.any(1))


def siglip(image, text, *, scale, bias):
    s = scale * image @ text.T + bias
    y = 2 * torch.eye(len(s), dtype=s.dtype) - 1
    return softplus(-y * s).sum(1).mean()


def nnclr(z, prediction, support, *, temperature):
    nearest = support[(z @ support.T).argmax(1)].detach()
    s = nearest @ prediction.T / temperature
    return torch.nn.functional.cross_entropy(s, torch.arange(len(z)))


def n_pairs(query, key):
    s = query @ key.T
    return (s - s.diagonal()[:, None]).exp().sum(1).log().mean()


def relation_distillation(z, past, *, temperature, past_temperature):
    other = ~torch.eye(len(z), dtype=torch.bool)
    p = (past.detach() @ past.detach().T / past_temperature)[other].view(len(z), -1).softmax(1)
    q = (z @ z.T / temperature)[other].view(len(z), -1).log_softmax(1)
    return -(p * q).sum(1).mean()


def squared_distances(z):
    return 2 - 2 * z @ z.T  # between unit vectors


def triplets(z, group):
    """(anchor, its positives, its negatives) as squared distances, anchors that have both."""
    p, n, _ = relations(group)
    d = squared_distances(z)
    return [(d[i][p[i]], d[i][n[i]]) for i in range(len(z)) if p[i].any() and n[i].any()]


def mean(terms):
    return torch.stack(terms).mean()


def max_margin(z, group, *, margin):
    p, n, other = relations(group)
    d = squared_distances(z)
    distance = d.masked_fill(~n, 1.0).clamp(min=1e-12).sqrt()
    loss = torch.where(p, d, 0.0) + torch.where(n, (margin - distance).relu() ** 2, 0.0)
    return loss[other].mean() / 2


def triplet(z, group, *, margin):
    hinge = [(p[:, None] - n[None, :] + margin).relu().mean() for p, n in triplets(z, group)]
    return mean(hinge)


def batch_hard(z, group, margin):
    return torch.stack([(p.max() - n.min() + margin).relu() for p, n in triplets(z, group)])


def triplet_batch_hard(z, group, *, margin):
    return batch_hard(z, group, margin).mean()


def triplet_ohem(z, group, *, margin, share):
    loss = batch_hard(z, group, margin)
    worst = loss.sort(descending=True).values[round(share * len(loss)) - 1]
    return loss[loss >= worst].mean()


def semi_hard(p, n):
    beyond = [n[n > x] for x in p]
    return torch.stack([x.min() if len(x) else n.max() for x in beyond])


def triplet_semi_hard(z, group, *, margin):
    return mean([(p - semi_hard(p, n) + margin).relu().mean() for p, n in triplets(z, group)])


def time_contrastive(z, time, *, near, far, margin):
    apart, d = (time[:, None] - time[None, :]).abs(), squared_distances(z)
    p, n = (apart > 0) & (apart <= near), apart > far
    rows = [(d[i][p[i]], d[i][n[i]]) for i in range(len(z)) if p[i].any() and n[i].any()]
    return mean([(p - semi_hard(p, n) + margin).relu().mean() for p, n in rows])


def triplet_distance_weighted(z, group, *, margin, generator):
    p, n, _ = relations(group)
    d = squared_distances(z)
    squared, dim = d.detach().clamp(0.25, 4 - 1e-3), z.shape[1]
    density = squared.sqrt() ** (dim - 2) * (1 - squared / 4) ** ((dim - 3) / 2)
    weight = torch.where(n, 1 / density, 0.0)
    weight[~n.any(1)] = 1.0
    drawn = torch.multinomial(weight, len(z), replacement=True, generator=generator)
    hinge = (d - d.gather(1, drawn) + margin).relu()
    return over(pull(hinge, p), p.any(1) & n.any(1))


def nt_logistic(z, group, *, temperature):
    p, n, _ = relations(group)
    s = z @ z.T / temperature
    return over(pull(softplus(-s), p) + pull(softplus(s), n), p.any(1) & n.any(1))


def nt_logistic_semi_hard(z, group, *, temperature):
    loss = []
    for p, n in triplets(z, group):
        positive, negative = 1 - p / 2, 1 - semi_hard(p, n) / 2
        loss.append((softplus(-positive / temperature) + softplus(negative / temperature)).mean())
    return mean(loss)


def large_margin_softmax(x, classes, label, *, m):
    logits = x @ classes.T
    rows, own = torch.arange(len(x)), classes[label]
    size = x.norm(dim=1) * own.norm(dim=1)
    theta = (logits[rows, label] / size).acos()
    k = (m * theta / math.pi).floor().detach()
    target = size * ((-1) ** k * (m * theta).cos() - 2 * k)
    return torch.nn.functional.cross_entropy(logits.index_put((rows, label), target), label)


def cross_entropy(logits, label, *, label_smoothing=0.0):
    q = torch.zeros_like(logits)
    q[torch.arange(len(logits)), label] = 1
    q = (1 - label_smoothing) * q + label_smoothing / logits.shape[1]
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return mean([-(a * b.log()).sum() for a, b in zip(q, p, strict=True)])


def gcl_coupled(z, group, *, temperature):
    return temperature * supcon(z, group, temperature=temperature)


def gcl_decoupled(z, group, *, temperature, weight):
    p, _, a = relations(group)
    s = z @ z.T
    return over(weight * lse(s / temperature, a) - pull(s, p), p.any(1))


def alignment(z, group):
    p, _, _ = relations(group)
    entries = (z[:, None] - z[None, :]).square().mean(2) / 2
    return pull(entries, p)


def gcl_notebook(z, group, *, temperature, weight):
    push = (z @ z.T / temperature).logsumexp(1) - math.log(z.shape[1])
    return over(alignment(z, group) + weight * push, relations(group)[0].any(1))


def swd(z, group, prior, weight, generator):
    wide = torch.promote_types(z.dtype, torch.float32)
    w, _ = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], generator=generator).to(wide))
    w = w.to(z.dtype)
    distance = ((z @ w).sort(0).values - (prior.to(z) @ w).sort(0).values).square().mean()
    return over(alignment(z, group), relations(group)[0].any(1)) + weight * distance


def gcl_swd_hypersphere(z, group, *, weight, generator):
    prior = torch.randn(z.shape, generator=generator).to(z)
    prior = torch.nn.functional.normalize(prior, dim=1)
    return swd(z, group, prior, weight, generator)


def gcl_swd_normal(z, group, *, weight, generator):
    return swd(z, group, torch.randn(z.shape, generator=generator), weight, generator)


def gcl_swd_hypercube(z, group, *, weight, generator):
    prior = 2 * torch.rand(z.shape, generator=generator) - 1
    return swd(z, group, prior, weight, generator)


ORACLE = {
    "nt_xent": supcon,
    **{
        f.__name__: f
        for f in (
            supcon,
            supcon_shared,
            supcon_in,
            supcon_one_positive,
            nt_xent_pairs,
            dcl,
            dclw,
            align_uniform,
            align_uniform_joined,
            hard,
            hard_quantile,
            hard_simple,
            hcl,
            debiased,
            ifm,
            simple,
            cold_limit,
            hot_limit,
            info_nce,
            hard_info_nce,
            simple_info_nce,
            hard_simple_info_nce,
            supcon_memory,
            clip,
            siglip,
            nnclr,
            n_pairs,
            relation_distillation,
            max_margin,
            triplet,
            triplet_batch_hard,
            triplet_ohem,
            triplet_semi_hard,
            triplet_distance_weighted,
            time_contrastive,
            nt_logistic,
            nt_logistic_semi_hard,
            large_margin_softmax,
            cross_entropy,
            gcl_coupled,
            gcl_decoupled,
            gcl_notebook,
            gcl_swd_hypersphere,
            gcl_swd_normal,
            gcl_swd_hypercube,
        )
    },
}
