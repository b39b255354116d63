"""Optimisers against steps written out by hand; schedules at the points the papers name."""

import copy
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from contrapose.encoders import Encoder, mlp, resnet18
from contrapose.training import optim
from contrapose.training.optim import (
    adam,
    adamw,
    constant,
    lars,
    linear,
    linear_scaling,
    no_scaling,
    sgd,
    sqrt_scaling,
    steps,
    warmup_cosine,
)


def two_layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4)).double()


def fill_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for w in module.parameters():
        w.grad = torch.randn(w.shape, generator=generator, dtype=w.dtype)


def test_lars_follows_its_equations_in_float64():
    module = two_layers()
    eta, momentum, decay = 0.001, 0.9, 0.1
    expected = {name: w.detach().clone() for name, w in module.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in expected.items()}
    optimiser = lars(module, 0.5, weight_decay=decay)
    for step, lr in enumerate([0.5, 0.2, 0.7]):
        fill_gradients(module, step)
        optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = lr
        optimiser.step()
        for name, w in module.named_parameters():
            g, trust = w.grad, 1.0
            if name == "0.weight":
                g = g + decay * expected[name]
                trust = eta * expected[name].norm() / g.norm()
            velocity[name] = momentum * velocity[name] + lr * trust * g
            expected[name] = expected[name] - velocity[name]
            torch.testing.assert_close(w.detach(), expected[name], rtol=1e-12, atol=1e-12)


def test_adams_decay_is_a_penalty_on_the_squares_of_matrices():
    """Keras's l2(a): loss + a |w|^2 under plain Adam is weight_decay = 2a."""
    penalty, decayed = 0.01, two_layers()
    penalised = copy.deepcopy(decayed)
    ours = adam(decayed, 0.1, weight_decay=2 * penalty, eps=1e-7)
    plain = torch.optim.Adam(penalised.parameters(), lr=0.1, eps=1e-7)
    for step in range(3):
        fill_gradients(decayed, step)
        fill_gradients(penalised, step)
        penalised[0].weight.grad += torch.autograd.grad(
            penalty * penalised[0].weight.square().sum(), penalised[0].weight
        )[0]
        ours.step()
        plain.step()
    for w, expected in zip(decayed.parameters(), penalised.parameters(), strict=True):
        torch.testing.assert_close(w, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight, grad", [(0.0, 1.0), (1.0, 0.0)])
def test_lars_trusts_fully_where_a_norm_is_zero(weight, grad):
    module = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.constant_(module.weight, weight)
    module.weight.grad = torch.full((2, 2), grad)
    lars(module, 0.5, weight_decay=0.0).step()
    assert torch.equal(module.weight.detach(), torch.full((2, 2), weight - 0.5 * grad))


@pytest.mark.parametrize("build", [sgd, adam, adamw, lars])
def test_bn_and_biases_are_neither_decayed_nor_adapted(build):
    backbone = resnet18()
    encoder = Encoder(backbone, mlp(backbone.width), mean=[0.0] * 3, std=[1.0] * 3)
    spared = {
        id(w)
        for m in encoder.modules()
        for name, w in m.named_parameters(recurse=False)
        if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d) or name == "bias"
    }
    groups = build(encoder, 0.1, weight_decay=0.01).param_groups
    for group in groups:
        assert all((id(w) in spared) == (group["weight_decay"] == 0) for w in group["params"])
        assert build is not lars or group["adapt"] == (group["weight_decay"] > 0)
    assert sum(len(g["params"]) for g in groups) == len(list(encoder.parameters()))


def test_decay_of_vectors_can_be_asked_for():
    ours, plain = two_layers(), two_layers()
    optimisers = [
        sgd(ours, 0.1, weight_decay=0.1, decay_vectors=True),
        torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
    ]
    for step in range(3):
        for module, optimiser in zip([ours, plain], optimisers, strict=True):
            fill_gradients(module, step)
            optimiser.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("build", [sgd, adam, adamw, lars])
