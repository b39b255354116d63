"""The gradient of the first convolution's weights is the sum in float64, rounded once."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from contrapose.encoders import Encoder, mlp, resnet18, small_conv
from contrapose.threads import team
from contrapose.training import weight_gradient
from contrapose.training.global_batchnorm import exactly
from contrapose.training.weight_gradient import FirstConvolution, sum_first_exactly

EPS = torch.finfo(torch.float32).eps
CASES = [  # (images, channels, height, width, output channels, kernel, stride, padding, dilation)
    (5, 3, 16, 16, 64, (3, 3), (1, 1), (1, 1), (1, 1)),
    (3, 3, 40, 33, 64, (7, 7), (2, 2), (3, 3), (1, 1)),
    (70, 1, 28, 28, 2, (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 2, 9, 13, 11, (3, 2), (2, 3), (0, 1), (2, 1)),
    (4, 4, 16, 16, 33, (4, 4), (4, 4), (0, 0), (1, 1)),
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    (2, 1, 2, 3, 5, (5, 7), (2, 1), (4, 6), (1, 1)),  # mostly padding, some rows nothing else
    (0, 3, 8, 8, 9, (3, 3), (1, 1), (1, 1), (1, 1)),
]


@pytest.fixture
def library():
    if weight_gradient._library() is None:
        pytest.skip("torch computes it here: no C compiler")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x, g, weight, *how):
    wide = weight.detach().double().requires_grad_()
    conv2d(x.double(), wide, None, *how).backward(g.double())
    return wide.grad


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_sum_of_float64_rounded_once(library, case, layout):
    images, channels, height, width, out, kernel, *how = case
    x = drawn(images, channels, height, width).to(memory_format=layout)
    convolution = nn.Conv2d(channels, out, kernel, *how, bias=False).to(memory_format=layout)
    wanted = convolution(x).detach()
    sum_first_exactly(convolution)
    assert type(convolution) is FirstConvolution
    y = convolution(x)
    assert torch.equal(y, wanted)
    g = drawn(*y.shape, seed=1)
    y.backward(g)
    found, right = convolution.weight.grad, exact(x, g, convolution.weight, *how)
    assert found.stride() == convolution.weight.stride()
    assert ((found - right).abs() <= EPS / 2 * right.abs() + 1e-12).all()


def test_images_of_one_value_lose_nothing_and_torchs_own_sum_loses_a_thousand_places(library):
    """g of a background that a batch norm and a ReLU follow: one value, of the sum's other sign."""
    x = torch.where(drawn(200, 1, 28, 28) > 2, drawn(200, 1, 28, 28, seed=1), torch.tensor(-0.4))
    g = torch.where(x == x[0, 0, 0, 0], torch.tensor(-1e-3), 1e-2 * drawn(200, 1, 28, 28, seed=2))
    plain = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    right = exact(x, g, plain.weight, 1, 1)
    plain(x).backward(g)
    by_torch = (plain.weight.grad - right).abs().max() / right.abs().max()
    plain.weight.grad = None
    sum_first_exactly(plain)
    plain(x).backward(g)
    ours = (plain.weight.grad - right).abs().max() / right.abs().max()
    assert ours <= EPS / 2 and by_torch > 50 * EPS


def test_any_number_of_threads_has_the_same_bits(monkeypatch, library):
    x, g = drawn(37, 3, 12, 12), drawn(37, 20, 12, 12, seed=1)
    before, found = torch.get_num_threads(), []
    for threads, of in ((1, team), (2, team), (3, team), (3, lambda: None)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(weight_gradient, "team", of)
        how = (3, 3), (1, 1), (1, 1), (1, 1)
        found.append(weight_gradient.weight_gradient(x, g, *how))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_it_does_not_take_is_torchs(library):
    """A gradient that the images need, weights that are frozen, float64, a bias, evaluation."""
    for change in (
        lambda layer, x: x.requires_grad_(), lambda layer, x: layer.requires_grad_(False),
        lambda layer, x: layer.double(), lambda layer, x: layer.eval(),
    ):  # fmt: skip
        layer, x = nn.Conv2d(2, 3, 3, bias=False), drawn(4, 2, 6, 6)
        sum_first_exactly(layer)
        change(layer, x)
        y = layer(x.to(layer.weight.dtype))
        assert y.grad_fn is None or "Convolved" not in y.grad_fn.name()
    for layer in (nn.Conv2d(2, 3, 3), nn.Conv2d(5, 3, 3, bias=False), nn.Conv2d(2, 2, 3, groups=2)):
        sum_first_exactly(layer)
        assert type(layer) is nn.Conv2d


def test_an_encoder_sums_the_gradient_of_its_first_convolution_alone(library):
    for channels, backbone in (
        (1, small_conv(channels=1, width=16)), (3, resnet18(channels=3, stem="cifar")),
    ):  # fmt: skip
        head = mlp(backbone.width, dim=3)
        encoder = exactly(Encoder(backbone, head, (0,) * channels, (1,) * channels))
        seen: list[bool] = []

        def look(layer, x, y, seen=seen):
            seen.append("Convolved" in y.grad_fn.name())

        for layer in encoder.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(look)
        encoder.train()(drawn(6, channels, 8, 8))
        assert len(seen) > 3 and seen[0] and not any(seen[1:])
