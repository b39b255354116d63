"""Backbones, heads, and the encoder that joins them."""

import copy
import importlib
from functools import partial

import pytest
import torch

from contrapose.encoders import (
    BACKBONES,
    HEADS,
    Encoder,
    classifier,
    fastest_layout,
    keras_defaults,
    linear,
    mlp,
    none,
    notebook_conv,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet200,
    small_conv,
    timm,
    unit,
)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def small(head=none, channels=1):
    torch.manual_seed(0)
    backbone = small_conv(channels=channels, width=32)
    return Encoder(backbone, head(backbone.width), mean=[0.5] * channels, std=[0.25] * channels)


@pytest.mark.parametrize("multiple, millions", [(1, 24), (2, 94), (4, 375)])
def test_resnet50_has_the_sizes_of_simclr(multiple, millions):
    with torch.device("meta"):
        backbone = resnet50(width_multiple=multiple)
    assert round(parameters(backbone) / 1e6) == millions
    assert backbone.width == 2048 * multiple


@pytest.mark.parametrize("build", [resnet18, resnet34, resnet101, resnet152, resnet200])
def test_depth_is_the_one_in_the_name(build):
    with torch.device("meta"):
        backbone = build()
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    shortcuts = [name for name, _ in backbone.named_modules() if name.endswith("downsample.0")]
    depth = len(convolutions) - len(shortcuts) + 1  # the classifier counts as a layer
    assert build.__name__ == f"resnet{depth}"


def test_unwidened_resnet_is_torchvisions():
    from torchvision import models

    torch.manual_seed(0)
    theirs = models.resnet18().eval()
    ours = resnet18().eval()
    missing, left = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == [] and left == ["fc.weight", "fc.bias"]
    theirs.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cifar_stem_keeps_full_resolution():
    shapes = {}
    for stem in ("imagenet", "cifar"):
        backbone = resnet18(stem=stem)
        backbone.layer1.register_forward_hook(
            lambda _, x, y, stem=stem: shapes.update({stem: tuple(y.shape[2:])})
        )
        assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert shapes == {"imagenet": (8, 8), "cifar": (32, 32)}


def test_widened_and_grey_resnet_runs():
    backbone = resnet18(stem="cifar", width_multiple=2, channels=1, zero_init=True)
    assert backbone(torch.rand(2, 1, 8, 8)).shape == (2, 1024)


@pytest.mark.parametrize("size", [4, 5, 8, 28, 33])
def test_small_conv_takes_any_size_from_4_px(size):
    assert small_conv(width=64)(torch.rand(2, 1, size, size + 1)).shape == (2, 64)


def test_small_conv_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="at least 4 px"):
        small_conv()(torch.rand(2, 1, 3, 3))
    with pytest.raises(ValueError, match="width=20"):
        small_conv(width=20)


@pytest.mark.parametrize(
    "head, layers",
    [
        (none(6), []),
        (linear(6, dim=3), ["Linear 6 3", "BatchNorm1d 3"]),
        (linear(6, dim=3, batch_norm=False), ["Linear 6 3 bias"]),
        (
            mlp(6, dim=3),
            ["Linear 6 6", "BatchNorm1d 6 bias", "ReLU", "Linear 6 3", "BatchNorm1d 3"],
        ),
        (
            mlp(6, dim=3, hidden=5, batch_norm="hidden"),
            ["Linear 6 5", "BatchNorm1d 5 bias", "ReLU", "Linear 5 3 bias"],
        ),
        (mlp(6, dim=3, batch_norm=False), ["Linear 6 6 bias", "ReLU", "Linear 6 3 bias"]),
    ],
)
def test_heads_are_built_as_the_papers_say(head, layers):
    def describe(m):
        sizes = [
            str(getattr(m, k))
            for k in ("in_features", "out_features", "num_features")
            if hasattr(m, k)
        ]
        return " ".join(
            [type(m).__name__, *sizes, *(["bias"] if getattr(m, "bias", None) is not None else [])]
        )

    assert [describe(m) for m in head.children()] == layers


