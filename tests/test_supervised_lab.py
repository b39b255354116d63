"""The supervised lab: its recipes, the gradient's closed form, claims on constructed results."""

import math

import pytest
import torch

from contrapose import experiments
from contrapose.encoders import Encoder
from contrapose.experiments.form import Results
from contrapose.experiments.supervised import (
    EXPERIMENTS,
    applied_transformation,
    by_severity,
    few_labels,
    hadsell,
    in_and_out,
    landmark_consistency,
    methods,
    optimiser_pairs,
    positives,
    special_cases,
    stability,
)
from contrapose.experiments.supervised.protocol import (
    CROSS_ENTROPY,
    JOINT,
    SIMCLR,
    SUPCON,
    above,
    recipe,
)
from contrapose.partials import describe


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_every_job_has_a_recipe_that_can_be_written(name, scale):
    jobs = experiments.experiment(name).jobs(scale, (0, 1))
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        make = job.call.keywords.get("recipe")
        if make is not None:
            size, channels = (8, 1) if scale == "smoke" else (16, 3)
            assert describe(make(size=size, channels=channels))["loss"]["call"]


def test_methods_differ_in_what_the_step_optimises_alone():
    made = {m: recipe(16, 3, scale="cpu", method=m) for m in methods.METHODS}
    same = ("backbone", "optimizer", "schedule", "batch_size", "epochs", "lr", "size", "warmup")
    for method, one in made.items():
        for name in same:
            assert describe(getattr(one, name)) == describe(getattr(made[SIMCLR], name)), method
        assert one.learns_from_labels == (method != SIMCLR)
    assert made[JOINT].classifier_weight == 1.0 and made[JOINT].positives == "class"
    views = {m: describe(one.views) for m, one in made.items() if m != methods.PLAIN_VIEWS}
    assert len({str(v) for v in views.values()}) == 1


def test_the_closed_form_of_the_gradient_is_the_derivative(tmp_path):
    found = in_and_out.gradients(tmp_path, seed=3)
    assert found["error_out"] < 1e-12 and found["error_in"] < 1e-12
    w = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).double()
    label = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    wrong = in_and_out.closed_form(w, label.flip(0).roll(1), "out")
    right = in_and_out.closed_form(w, label, "out")
    assert (wrong - right).norm() > 1e-3  # the check can fail


def row(seed=0, **values):
    return {"seed": seed, "n_test": 10_000} | values


def test_a_verdict_is_decided_beyond_the_noise_alone():
    a, b = {"method": SUPCON}, {"method": SIMCLR}

    def of(x, y):
        return above(Results(rows=[row(accuracy=x, **a), row(accuracy=y, **b)]), a, b).holds

    assert of(0.60, 0.50) is True and of(0.50, 0.60) is False and of(0.501, 0.50) is None
    assert (
        above(Results(rows=[row(accuracy=0.6, **a)], missing=[{"seed": 0} | b]), a, b).holds is None
    )


def test_more_positives_level_off():
    def of(*values):
        rows = [
            row(positives=k, accuracy=v, method=SUPCON, tau=0.1)
            for k, v in zip(positives.KEPT, values, strict=True)
        ]
        return [claim.test(Results(rows=rows)).holds for claim in positives.EXPERIMENT.claims]

    assert of(0.69, 0.76, 0.78, 0.784, 0.783, 0.785) == [True, True, None]
    assert of(0.78, 0.76, 0.70, 0.69, 0.69, 0.69)[0] is False
    assert of(0.50, 0.51, 0.52, 0.55, 0.6, 0.7)[1] is False


def test_temperature_and_positives_are_told_to_go_together():
    def of(one, every):
        rows = [
            row(positives=k, accuracy=v, method=SUPCON, tau=tau)
            for k, values in ((1, one), (None, every))
            for tau, v in zip((0.1, 0.5), values, strict=True)
        ]
        return positives.wants_temperature(Results(rows=rows)).holds

    assert of((0.44, 0.41), (0.41, 0.48)) is True
    assert of((0.41, 0.48), (0.41, 0.41)) is False
    assert of((0.44, 0.45), (0.41, 0.42)) is None


