"""Batch norm in training on a CPU is the formula in float64, rounded once or twice."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn

from contrapose.compiler import Library
from contrapose.encoders import Encoder, mlp, resnet18, small_conv
from contrapose.threads import team
from contrapose.training import channel_sums
from contrapose.training.global_batchnorm import EXACT, exactly

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SHAPES = [
    (2, 1), (37, 5), (200, 16), (3, 1001), (9, 7, 5), (1, 6, 1, 2), (5, 3, 7, 5), (31, 2, 9, 8),
    (4, 64, 3, 3), (3, 65, 5, 4), (40, 16, 28, 28), (64, 33, 12, 12), (2, 3, 4, 3, 5),
]  # fmt: skip


@pytest.fixture
def library():
    if channel_sums._library() is None:
        pytest.skip("torch normalises here: no C compiler")


def side_by_side(x):
    """x stored with its channels side by side."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def drawn(shape, seed=0):
    return side_by_side(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def layer_of(shape, dtype=torch.float32, **how):
    torch.manual_seed(1)
    layer = LAYERS[len(shape)](shape[1], **how).to(dtype)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    layer.__class__ = EXACT[type(layer)]
    return layer


def formula(x, weight, bias, eps):
    """(y, mean, unbiased variance) in float64, whose gradient autograd makes."""
    dims = [d for d in range(x.ndim) if d != 1]
    n = x.numel() // x.shape[1]
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    y = (x - mean) / (var + eps).sqrt()
    if weight is not None:
        one = (1, -1, *[1] * (x.ndim - 2))
        y = y * weight.view(one) + bias.view(one)
    return y, mean.flatten(), var.flatten() * n / (n - 1)


def of_both(layer, x, g):
    """(y, dx, gradients of weights, running statistics) of the layer, the same by the formula, and
    the size of the terms that each is the sum of, or the mean."""
    own = x.clone().requires_grad_()  # preserves strides
    assert channel_sums.takes(own)
    y = layer(own)
    y.backward(g)
    wide = x.double().requires_grad_()
    weights = [None if p is None else p.detach().double() for p in (layer.weight, layer.bias)]
    weights = [None if p is None else p.requires_grad_() for p in weights]
    expected, mean, var = formula(wide, *weights, layer.eps)
    expected.backward(g.double())
    found, wanted = [y.detach(), own.grad], [expected.detach(), wide.grad]
    if layer.affine:
        found += [p.grad for p in layer.parameters()]
        wanted += [p.grad for p in weights]
    if layer.track_running_stats:
        share = 1 if layer.momentum is None else layer.momentum
        found += [layer.running_mean, layer.running_var]
        wanted += [share * mean.detach(), 1 - share + share * var.detach()]
    size = [x.abs().max() + g.abs().max() for x in wanted]
    steep = (
        var.clamp(min=layer.eps).rsqrt() * (1 if weights[0] is None else weights[0].abs())
    ).max()
    size[1] *= 1 + steep.detach()  # dx is (g - mean g - ...) w / sqrt(v)
    return found, wanted, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_float64(library, shape, affine, dtype):
    layer = layer_of(shape, dtype, affine=affine)
    x, g = (drawn(shape, seed).to(dtype) for seed in (2, 3))
    few = 2 if dtype == torch.float32 else 8  # units in the last place; torch: up to 45 and 34
    for found, wanted, size in zip(*of_both(layer, x, g), strict=True):
        assert found.dtype == dtype
        assert (found - wanted).abs().max() <= few * torch.finfo(dtype).eps * size
    y = layer(x)
    assert y.stride() == x.stride() and layer.num_batches_tracked == 2


@pytest.mark.parametrize(
    "how", [{"momentum": None}, {"momentum": 1.0}, {"track_running_stats": False}]
)
def test_running_statistics_are_as_asked(library, how):
    shape = (6, 5, 3, 3)
    layer, torchs = layer_of(shape, torch.float64, **how), nn.BatchNorm2d(5, **how).double()
    torchs.load_state_dict(layer.state_dict())
    for seed in range(3):
        x = drawn(shape, seed).double()
        torch.testing.assert_close(layer(x), torchs(x))
    torch.testing.assert_close(layer.eval()(x), torchs.eval()(x))  # without any: of these images
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


def test_a_large_mean_and_a_small_spread_lose_nothing(library):
    shape = (64, 8, 16, 16)
    x, g = 1e4 + drawn(shape, 2) / 100, drawn(shape, 3)  # some dozen values of float32
    for found, wanted, size in zip(*of_both(layer_of(shape), x, g), strict=True):
        assert (found - wanted).abs().max() <= 2 * torch.finfo(x.dtype).eps * size


def test_images_of_one_value_with_a_few_others_are_summed_exactly(library):
    """torch's own mean of them is off by 7e-4: every addition rounds to the same side."""
    shape = (200, 2, 28, 28)
    x = torch.where(drawn(shape, 2) > 2, drawn(shape, 4), torch.tensor(-0.4241))
    mean, squares = channel_sums.moments(x)
    wide = x.double()
    torch.testing.assert_close(mean, wide.mean((0, 2, 3)), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        squares, (wide - mean.view(1, 2, 1, 1)).square().sum((0, 2, 3)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_spoils_its_channel_and_no_other(library, bad):
    for place in (0, 17):
        x = drawn((40, 3))
        x[place, 1] = bad
        y = layer_of((40, 3))(x)
        assert y[:, 1].isnan().all() and y[:, [0, 2]].isfinite().all()


def test_any_number_of_threads_has_the_same_bits(monkeypatch, library):
    shape = (50, 24, 17, 19)  # several blocks, none of them whole
    results = []
    before = torch.get_num_threads()
    for threads, of in ((1, team), (2, team), (3, team), (3, lambda: None)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(channel_sums, "team", of)
        x, layer = drawn(shape, 2).requires_grad_(), layer_of(shape)
        y = layer(x)
        y.backward(drawn(shape, 3))
        results.append([y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_var])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_of_any_layout_and_of_weights_alone(library):
    shape = (6, 5, 4, 3)
    x, layer = drawn(shape).double().requires_grad_(), layer_of(shape, torch.float64)
    layer(x).mean(dim=(2, 3)).square().sum().backward()  # a gradient that is expanded
    wide = x.detach().requires_grad_()
    y, *_ = formula(wide, layer.weight, layer.bias, layer.eps)
    y.mean(dim=(2, 3)).square().sum().backward()
    torch.testing.assert_close(x.grad, wide.grad)
    layer.zero_grad()
    layer(x.detach()).sum().backward()
    assert layer.bias.grad.allclose(torch.tensor(72.0).double())
    assert torch.autograd.gradcheck(layer, (x,))


def test_what_is_not_taken_is_torchs_bit_for_bit(monkeypatch, library):
    shape = (6, 5, 4, 3)
    x = drawn(shape)
    torchs = nn.BatchNorm2d(5)

    def same(x, mode=True):
        layer = layer_of(shape).train(mode)
        torchs.load_state_dict(layer.state_dict())
        torchs.train(mode)
        return torch.equal(layer(x), torchs(x)) and torch.equal(
            layer.running_var, torchs.running_var
        )

    assert same(x.contiguous()) and same(x.bfloat16()) and same(x, mode=False)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        layer_of((1, 5))(x[:1, :, 0, 0])
    with pytest.raises(ValueError, match="expected 4D input"):
        layer_of(shape)(x[0])
    monkeypatch.setattr(
        channel_sums, "LIBRARY", Library(channel_sums.LIBRARY.source, "torch", "slow")
    )
    monkeypatch.setenv("CONTRAPOSE_CC", "none")
    channel_sums._library.cache_clear()
    try:
        assert not channel_sums.takes(x) and same(x)
    finally:
        channel_sums._library.cache_clear()


def test_an_encoder_that_sums_exactly_is_the_same_in_every_other_way(library):
    class Own(nn.BatchNorm2d):
        pass

    torch.manual_seed(0)
    encoder = Encoder(small_conv(channels=1, width=8), mlp(8, dim=3), (0,), (1,))
    encoder.backbone.layers[1].__class__ = Own
    plain = copy.deepcopy(encoder)
    assert exactly(encoder) is encoder
    kinds = [type(m) for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds[0] is Own and {*kinds[1:]} == {EXACT[nn.BatchNorm2d], EXACT[nn.BatchNorm1d]}
    assert [*encoder.state_dict()] == [*plain.state_dict()]
    assert encoder.to_bytes() == plain.to_bytes()
    twin = copy.deepcopy(exactly(encoder))
    x = drawn((20, 1, 8, 8))
    results = [of.train()(x)[1] for of in (encoder, twin, plain)]
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    for a, b in zip(encoder.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_layers_are_pickled_and_a_resnet_is_exact_throughout(library):
    layer = layer_of((4, 3))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(drawn((4, 3))), layer(drawn((4, 3))))
    encoder = Encoder(partial(resnet18, channels=1, stem="cifar")(), mlp(512, dim=3), (0,), (1,))
    norms = [m for m in exactly(encoder).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(type(m) in EXACT.values() for m in norms)