def test_three_layers_are_three_dense_layers():
    head = mlp(8, dim=4, layers=3)
    assert sum(isinstance(m, torch.nn.Linear) for m in head) == 3
    assert head(torch.rand(5, 8)).shape == (5, 4)


def test_embedding_is_unit_float32_even_under_bf16():
    encoder = small(mlp)
    with torch.autocast("cpu", torch.bfloat16):
        h, z = encoder(torch.rand(6, 1, 8, 8))
    assert h.dtype == torch.bfloat16 and z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(6))
    assert h.shape == (6, 32) and z.shape == (6, 128)


@pytest.mark.parametrize(
    "head",
    [
        partial(none, unit_length=False),
        partial(linear, dim=5, unit_length=False),
        partial(mlp, dim=5, unit_length=False),
        partial(classifier, classes=5),
    ],
    ids=["none", "linear", "mlp", "classifier"],
)
def test_a_head_that_says_so_keeps_the_length_of_z_also_from_a_file(tmp_path, head):
    torch.manual_seed(0)
    encoder = Encoder.build(partial(small_conv, width=16), head, [0.5], [0.25]).eval()
    x = torch.rand(3, 1, 8, 8)
    h, z = encoder(x)
    assert torch.equal(z, encoder.head(h)) and (z.norm(dim=1) - 1).abs().max() > 0.01
    (tmp_path / "encoder.safetensors").write_bytes(encoder.to_bytes())
    assert torch.equal(Encoder.load(tmp_path)(x)[1], z)


def test_zero_row_stays_zero_and_its_gradient_is_bounded():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    z = unit(x)
    (z * torch.tensor([[1.0, 0.0], [1.0, 1.0]])).sum().backward()
    assert z[1].tolist() == [0.0, 0.0] and z[0].tolist() == [0.6000000238418579, 0.800000011920929]
    torch.testing.assert_close(x.grad, torch.tensor([[16 / 125, -12 / 125], [1.0, 1.0]]))


def test_whitening_is_inside_the_encoder():
    encoder = small().eval()
    plain = Encoder(encoder.backbone, encoder.head, mean=[0.0], std=[1.0]).eval()
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(encoder.represent(x), plain.represent((x - 0.5) / 0.25))
    assert {"mean", "std"} <= set(encoder.state_dict())


@pytest.mark.parametrize(
    "x",
    [torch.rand(2, 3, 8, 8), torch.rand(1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)],
    ids=["channels", "rank", "dtype"],
)
def test_encoder_repeats_a_request_it_refuses(x):
    # jaxtyping refuses wrong ranks and types first where it is switched on
    with pytest.raises(Exception, match=r"\[B 1 H W\]|(?i:type-check)"):
        small()(x)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: resnet18(stem="cifar10"), "stem='cifar10'|(?i:type-check)"),
        (lambda: resnet18(width_multiple=0), "width_multiple=0"),
        (lambda: mlp(8, layers=0), "layers=0"),
        (lambda: Encoder(none(1), none(1), mean=[0.0], std=[0.0]), "std must be positive"),
    ],
)
def test_wrong_values_are_named(call, words):
    with pytest.raises(Exception, match=words):
        call()


def test_timm_says_what_is_missing(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"contrapose\[timm\]"):
        timm(name="resnet10t")


@pytest.mark.filterwarnings("default")  # of other people's libraries
def test_timm_networks_report_their_width():
    pytest.importorskip("timm", reason="the timm extra is not installed")
    with pytest.raises(ValueError, match=r"nearest: .*resnet18"):
        timm(name="resnet_18")
    for name, options in [
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"img_size": 32}),
    ]:
        backbone = timm(name=name, channels=1, **options).eval()
        assert backbone(torch.rand(2, 1, 32, 32)).shape == (2, backbone.width)


def test_notebook_conv_has_the_notebooks_sizes():
    """Kernels 9 (1 + b) 32, 9 32 64, 9 64 64; a dense layer from 2 x 2 x 64; 2 a channel for BN."""
    backbone = notebook_conv(channels=6)
    kernels = 9 * (6 * 32 + 32 * 64 + 64 * 64) + 2 * 2 * 64 * 128
    assert parameters(backbone) == kernels + 2 * (32 + 64 + 64 + 128)
    assert backbone(torch.rand(2, 6, 28, 28)).shape == (2, backbone.width)
    with pytest.raises(ValueError, match="28 px"):
        backbone(torch.rand(2, 6, 32, 32))