def test_methods_are_compared_at_values_chosen_on_other_images():
    def of(*settings):
        rows = [
            row(method=m, epochs=e, value=v, tuning=t, accuracy=a, n_judged=8000)
            for m, e, v, t, a in settings
        ]
        return methods.over_simclr(Results(rows=rows))

    simclr = (SIMCLR, 1.0, 0.1, 0.5, 0.5)
    lucky = of(simclr, (SUPCON, 1.0, 0.1, 0.6, 0.4), (SUPCON, 1.0, 0.5, 0.5, 0.9))
    assert lucky.holds is False and "n = 8,000" in lucky.evidence
    assert of(simclr, (SUPCON, 1.0, 0.1, 0.6, 0.6), (SUPCON, 1.0, 0.5, 0.5, 0.4)).holds is True


def test_a_smaller_spread_and_a_tuned_rate_are_told():
    def of(supcon, other):
        rows = [
            row(method=m, change=c, accuracy=v)
            for m, values in ((SUPCON, supcon), (CROSS_ENTROPY, other))
            for c, v in zip(
                [stability.AS_IT_IS, *(f"rate x{r:g}" for r in stability.RATES)],
                values,
                strict=True,
            )
        ]
        return [claim.test(Results(rows=rows)).holds for claim in stability.EXPERIMENT.claims]

    assert of([0.60, 0.61, 0.60, 0.59, 0.60], [0.55, 0.40, 0.30, 0.50, 0.52]) == [True, True]
    assert of([0.60, 0.40, 0.30, 0.59, 0.60], [0.65, 0.64, 0.65, 0.66, 0.64]) == [False, False]


def test_published_numbers_are_of_jobs_that_there_are():
    for name in EXPERIMENTS:
        found = experiments.experiment(name)
        facts = [dict(job.facts) for job in found.jobs("paper", (0,))]
        for number in found.published:
            assert any(dict(number.at).items() <= f.items() for f in facts), number
            assert (
                0 < number.value < (100 if number.measure == "mce" else 1)
                and "[P]" in number.source
            )


def test_few_labels_are_those_that_the_probe_knows(tmp_path):
    jobs = {job.name: job for job in few_labels.jobs("smoke", (0,))}
    found = jobs["SupCon-2-all-seed0"].call(tmp_path / "run")
    assert found["n_train"] == 256 and found["n_test"] == 128
    assert 0.15 < found["accuracy"] < 0.9 and not math.isnan(found["ece"])
    assert "classifier" not in found


def test_a_classifier_is_judged_beside_a_probe_and_under_corruptions(tmp_path):
    jobs = {job.name: job for job in methods.jobs("smoke", (0,))}
    found = jobs["joint-0.1-seed0"].call(tmp_path / "run")
    assert found["n_judged"] == 102 and found["tuning"] == round(found["tuning"] * 26) / 26
    assert found["accuracy"] == found["classifier"] != found["probe"]
    assert len(found["accuracy_by_severity"]) == 5
    assert found["accuracy_by_severity"][0] > found["accuracy_by_severity"][-1] - 0.05


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_is_decided_or_drawn_without_results(name):
    found = experiments.experiment(name)
    empty = Results(rows=[], measures=found.measures)
    assert all(claim.test(empty).holds is None for claim in found.claims)
    assert all(figure.draw(empty) is None for figure in found.figures)


def test_every_second_stage_is_on_the_same_frozen_encoder(tmp_path):
    (job, *_) = optimiser_pairs.jobs("smoke", (0,))
    found = job.call(tmp_path / "job")
    rows = optimiser_pairs.pairs(Results(rows=[job.coordinates | found])).rows
    assert {row["last"]: row["accuracy"] for row in rows} == {
        name: found[f"then {name}"] for name in optimiser_pairs.FIRST
    }
    assert len({row["accuracy"] for row in rows}) > 1 and min(found.values()) >= 0
    start, *ends = (
        Encoder.load(path).backbone.state_dict()
        for path in (tmp_path / "job" / "run", *(tmp_path / "job").glob("second-*"))
    )
    assert len(ends) == 3
    assert all(torch.equal(x, end[n]) for end in ends for n, x in start.items())


def test_accuracy_by_severity_is_that_of_the_corruptions(tmp_path):
    jobs = {job.name: job for job in by_severity.jobs("smoke", (0,))}
    found = jobs["SupCon-seed0"].call(tmp_path / "job")
    levels = [found[f"accuracy at {s}"] for s in range(1, 6)]
    assert found["corrupted"] == pytest.approx(sum(levels) / 5)
    assert set(found) <= set(by_severity.EXPERIMENT.measures)


