"""What holds for every loss. A new public function in contrapose.losses is tested by existing."""

import inspect
import itertools
import math
import subprocess
import sys

import pytest
import torch
from support.oracles import ORACLE
from torch.nn.functional import normalize

from contrapose import losses
from contrapose.similarity import dense, using
from contrapose.verification.inputs import data, keywords

EVERY = dict(inspect.getmembers(losses, inspect.isfunction))
PARAMETERS = {name: inspect.signature(f).parameters for name, f in EVERY.items()}
ON_GROUPS = [
    name for name in EVERY if {"group", "key", "labels"} & {*PARAMETERS[name]} == {"group"}
]
TEMPERED = [name for name in EVERY if {"temperature", "scale"} & set(PARAMETERS[name])]

# What a loss is exempt from by its definition.
OF_LOGITS = {"cross_entropy"}  # whose columns are classes
ANY_LENGTH = OF_LOGITS | {
    "n_pairs", "large_margin_softmax", "gcl_swd_normal", "gcl_swd_hypercube",
}  # fmt: skip
NEED_NO_POSITIVE = {
    "align_uniform",
    "align_uniform_joined",
    *(name for name in EVERY if "swd" in name),
}
DRAWS_AXES = {name for name in EVERY if "swd" in name}
DRAWS_NEGATIVES = {"triplet_distance_weighted"}
LONELY = [name for name in ON_GROUPS if name != "max_margin"]  # whose rows need a positive

NO_GRADIENT = {"nnclr": ("z", "support"), "relation_distillation": ("past",)}  # by definition

GROUPS = {
    "images": torch.arange(6).repeat(2),
    "classes": torch.tensor([0, 0, 1, 1, 1, 2]).repeat(2),
}
B = 6
z = normalize(torch.randn(2 * B, 5, generator=torch.Generator().manual_seed(0)).double(), dim=1)
group = GROUPS["images"]


def call(name, z, group=group, f=None, temperature=0.2):
    f = f or EVERY[name]
    return f(*data(PARAMETERS[name], z, group), **keywords(PARAMETERS[name], temperature))


def value_and_gradient(name, z, group=group, f=None, temperature=0.2):
    z = z.detach().clone().requires_grad_()
    loss = call(name, z, group, f, temperature)
    loss.backward()
    return loss.detach(), z.grad


def test_every_loss_has_an_oracle():
    assert set(ORACLE) == set(EVERY)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", EVERY)
def test_value_and_gradient_are_the_formula(name, groups):
    ours, ours_grad = value_and_gradient(name, z, GROUPS[groups])
    loss, grad = value_and_gradient(name, z, GROUPS[groups], ORACLE[name])
    torch.testing.assert_close((ours, ours_grad), (loss, grad), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_the_derivative(name):
    parameters, fixed = PARAMETERS[name], data(PARAMETERS[name], z, group)

    def f(x):
        given = data(parameters, normalize(x, dim=1), group)
        stops = NO_GRADIENT.get(name, ())
        rows = [b if p in stops else a for p, a, b in zip(parameters, given, fixed, strict=False)]
        return EVERY[name](*rows, **keywords(parameters))

    assert torch.autograd.gradcheck(f, z.clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", TEMPERED)
def test_a_learned_temperature_gets_its_gradient(name, groups):
    arguments = keywords(PARAMETERS[name])
    learned = [p for p in arguments if "Tensor" in str(PARAMETERS[name][p].annotation)]

    def f(*values):
        rows = data(PARAMETERS[name], z, GROUPS[groups])
        return EVERY[name](*rows, **arguments | dict(zip(learned, values, strict=True)))

    values = [torch.tensor(arguments[p]).double().requires_grad_() for p in learned]
    assert learned and torch.autograd.gradcheck(f, values)


@pytest.mark.parametrize("name", EVERY)
def test_tiles_change_nothing(name):
    with using(dense):
        expected = value_and_gradient(name, z)
    torch.testing.assert_close(value_and_gradient(name, z), expected)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in DRAWS_AXES | OF_LOGITS])
def test_rotating_the_sphere_changes_nothing(name):
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double())
    torch.testing.assert_close(call(name, z @ q), call(name, z))


@pytest.mark.parametrize("name", [name for name in ON_GROUPS if name not in DRAWS_NEGATIVES])
def test_the_order_of_the_rows_changes_nothing(name):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(call(name, z[order], group[order]), call(name, z))