def test_keras_defaults_are_kerass():
    torch.manual_seed(0)
    module = keras_defaults(
        torch.nn.Sequential(torch.nn.Conv2d(50, 70, 3), torch.nn.BatchNorm2d(70))
    )
    bound = (6 / (9 * 50 + 9 * 70)) ** 0.5
    kernel = module[0].weight.detach()
    assert bound * 0.99 < kernel.max() <= bound and -bound <= kernel.min() < -0.99 * bound
    assert abs(float(kernel.std()) / (bound / 3**0.5) - 1) < 0.02  # 31,500 uniform numbers
    assert not module[0].bias.any()
    assert (module[1].momentum, module[1].eps) == (0.01, 1e-3)


def test_every_public_function_is_listed_once():
    names = [f.__name__ for f in BACKBONES + HEADS]
    assert len(set(names)) == len(names) and all(f.__doc__ for f in BACKBONES + HEADS)


@pytest.mark.parametrize(
    "backbone",
    [
        partial(resnet18, stem="cifar", channels=1),
        partial(resnet50, stem="imagenet", width_multiple=2, channels=3),
        partial(small_conv, channels=3, width=32),
        partial(timm, name="resnet10t", channels=3),
    ],
    ids=["resnet18", "resnet50 2x", "small_conv", "timm"],
)
def test_an_encoder_is_read_back_from_its_file(tmp_path, backbone):
    if backbone.func is timm:
        pytest.importorskip("timm", reason="the timm extra is not installed")
    c = backbone.keywords["channels"]
    saved = Encoder.build(backbone, partial(mlp, dim=8), [0.4] * c, [0.2] * c).eval()
    (tmp_path / "encoder.safetensors").write_bytes(saved.to_bytes())
    read = Encoder.load(tmp_path)
    x = torch.rand(2, c, 32, 32)
    torch.testing.assert_close(read(x), saved(x))
    assert not read.training


def test_files_name_no_options_that_read_other_files():
    with pytest.raises(ValueError, match="cannot all be set"):
        timm(name="resnet10t", checkpoint_path="/etc/passwd")


@pytest.mark.parametrize("size", [20, 32, 64])
def test_a_resnet_is_the_same_however_its_kernels_are_stored(size):
    """Against float64: z and the gradients of all weights, at 3 to 8 px of its last stage.

    A ReLU whose input is within rounding of 0 makes gradients differ by 1e-3, stored in any way.
    """
    torch.manual_seed(0)
    exact = Encoder.build(
        partial(resnet18, stem="cifar"), partial(mlp, dim=8), [0.5] * 3, [0.2] * 3
    )
    fast = fastest_layout(copy.deepcopy(exact), size).train()
    exact.double().train()
    x = torch.rand(4, 3, size, size)
    found, planes = {}, []
    fast.backbone.layer4[0].conv1.register_forward_hook(
        lambda _, x, y: planes.append(x[0].is_contiguous() and y.is_contiguous())
    )
    for name, encoder in (("exact", exact), ("fast", fast)):
        z = encoder(x.to(encoder.mean))[1]
        (z * torch.arange(8.0).to(z)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in encoder.parameters()])
        found[name] = z.detach(), gradient
    small = -(-size // 8) <= 5
    assert planes == [small and torch.backends.cpu.get_cpu_capability() == "AVX512"]
    for a, b, off in zip(found["fast"], found["exact"], (1e-4, 2e-2), strict=True):
        assert (a - b).norm() < off * b.norm()


def test_kernels_are_channels_last_where_that_is_faster():
    def stored(**how):
        encoder = Encoder.build(partial(resnet18, stem=how.pop("stem", "cifar")), mlp, [0.5], [0.2])
        last = fastest_layout(encoder, **how).backbone.layer4[1].conv2.weight
        return last.is_contiguous(memory_format=torch.channels_last)

    assert stored(size=64) and stored(size=224, stem="imagenet") and stored(size=32, bf16=True)