def test_older_losses_are_special_cases_to_rounding(tmp_path):
    found = special_cases.identities(tmp_path, seed=4)
    for name in special_cases.IDENTITIES:
        assert found[name] < special_cases.EXACT, name
    claims = special_cases.EXPERIMENT.claims
    wrong = Results(rows=[{"seed": 0} | found | {"n_pairs": 1e-3}])
    assert [c.test(wrong).holds for c in claims] == [True, False, True, True]


def test_pairs_of_hadsell_are_neighbours_and_every_shift_of_them():
    x, digit, image, shift = hadsell.images_of("digits", 8, "train", (-1, 2))
    assert len(x) == 48 and digit[:16].bincount().tolist() == [8, 8]
    assert torch.equal(x[32:, :, :, 2:], x[:16, :, :, :-2])  # 2 px to the right
    assert torch.equal(x[16:32, :, :, :-1], x[:16, :, :, 1:])
    pairs = hadsell.similar_pairs(x, image, shift, hadsell.SHIFTED)
    distance = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(torch.inf)
    for i in (0, 20, 47):
        mine = pairs[pairs[:, 0] == i, 1]
        nearest = distance[i].topk(5, largest=False).values
        assert torch.allclose(distance[i, mine].sort().values, nearest.sort().values)
    every = {tuple(p) for p in hadsell.similar_pairs(x, image, shift, hadsell.INVARIANT).tolist()}
    assert {(3, 19), (19, 35), (35, 3)} <= every and not any(a == b for a, b in every)
    assert len(every) == 16 * (5 * 9 + 6)


@pytest.mark.parametrize("size", [8, 28, 32])
def test_hadsells_map_takes_digits_of_every_scale(size):
    network = hadsell.Map(size)
    assert network(torch.rand(3, 1, size, size)).shape == (3, 2)
    if size >= 28:  # the paper's layers leave one place of 30 maps
        assert network.layers[-1].in_features == 30


def test_the_pair_loss_is_hadsells_equation():
    a, b = torch.zeros(4, 2), torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.3, 0.4], [3.0, 4.0]])
    similar = torch.tensor([True, True, False, False])
    by_hand = (0.25 + 25 + 0.25 + 0) / 2 / 4
    assert hadsell.pair_loss(a, b, similar) == pytest.approx(by_hand)


@pytest.mark.parametrize("task", applied_transformation.TASKS)
def test_what_was_applied_is_what_is_told(task):
    image = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before, generator = image.clone(), torch.Generator().manual_seed(0)
    told = applied_transformation.applied(image, task, generator)
    same = (image == before).flatten(1).all(dim=1)
    assert torch.equal(same, told == 0) and 0 < int(same.sum()) < 40
    if task == applied_transformation.ROTATION:
        k = int((told == 1).nonzero()[0])
        assert torch.equal(image[k], torch.rot90(before[k], 1, (1, 2)))
    if task == applied_transformation.COLOUR:
        assert 0.5 < float(same.double().mean()) < 0.97  # one in five is gray


def test_the_true_corners_are_consistent_and_lie_on_the_kite():
    generator = torch.Generator().manual_seed(0)
    image, corner = landmark_consistency.rendered(6, generator)
    one, first = landmark_consistency.view(image, generator)
    _, second = landmark_consistency.view(image, generator)
    u, v = (landmark_consistency.moved(m, corner) for m in (first, second))
    assert float(landmark_consistency.consistency(u, v, first, second)) < 1e-5
    assert float(landmark_consistency.consistency(u, u, first, second)) > 0.01
    middle = corner.mean(dim=1, keepdim=True)
    for seen, points, centre in (
        (image, corner, middle),
        (one, u, landmark_consistency.moved(first, middle)),
    ):
        inward, outward = (centre + k * (points - centre) for k in (0.6, 1.7))
        grey = [
            torch.nn.functional.grid_sample(seen, p[:, :, None], align_corners=False)
            for p in (inward, outward)
        ]
        kept = (outward.abs() < 0.9).all(dim=2)
        assert (grey[0] - grey[1])[:, 0, :, 0][kept].median() > 0.2