def test_a_restored_optimiser_goes_on_bit_for_bit(build):
    through, resumed = two_layers(), two_layers()
    optimiser = build(through, 0.1)
    for step in range(4):
        fill_gradients(through, step)
        optimiser.step()
        if step == 1:
            weights = copy.deepcopy(through.state_dict())
            saved = copy.deepcopy(optimiser.state_dict())
    resumed.load_state_dict(weights)
    optimiser = build(resumed, 0.1)
    optimiser.load_state_dict(saved)
    for step in (2, 3):
        fill_gradients(resumed, step)
        optimiser.step()
    for a, b in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_warmup_cosine_passes_through_the_papers_points():
    rate = [warmup_cosine(epoch, 100, warmup=10) for epoch in (0, 5, 10, 55, 100)]
    assert rate == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert warmup_cosine(100, 100, floor=0.001) == pytest.approx(0.001)
    assert warmup_cosine(10, 10, warmup=10) == 1.0


def test_steps_drop_at_the_milestones():
    shares = (160 / 200, 190 / 200)
    rate = [steps(e, 200, milestones=shares, factor=0.1) for e in (0, 159.9, 160, 190, 200)]
    assert rate == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert steps(2, 200, warmup=8, milestones=shares) == 0.25
    with pytest.raises(ValueError, match="160 / 200"):
        steps(0, 200, milestones=(160, 190))
    assert constant(7, 10) == 1.0 and constant(1, 10, warmup=4) == 0.25
    assert [linear(step, 10, warmup=2) for step in (1, 2, 6, 10)] == [0.5, 1, 0.5, 0]
    assert linear(3, 3, warmup=3) == 1.0


def test_schedules_refuse_impossible_progress():
    for call in (
        lambda: warmup_cosine(11, 10),
        lambda: warmup_cosine(1, 10, warmup=11),
        lambda: constant(-1, 10),
    ):
        with pytest.raises(ValueError, match="step="):
            call()


def test_scalings_are_simclrs():
    assert linear_scaling(0.3, 4096) == pytest.approx(4.8)
    assert sqrt_scaling(0.075, 4096) == pytest.approx(4.8)
    assert no_scaling(0.3, 4096) == 0.3


def test_optimisers_refuse_impossible_rates_and_frozen_modules():
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        sgd(frozen, 0.1)
    for lr in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="lars: lr="):
            lars(torch.nn.Linear(2, 2), lr)


def test_rmsprop_is_its_formula_and_torchs_own_where_eps_is_nothing():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(6)]
    start = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    rates = [0.1, 0.1, 0.05, 0.05, 0.2, 0.2]

    def run(optimizer, w):
        for g, rate in zip(gradients, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            w.grad = g.clone()
            optimizer.step()
        return w.detach()

    w = start.clone().requires_grad_()
    found = run(optim.RmsProp([{"params": [w], "weight_decay": 1e-2}], 0.1), w)
    expected, square, velocity = (
        start.clone(),
        torch.zeros(5, 3).double(),
        torch.zeros(5, 3).double(),
    )
    for g, rate in zip(gradients, rates, strict=True):
        g = g + 1e-2 * expected
        square = 0.9 * square + 0.1 * g**2
        velocity = 0.9 * velocity + rate * g / (square + 1.0).sqrt()
        expected = expected - velocity
    assert torch.allclose(found, expected, atol=1e-12)
    a, b = (start.clone().requires_grad_() for _ in range(2))
    rates = [0.1] * 6
    own = run(optim.RmsProp([{"params": [a]}], 0.1, eps=1e-16), a)
    torchs = run(torch.optim.RMSprop([b], 0.1, alpha=0.9, momentum=0.9, eps=1e-16), b)
    assert torch.allclose(own, torchs, atol=1e-9)


def test_exponential_falls_every_half_epoch():
    values = [optim.exponential(e, 10, factor=0.5) for e in (0, 0.49, 0.5, 1, 1.7)]
    assert values == [1, 1, 0.5, 0.25, 0.125]
    assert optim.exponential(0.5, 10, warmup=1) == 0.5


@pytest.mark.parametrize("make", [sgd, adam, adamw])
def test_on_cuda_one_kernel_updates_all_weights(make):
    """Seen without a GPU: weights that are said to be on CUDA and have no values."""

    def fused(device):
        return make(torch.nn.Linear(3, 2, device=device), lr=0.1).defaults["fused"]

    with FakeTensorMode():
        assert fused("cuda")
    assert not fused("cpu")