@pytest.mark.parametrize("name", ON_GROUPS)
def test_the_names_of_the_groups_change_nothing(name):
    torch.testing.assert_close(call(name, z, 10**12 - 7 * group), call(name, z))


@pytest.mark.parametrize("temperature", [0.001, 0.005, 0.02, 0.5, 100.0])
@pytest.mark.parametrize("name", TEMPERED)
def test_any_temperature(name, temperature):
    ours, ours_grad = value_and_gradient(name, z.float(), temperature=temperature)
    loss, grad = value_and_gradient(name, z, f=ORACLE[name], temperature=temperature)
    assert ours.isfinite() and ours_grad.isfinite().all()
    if loss.isinf():  # where the formula as it is written leaves float64
        return
    torch.testing.assert_close(ours.double(), loss, rtol=1e-5, atol=1e-6)
    tolerance = 1e-3 if temperature < 0.01 else 1e-5  # one float32 unit of z.z / t is 1e-4 there
    assert (ours_grad - grad).abs().max() <= tolerance * grad.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in EVERY if name not in DRAWS_NEGATIVES])
def test_no_less_precise_than_plain_torch(name, dtype):
    x = normalize(torch.randn(96, 32, generator=torch.Generator().manual_seed(2)).double(), dim=1)
    group, low = torch.arange(48).repeat(2), x.to(dtype)
    loss, grad = value_and_gradient(name, low.double(), group, ORACLE[name])
    plain, plain_grad = value_and_gradient(name, low, group, ORACLE[name])
    ours, ours_grad = value_and_gradient(name, low, group)
    slack = 8 * torch.finfo(torch.float32).eps
    assert (ours - loss).abs() <= (plain - loss).abs() + slack * (1 + loss.abs())
    error, plain_error = ((g.double() - grad).norm() for g in (ours_grad, plain_grad))
    assert error <= plain_error + slack * grad.norm()


def near_pairs(distance, dim=32):
    """Two views of 64 images in float32, at most so far from each other."""
    generator = torch.Generator().manual_seed(1)
    image = normalize(torch.randn(64, dim, generator=generator), dim=1).repeat(2, 1)
    noise = normalize(torch.randn(128, dim, generator=generator), dim=1)
    return normalize(image + distance / 2 * noise, dim=1)


@pytest.mark.parametrize("distance", [1e-3, 0.03, 0.3])
@pytest.mark.parametrize("temperature", [0.02, 0.07])
@pytest.mark.parametrize("name", TEMPERED)
def test_no_less_precise_than_plain_torch_however_close_the_positives(name, temperature, distance):
    """A loss near 0 is not the difference of two numbers of size 1/t, and its gradient neither."""
    x, group = near_pairs(distance), torch.arange(64).repeat(2)
    loss, grad = value_and_gradient(name, x.double(), group, ORACLE[name], temperature)
    plain, plain_grad = value_and_gradient(name, x, group, ORACLE[name], temperature)
    ours, ours_grad = value_and_gradient(name, x, group, temperature=temperature)
    slack = 8 * torch.finfo(torch.float32).eps / temperature  # rounding of s_ij / t
    if not loss.isinf():
        least = (
            1e-14  # the last digit of float64 beside 1: the formula as it is written has no more
        )
        assert (ours - loss).abs() <= (plain - loss).abs() + slack * loss.abs() + least
        error, plain_error = ((g.double() - grad).norm() for g in (ours_grad, plain_grad))
        assert error <= plain_error + slack * grad.norm() + least
    assert ours >= 0 or loss < 0


FEW = {
    "three views": torch.arange(48).repeat(3),
    "classes of 1 to 9 rows": torch.arange(48).clamp(max=29).repeat_interleave(3) % 31,
}


