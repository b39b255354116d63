"""Classifiers on frozen features against scikit-learn's, scores against their formulas."""

import json
import math
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression as SklearnRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from contrapose.augment import digits
from contrapose.data import open_images
from contrapose.encoders import Encoder, mlp, small_conv
from contrapose.evaluation import embed, knn, linear_probe, sgd_probe
from contrapose.evaluation.embed import embed_views
from contrapose.evaluation.logistic import LogisticRegression
from contrapose.evaluation.probes import SIMCLR_PATH, _solved
from contrapose.evaluation.scores import accuracy, confusion, mean_per_class_accuracy, wilson
from contrapose.evaluation.sgd_probe import MOCO, PROTOCOLS, SIMCLR, SUPCON, WANG_LIU, Protocol

TOLD = {"metric": "m", "protocol": "p", "split": "test", "seed": 0, "features": "h"}


def blobs(n=600, d=12, classes=4, seed=0, spread=1.2):
    """Overlapping classes whose directions differ in scale by a hundred, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    centre = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    x = centre[label] + spread * torch.randn(n, d, generator=generator)
    return 3 + x * torch.logspace(0, -2, d), label


# ---- nearest neighbours --------------------------------------------------------------------------


def test_nearest_neighbour_is_sklearns():
    bank, label = blobs()
    query, _ = blobs(seed=1)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(bank, label).predict(query)
    assert knn(query, bank, label, k=1).argmax(dim=1).tolist() == theirs.tolist()


@pytest.mark.parametrize("temperature", [0.001, 0.1])
def test_votes_weigh_exp_of_similarity_over_temperature(temperature):
    bank, label = blobs(n=80)
    query, _ = blobs(n=30, seed=1)
    s = torch.nn.functional.cosine_similarity(query[:, None].double(), bank[None].double(), dim=2)
    top, index = s.topk(20, dim=1)
    vote = (top / temperature).softmax(dim=1)
    expected = torch.zeros(30, 4).double().scatter_add(1, label[index], vote)
    found = knn(query, bank, label, k=20, temperature=temperature)
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(30))


def test_leaving_one_out_is_removing_it():
    x, label = blobs(n=50)
    label[::7] = -1
    found = knn(x, x, label, k=5, leave_one_out=True)
    for i in range(50):
        rest = torch.arange(50) != i
        alone = knn(x[i : i + 1], x[rest], label[rest], k=5)
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_rows_without_a_label_do_not_vote():
    bank, label = blobs(n=60)
    label[:30] = -1
    found = knn(bank, bank, label, k=30)
    torch.testing.assert_close(found, knn(bank, bank[30:], label[30:], k=30))


def test_knn_says_so_where_fewer_can_vote():
    x, label = blobs(n=20)
    with pytest.warns(UserWarning, match="k=200, but only 20 rows can vote"):
        knn(x, x, label)
    with pytest.warns(UserWarning, match="only 19 rows can vote"):
        knn(x, x, label, leave_one_out=True)


def test_knn_refuses_what_cannot_vote():
    x, label = blobs(n=20)
    alone = torch.where(torch.arange(20) == 4, 1, -1)
    with pytest.raises(ValueError, match="bank of 20 rows, 1 with a label"):
        knn(x, x, alone, k=1, leave_one_out=True)
    with pytest.raises(ValueError, match="queries hold a number that is not finite"):
        knn(x * math.nan, x, label, k=1)


# ---- logistic regression -------------------------------------------------------------------------


def digit_pixels():
    x, label = load_digits(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(label)


def relu_of_digits(width):
    x, label = digit_pixels()
    generator = torch.Generator().manual_seed(0)
    w, b = torch.randn(64, width, generator=generator), torch.randn(width, generator=generator)
    return (x @ w / 128 + 0.3 * b).relu(), label


def cancer():
    x, label = load_breast_cancer(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(label)


CASES = {
    "digits": digit_pixels,
    "breast cancer": cancer,
    "ReLU 256": partial(relu_of_digits, 256),
    "ReLU 512": partial(relu_of_digits, 512),
    "more columns than rows": partial(blobs, n=200, d=90),
    "as they come": partial(blobs, n=600),
}


@pytest.mark.parametrize("l2", [1e5, 100.0, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("case", CASES)
def test_linear_probe_reaches_sklearns_minimum(case, l2):
    x, label = CASES[case]()
    label = torch.where(torch.arange(len(x)) % 5 == 0, label, -1)
    rows, known = x[label >= 0].double(), label[label >= 0]
    std = rows.std(dim=0, correction=0)
    std = torch.where(std > 1e-12, std, 1.0)
    standardise = case != "as they come"
    if standardise:
        rows = (rows - rows.mean(dim=0)) / std
    two = len(known.unique()) == 2  # scikit-learn then has one row of weights, of twice the length
    theirs = SklearnRegression(C=(1 + two) / l2, solver="newton-cg", tol=1e-10, max_iter=1000)
    theirs.fit(rows, known)
    least = [torch.from_numpy(x) for x in (theirs.coef_, theirs.intercept_)]
    least = [torch.cat([-x, x]) / 2 for x in least] if two else least
    ours = linear_probe(x, label, l2=l2, standardise=standardise)

    def objective(logits, weight):
        loss = torch.nn.functional.cross_entropy(logits, known, reduction="sum")
        return float(loss + l2 / 2 * weight.double().square().sum())

    found = x[label >= 0].double() @ ours.weight.double().T + ours.bias.double()
    found = objective(found, ours.weight * std if standardise else ours.weight)
    assert found <= objective(rows @ least[0].T + least[1], least[0]) * (1 + 1e-6)
    assert f"{len(x) - len(rows):,} rows without a label left out" in ours.protocol


def test_a_fit_that_has_not_converged_says_so():
    x, label = digit_pixels()
    fit = LogisticRegression(x, label, 10, newton_steps=2)
    with pytest.warns(
        UserWarning, match=r"l2=0.001 not solved to its end in 2 Newton steps; about"
    ):
        _solved(fit, 1e-3)
    assert not fit.converged and fit.gap > 1e-3


def test_float32_probe_is_as_good_as_float64():
    x, label = blobs()
    test, truth = blobs(seed=1)
    narrow, wide = linear_probe(x, label, l2=1.0), linear_probe(x.double(), label, l2=1.0)
    agree = (narrow.predict(test) == wide.predict(test.double())).float().mean()
    assert agree > 0.995 and float((narrow.predict(test) == truth).float().mean()) > 0.7


def test_standardised_probe_does_not_depend_on_units():
    x, label = blobs()
    test, _ = blobs(seed=1)
    units = torch.logspace(-3, 3, x.shape[1])
    plain, scaled = linear_probe(x, label, l2=1.0), linear_probe(x * units - 5, label, l2=1.0)
    torch.testing.assert_close(
        plain.scores(test).softmax(1), scaled.scores(test * units - 5).softmax(1), atol=5e-3, rtol=0
    )


def test_path_chooses_on_held_out_rows_and_tells():
    x, label = blobs(n=300, d=60, spread=3.0)  # few rows for the columns: l2 matters
    probe = linear_probe(x, label)
    values, shares = zip(*probe.path, strict=True)
    best = values[int(np.argmax(shares))]
    assert "l2 the best of 9 on 60 held-out rows" in probe.protocol
    assert probe.chosen.startswith(f"l2 = {best:g}; held-out accuracy by l2: 100000 ")
    assert list(values) == sorted(values, reverse=True)
    again = linear_probe(x, label, l2=best)
    torch.testing.assert_close(probe.scores(x), again.scores(x), atol=0.02, rtol=0.02)


def test_simclrs_path_has_its_45_values():
    assert len(SIMCLR_PATH) == 45
    np.testing.assert_allclose(sorted(SIMCLR_PATH), np.logspace(-6, 5, 45))


def test_class_never_seen_is_never_predicted():
    x, label = blobs(classes=3)
    label = torch.tensor([0, 2, 5])[label]
    for probe in (linear_probe(x, label, classes=7), sgd_probe(x, label, SUPCON, classes=7)):
        assert probe.scores(x).shape == (600, 7)
        assert set(probe.predict(x).tolist()) <= {0, 2, 5}


def test_separable_rows_and_constant_columns_do_no_harm():
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [9.0, 1.0], [10.0, 1.0]])
    label = torch.tensor([0, 0, 1, 1])
    probe = linear_probe(x, label)
    assert probe.weight.isfinite().all() and probe.predict(x).tolist() == label.tolist()


@pytest.mark.parametrize("fit", [linear_probe, lambda x, y: sgd_probe(x, y, SIMCLR)])
def test_what_cannot_be_classified_is_an_error(fit):
    x, label = blobs(n=20)
    with pytest.raises(ValueError, match="all 20 labelled rows are of class 3"):
        fit(x, torch.full((20,), 3))
    with pytest.raises(ValueError, match="all are -1"):
        fit(x, torch.full((20,), -1))
    with pytest.raises(Exception, match=r"20 rows of features, 19 labels|(?i:type-check)"):
        fit(x, label[1:])
    x[0] = math.inf
    with pytest.raises(ValueError, match="1 of 20 rows"):
        fit(x, label)


def test_held_out_rows_need_two_of_a_class():
    x, label = blobs(n=21)
    label[20] = 9
    with pytest.raises(ValueError, match=r"classes \[9\] have a single row"):
        linear_probe(x, label)
    assert linear_probe(x, label, l2=1.0).scores(x).shape == (21, 10)


# ---- the papers' SGD -----------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_probe_is_torchs_sgd(nesterov):
    x, label = blobs(n=64)
    protocol = Protocol(
        name="one batch", lr=0.05, batch_size=64, epochs=6, milestones=(3,), nesterov=nesterov
    )
    ours = sgd_probe(x, label, protocol)
    layer = torch.nn.Linear(12, 4)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov)
    for epoch in range(6):
        optimiser.param_groups[0]["lr"] = 0.05 if epoch < 3 else 0.005
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), label).backward()
        optimiser.step()
    torch.testing.assert_close(ours.weight, layer.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.bias, layer.bias.detach(), atol=1e-5, rtol=1e-4)


def test_protocols_have_the_papers_rates():
    assert [WANG_LIU.rate(e) for e in (0, 40, 60, 80)] == pytest.approx([30, 6, 1.2, 0.24])
    assert [SUPCON.rate(e) for e in (59, 60, 75, 90)] == pytest.approx([5, 1, 0.2, 0.04])
    assert [MOCO.rate(e) for e in (59, 60, 80)] == pytest.approx([30, 3, 0.3])
    assert [SIMCLR.rate(e) for e in (0, 45, 90)] == pytest.approx([1.6, 0.8, 0])


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_every_protocol_learns_and_names_itself(protocol):
    x, label = blobs(spread=0.3)
    x = torch.nn.functional.normalize(x - x.mean(dim=0), dim=1)
    probe = sgd_probe(x, label, protocol)
    assert float((probe.predict(x) == label).float().mean()) > 0.95
    assert f"SGD as {protocol.name}" in probe.protocol and "without augmentation" in probe.protocol


# ---- scores --------------------------------------------------------------------------------------


def test_wilson_is_the_set_of_shares_that_the_count_does_not_reject():
    for correct, n in [(0, 10), (3, 10), (10, 10), (9500, 10000)]:
        low, high = wilson(correct, n)
        for p in (low, high):
            if 1e-12 < p < 1 - 1e-12:  # |share - p| = z sqrt(p (1 - p) / n) at both ends
                z = abs(correct / n - p) / math.sqrt(p * (1 - p) / n)
                assert z == pytest.approx(1.959964, abs=1e-5)
        assert 0 <= low <= correct / n <= high <= 1 and low < high
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


def test_scores_carry_their_protocol_into_json():
    score = accuracy(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 1, -1]), **TOLD)
    assert (score.value, score.n) == (pytest.approx(2 / 3), 3)
    assert json.loads(json.dumps(asdict(score)))["confidence"] == 0.95
    assert accuracy(torch.eye(3)[[0, 1, 2]], torch.tensor([0, 1, 0]), top=2, **TOLD).value == 1.0
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 7]), **TOLD).value == pytest.approx(2 / 3)


def test_mean_per_class_and_confusion_are_sklearns():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(5, (200,), generator=generator)
    scores = torch.randn(200, 5, generator=generator)
    found = mean_per_class_accuracy(scores, label, **TOLD)
    assert found.value == pytest.approx(balanced_accuracy_score(label, scores.argmax(dim=1)))
    assert found.low < found.value < found.high
    table = confusion(scores.argmax(dim=1), label, 5)
    assert table.tolist() == confusion_matrix(label, scores.argmax(dim=1)).tolist()
    with pytest.raises(ValueError, match="classes=4"):
        confusion(scores.argmax(dim=1), label, 4)


# ---- embedding -----------------------------------------------------------------------------------


def glyphs(n=23):
    generator = torch.Generator().manual_seed(0)
    return open_images(
        torch.randint(256, (n, 8, 8, 1), generator=generator, dtype=torch.uint8).numpy()
    )


def small_encoder():
    torch.manual_seed(0)
    backbone = small_conv(width=32)
    return Encoder(backbone, mlp(32, dim=16), mean=[0.5], std=[0.25])


def test_embedding_does_not_depend_on_the_batch_nor_touch_the_encoder():
    encoder, images = small_encoder().train(), glyphs()
    encoder.backbone.layers[1].eval()  # a layer frozen on purpose stays so
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    modes = [m.training for m in encoder.modules()]
    seen = []
    encoder.backbone.layers[4].register_forward_hook(lambda m, *_: seen.append(m.training))
    whole, parts = (embed(encoder, images, size=8, batch_size=b) for b in (23, 5))
    embed_views(encoder, images, partial(digits, size=8))
    torch.testing.assert_close(whole.h, parts.h)
    torch.testing.assert_close(whole.z, parts.z)
    assert whole.h.shape == (23, 32) and whole.z.shape == (23, 16) and not any(seen)
    assert modes == [m.training for m in encoder.modules()]
    for name, x in encoder.state_dict().items():
        assert torch.equal(x, before[name]), name


def test_module_that_will_not_evaluate_is_refused():
    encoder = small_encoder()
    encoder.backbone.layers[1].train = lambda mode=True: encoder.backbone.layers[1]
    with pytest.raises(RuntimeError, match=r"backbone.layers.1 stayed in training mode"):
        embed(encoder, glyphs(), size=8)
    assert encoder.training


def test_bf16_embedding_is_near_and_comes_back_as_float32():
    encoder, images = small_encoder(), glyphs()
    exact = embed(encoder, images, size=8)
    rough = embed(encoder, images, size=8, precision="bf16")
    assert rough.h.dtype == rough.z.dtype == torch.float32
    assert float((exact.z * rough.z).sum(dim=1).min()) > 0.99
    torch.testing.assert_close(rough.z.norm(dim=1), torch.ones(23))


def test_weights_that_diverged_are_named():
    encoder = small_encoder()
    torch.nn.init.constant_(encoder.head[0].weight, math.nan)
    with pytest.raises(ValueError, match=r"23 of 23 images .* not finite"):
        embed(encoder, glyphs(), size=8)