@pytest.mark.parametrize("distance", [1e-3, 0.03, 0.3])
@pytest.mark.parametrize("temperature", [0.03, 0.07])
@pytest.mark.parametrize("group", FEW.values(), ids=FEW)
@pytest.mark.parametrize("name", ["supcon", "supcon_in", "gcl_coupled"])
@pytest.mark.filterwarnings("ignore:.*without a positive")
def test_no_less_precise_with_a_few_close_positives(name, group, temperature, distance):
    generator = torch.Generator().manual_seed(1)
    image = normalize(torch.randn(int(group.max()) + 1, 32, generator=generator), dim=1)[group]
    noise = normalize(torch.randn(len(group), 32, generator=generator), dim=1)
    x = normalize(image + distance / 2 * noise, dim=1)
    loss, grad = value_and_gradient(name, x.double(), group, ORACLE[name], temperature)
    plain, plain_grad = value_and_gradient(name, x, group, ORACLE[name], temperature)
    ours, ours_grad = value_and_gradient(name, x, group, temperature=temperature)
    slack = 8 * torch.finfo(torch.float32).eps / temperature
    assert (ours - loss).abs() <= (plain - loss).abs() + slack * loss.abs()
    error, plain_error = ((g.double() - grad).norm() for g in (ours_grad, plain_grad))
    assert error <= 1.5 * plain_error + slack * grad.norm()


HARD_CASES = {
    "equal": torch.ones(12, 5),
    "opposite": torch.ones(12, 5) * torch.tensor([1.0, -1.0]).repeat(6)[:, None],
    "opposite views": torch.ones(12, 5) * torch.tensor([1.0, -1.0]).repeat_interleave(6)[:, None],
    "some zero": z.float() * (torch.arange(12) > 2)[:, None],
    "all zero": torch.zeros(12, 5),
}


@pytest.mark.filterwarnings("ignore:.*are not of unit length")
@pytest.mark.parametrize("temperature", [0.001, 0.2, 100.0])
@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient_are_finite_on_hard_cases(name, case, temperature):
    x = HARD_CASES[case].clone().requires_grad_()
    rows = torch.nn.functional.normalize(x, dim=1)
    loss = call(name, rows, temperature=temperature)
    (grad,) = torch.autograd.grad(loss, rows)
    assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("name", LONELY)
def test_rows_without_a_positive_are_counted_and_left_out(name):
    group = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7, 8])
    with pytest.warns(UserWarning, match=f"{name}: 6 of 12 rows are without a positive"):
        ours, ours_grad = value_and_gradient(name, z, group)
    loss, grad = value_and_gradient(name, z, group, ORACLE[name])
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(ours_grad, grad)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", LONELY)
def test_no_positive_anywhere_gives_a_zero_that_has_a_graph(name, rows):
    with pytest.warns(UserWarning, match=f"{name}: {rows} of {rows} rows are without a positive"):
        k = {"k": 1} if "k" in PARAMETERS[name] else {}
        x = z[:rows].clone().requires_grad_()
        arguments = keywords(PARAMETERS[name]) | k
        loss = EVERY[name](x, torch.arange(rows), **arguments)
    loss.backward()
    assert x.grad.isfinite().all()
    if name not in NEED_NO_POSITIVE:
        assert loss == 0 and (x.grad == 0).all()


@pytest.mark.filterwarnings("ignore:.*are without a positive")
@pytest.mark.parametrize("name", [*ON_GROUPS, "supcon_memory"])
def test_a_negative_group_is_no_label_and_its_row_is_alone(name):
    """The row attracts nothing and is repelled by all, wherever else its number stands."""
    unlabelled = torch.tensor([-1, 1, 1, -1, 0, -7, 0, 1, -1, 2, -7, 2])
    own = torch.where(unlabelled < 0, 100 + torch.arange(12), unlabelled)
    arguments = keywords(PARAMETERS[name]) | ({"k": 2} if "k" in PARAMETERS[name] else {})
    found = []
    for group in (unlabelled, own):
        x = z.clone().requires_grad_()
        given = data(PARAMETERS[name], x, group)
        if "key_group" in PARAMETERS[name]:
            given = *given[:3], torch.tensor([-1, 1, 1, -7, 0, 5])
        loss = EVERY[name](*given, **arguments)
        loss.backward()
        found.append((loss.detach(), x.grad))
        arguments |= keywords(PARAMETERS[name]) if "generator" in arguments else {}
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:.*are without a positive")
@pytest.mark.parametrize("name", [*ON_GROUPS, "supcon_memory"])
def test_groups_may_be_of_any_integer_type(name):
    def of(dtype):
        given = data(PARAMETERS[name], z, group % 2)
        given = [x if x.is_floating_point() else x.to(dtype) for x in given]
        return unchecked(EVERY[name])(*given, **keywords(PARAMETERS[name]))

    for dtype in (torch.bool, torch.int8, torch.uint8, torch.int32, torch.uint16, torch.uint64):
        torch.testing.assert_close(of(dtype), of(torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("name", [*ON_GROUPS, "supcon_memory", "time_contrastive"])
def test_groups_that_are_no_whole_numbers_are_refused(name, dtype):
    given = [z[:6], group[:6].to(dtype), z[6:], group[6:].to(dtype)]
    given = given if "key_group" in PARAMETERS[name] else [z, group.to(dtype)]
    with pytest.raises(ValueError, match=rf"{name}: groups are whole numbers, .*{dtype}"):
        unchecked(EVERY[name])(*given, **keywords(PARAMETERS[name]))


def test_labels_of_a_classifier_are_classes_or_none():
    loss, classes = losses.large_margin_softmax, z[:3]
    label = torch.tensor([0, -1, 2, -1, 1, 0])
    with pytest.warns(UserWarning, match="2 of 6 rows are without a label"):
        ours = loss(z[6:], classes, label, m=2)
    torch.testing.assert_close(ours, loss(z[6:][label >= 0], classes, label[label >= 0], m=2))
    with pytest.raises(ValueError, match="label 3 among 3 classes"):
        loss(z[6:], classes, label + 1, m=2)


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_batch_gives_a_zero_that_has_a_graph(name):
    x = torch.zeros(0, 5).requires_grad_()
    loss = call(name, x, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("name", ON_GROUPS)
def test_groups_of_another_length_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: 12 rows .*\(6,\); give one group per row"):
        unchecked(EVERY[name])(z, torch.arange(6), **keywords(PARAMETERS[name]))


@pytest.mark.parametrize("bad", [0.0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", TEMPERED)
def test_a_temperature_that_makes_no_sense_is_refused(name, bad):
    parameters = PARAMETERS[name]
    arguments = keywords(parameters) | {p: bad for p in ("temperature", "scale") if p in parameters}
    with pytest.raises(ValueError, match=rf"{name}: (temperature|scale)=.*finite value above 0"):
        EVERY[name](*data(parameters, z, group), **arguments)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ANY_LENGTH])
def test_rows_that_are_not_of_unit_length_are_counted(name):
    with pytest.warns(UserWarning, match=rf"{name}: \d+ of \d+ rows are not of unit length"):
        call(name, 3 * z)


@pytest.mark.filterwarnings("ignore:.*are not of unit length")  # of what is made from them
@pytest.mark.parametrize("name", EVERY)
def test_rows_that_are_not_finite_or_too_long_are_refused(name):
    meaningless = (math.nan, "NaN"), (math.inf, "NaN"), (1e30, "not of unit length")
    for (bad, words), row in itertools.product(meaningless, (1, 7)):  # row 7: of a second tower
        x = z.float().clone()
        x[row] = bad
        with pytest.raises(ValueError, match=rf"^{name}.*: [12] of \d+ rows .*{words}"):
            call(name, x)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_changes_nothing(name):
    with torch.autocast("cpu", torch.bfloat16):
        ours = call(name, z.float())
    torch.testing.assert_close(ours, call(name, z.float()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_agrees(name):
    x = z.cuda().requires_grad_()
    arguments = (a.cuda() for a in data(PARAMETERS[name], x, group.cuda()))
    loss = EVERY[name](*arguments, **keywords(PARAMETERS[name]))
    loss.backward()
    torch.testing.assert_close((loss.cpu().detach(), x.grad.cpu()), value_and_gradient(name, z))


def unchecked(f):
    """The function without the shape checks that tests add to it."""
    return inspect.unwrap(f)


MEASURE = """
import resource, torch
from torch.nn.functional import normalize
from contrapose import losses

def step(rows):
    z = normalize(torch.randn(rows, 128), dim=1).requires_grad_()
    z.grad = torch.zeros_like(z)
    group = torch.randint(0, 100, (rows // 2,)).repeat(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses.LOSS(z, group, temperature=0.1).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

step(64)
print(step(8192))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
@pytest.mark.parametrize("name", ["nt_xent", "supcon", "supcon_in", "dcl"])
def test_8192_rows_take_less_than_40_mb(name):  # the matrix alone would be 268 MB
    code = MEASURE.replace("LOSS", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40
