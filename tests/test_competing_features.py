"""The experiments on competing features: their jobs, their losses, their claims on made-up runs."""

import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from contrapose import experiments
from contrapose.data import open_images
from contrapose.encoders import Encoder, small_conv
from contrapose.evaluation.local import local_maps
from contrapose.evaluation.local_page import write_map_page
from contrapose.experiments import noise
from contrapose.experiments.form import Results
from contrapose.experiments.suppression import (
    batch_size,
    digits_on_images,
    generalised_losses,
    random_bits,
)
from contrapose.experiments.suppression import protocol as chen_luo_li
from contrapose.experiments.suppression.protocol import (
    SIMCLR,
    SUPERVISED,
    SWD_CUBE,
    SWD_NORMAL,
    UNTRAINED,
    loss_of,
    recipe,
)
from contrapose.partials import describe

NAMES = (
    "generalised_losses", "batch_size", "multiple_objects", "digits_on_images", "digit_sizes",
    "random_bits", "local_features", "who_keeps_both",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_job_has_a_recipe_that_can_be_written(name):
    experiment = experiments.experiment(name)
    for scale in experiment.costs:
        jobs = experiment.jobs(scale, (0, 1))
        assert len({job.name for job in jobs}) == len(jobs)
        for job in jobs:
            made = job.call.keywords["recipe"](size=32, channels=3)
            assert describe(made)["loss"]["call"] and describe(job.call)
            labelled = "labels" in job.call.keywords
            assert (made.positives == "class") == (labelled or job.facts["method"] == SUPERVISED)
            assert (job.call.keywords["epochs"] == 0) == (job.facts["method"] == UNTRAINED)


@pytest.mark.parametrize("name", NAMES)
def test_without_results_nothing_is_decided_and_nothing_drawn(name):
    experiment = experiments.experiment(name)
    for scale in experiment.costs:
        missing = [job.coordinates for job in experiment.jobs(scale, (0,))]
        results = Results(rows=[], missing=missing, measures=experiment.measures)
        assert {claim.test(results).holds for claim in experiment.claims} == {None}
        assert all(figure.draw(results) is None for figure in experiment.figures)


def test_the_protocol_is_that_of_the_authors_reply():
    small = recipe(32, 3, scale="paper")
    assert small.scaling(small.lr, small.batch_size) == pytest.approx(0.2 * math.sqrt(128))
    assert small.head.keywords == {"dim": 64, "layers": 2}
    large = recipe(224, 3, scale="paper")
    assert large.scaling(large.lr, 1024) == pytest.approx(0.075 * 32)
    assert (large.temperature, large.head.keywords["dim"], large.batch_size) == (0.2, 128, 1024)


@pytest.mark.parametrize("name", [SWD_NORMAL, SWD_CUBE])
def test_priors_on_the_plane_see_z_before_it_is_brought_to_unit_length(name):
    head = recipe(32, 3, scale="smoke", loss=loss_of(name)).head(16)
    encoder = Encoder(small_conv(channels=1, width=16), head, [0], [1])
    h, z = encoder(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(z, head(h)) and float((z.norm(dim=1) - 1).abs().max().detach()) > 0.1
    assert "unit_length" not in recipe(32, 3, scale="smoke").head.keywords


def test_both_rules_of_scaling_find_their_rates_in_the_grid():
    grid = batch_size.grid(128)
    for power in batch_size.RULES.values():
        for base in batch_size.BASES:
            assert all(base * (batch / 128) ** power in rates for batch, rates in grid.items())


# ---- claims --------------------------------------------------------------------------------------


def row(facts, **measures):
    return {"data": "cifar10", "seed": 0, "n_test": 2000, **facts, **measures}


def verdicts(module, rows):
    results = Results(rows=rows, measures=module.EXPERIMENT.measures)
    return {claim.test.__name__: claim.test(results) for claim in module.EXPERIMENT.claims}


def on_images(full, faint, supervised=(0.6, 0.6), before=(0.15, 0.15, 0.15), seeds=(0,)):
    """Rows of runs with 1, 16 and 256 digits at contrasts 1 and 0.3, of these accuracies of the
    image; `before`: of untrained weights, by probes of the digits of training alone."""
    rows = []
    for seed, (contrast, image) in itertools.product(seeds, ((1.0, full), (0.3, faint))):
        at = {"contrast": contrast, "label": None, "seed": seed}
        at |= {"chance": {"image": 0.1, "digit": 0.1}}
        for k, a in zip((1, 16, 256), image, strict=True):
            here, ours, taught = at | {"unique": k}, a + seed / 1000, supervised[k > 1]
            own = {"own": {str(k): ours}, "digit": 0.2 + k / 1000}
            rows.append(row(here | {"method": SIMCLR}, image=ours, **own))
            here |= {"method": SUPERVISED, "label": "image"}
            rows.append(row(here, image=taught, own={str(k): taught}))
        own = dict(zip(("1", "16", "256"), before, strict=True))
        here = at | {"unique": None, "method": UNTRAINED}
        raw = {"image": 0.25, "digit": 0.9}
        rows.append(row(here, image=0.15, digit=0.3, own=own, raw=raw, glyphs=359))
    return rows


FLAT, FALLING, RISING = (0.5, 0.5, 0.5), (0.5, 0.4, 0.2), (0.3, 0.4, 0.5)


@pytest.mark.parametrize(
    ("full", "faint", "lost", "falls_on", "lost_at_full", "more"),
    [
        (FLAT, FALLING, True, True, None, True),
        (FALLING, FALLING, True, True, True, None),
        (FALLING, FLAT, None, None, True, False),
        (FLAT, RISING, False, False, None, False),
        (FLAT, (0.5, 0.3, 0.4), True, False, None, True),  # a step up beyond the noise
        (FLAT, (0.5, 0.4, 0.41), True, True, None, True),  # one within it
    ],
)
def test_digits_on_images_are_judged_beyond_the_noise(
    full, faint, lost, falls_on, lost_at_full, more
):
    found = verdicts(digits_on_images, on_images(full, faint, seeds=(0, 1, 2)))
    holds = {name: verdict.holds for name, verdict in found.items()}
    assert holds["digits_rise"] and holds["image_is_learned_beside_one_digit"]
    assert (holds["images_are_lost"], holds["images_fall_on"]) == (lost, falls_on)
    assert holds["images_are_lost_at_full_contrast"] is lost_at_full
    assert holds["digits_do_not_matter_at_full_contrast"] is (False if lost_at_full else None)
    assert holds["fainter_images_lose_more"] is more
    if faint == FALLING:
        assert "1: 0.20 (0.03), 16: 0.40 (0.03), 256: 0.80 (0.02)" in (
            found["image_is_suppressed"].evidence
        )


@pytest.mark.parametrize(
    ("taught", "unaffected", "less"),
    [((0.5, 0.505), True, True), ((0.5, 0.46), None, True), ((0.5, 0.2), False, None)],
)
def test_labels_lose_less_of_the_image_to_digits(taught, unaffected, less):
    rows = on_images(FLAT, FALLING, supervised=taught)
    found = verdicts(digits_on_images, [one | {"n_test": 10_000} for one in rows])
    assert found["labels_are_unaffected"].holds is unaffected
    assert found["labels_lose_less"].holds is less


@pytest.mark.parametrize(
    ("image", "taught", "before", "suppressed", "shrinks"),
    [
        # what images with more digits are harder to read by is no suppression
        ((0.5, 0.4, 0.2), (0.5, 0.2), (0.4, 0.3, 0.1), None, None),
        ((0.5, 0.4, 0.2), (0.5, 0.5), (0.4, 0.3, 0.1), True, None),
        ((0.5, 0.4, 0.2), (0.5, 0.5), (0.2, 0.2, 0.2), True, True),
        ((0.3, 0.3, 0.4), (0.5, 0.4), (0.2, 0.2, 0.2), False, False),
    ],
)
def test_by_probes_of_its_own_digits_an_encoder_is_set_against_controls_with_as_many(
    image, taught, before, suppressed, shrinks
):
    rows = on_images(FLAT, image, supervised=taught, before=before)
    found = verdicts(digits_on_images, [one | {"n_test": 10_000} for one in rows])
    assert found["image_is_suppressed_beside_its_own_digits"].holds is suppressed
    assert found["gain_shrinks_beside_its_own_digits"].holds is shrinks


def test_more_seeds_do_not_lessen_the_error_by_the_test_images():
    same, apart = {0: 0.5, 1: 0.5, 2: 0.5}, {0: 0.4, 1: 0.5, 2: 0.3}
    difference = partial(noise.difference, n=2000)
    assert difference(same, same) == (0, pytest.approx((2 * 0.25 / 2000) ** 0.5))
    gap, error = difference(same, apart)
    assert gap == pytest.approx(0.1)
    assert error == pytest.approx(((0.25 + 0.24) / 2000 + 0.01 / 3) ** 0.5)


def with_bits(accuracy, varied):
    rows = []
    for job in random_bits.jobs("cpu", (0,)):
        at = dict(job.facts)
        usual = (at["loss"], at["tau"], at["batch"]) == ("NT-Xent", 0.2, 128)
        value = accuracy[at["bits"]] if usual else varied
        value = {SUPERVISED: 0.6, UNTRAINED: 0.3}.get(at["method"], value)
        rows.append({"seed": 0, "n_test": 2000, **at, "image": value, "chance": {"image": 0.1}})
    return rows


def test_random_bits_are_judged_set_by_set():
    falls = {0: 0.5, 2: 0.4, 4: 0.3, 8: 0.2, 16: 0.1}
    found = verdicts(random_bits, with_bits(falls, varied=0.3))
    assert [verdict.holds for verdict in found.values()] == [True] * 4
    assert "8: 0.80 (0.02)" in found["image_is_suppressed"].evidence
    found = verdicts(random_bits, with_bits(falls, varied=0.5))
    assert found["nothing_else_helps"].holds is False
    assert "momentum encoder 0.500" in found["nothing_else_helps"].evidence


# ---- whole ---------------------------------------------------------------------------------------


def test_a_run_reads_every_feature_and_the_pictures(tmp_path):
    name = "SimCLR-datadigits-bits8-lossNT-Xent-tau0.2-batch64-seed0"
    jobs = {job.name: job for job in random_bits.jobs("smoke", (0,))}
    found = jobs[name].call(tmp_path)
    assert found["n_train"] == 256 and found["n_test"] == 128
    assert found["bits_read"] > 0.6 and found["image"] < 0.4  # the bits crowd out the digit
    assert 0.4 < found["chance"]["bits_read"] < 0.6
    assert found["pixels"] < 0.3
    plain = random_bits.jobs("smoke", (0,))[0].call(tmp_path / "plain")
    assert plain["image"] > found["image"] + 0.1 and plain["pixels"] > found["pixels"]


def test_raw_pixels_are_read_by_the_probes_of_the_encoder(tmp_path):
    jobs = {job.name: job for job in digits_on_images.jobs("smoke", (0,))}
    found = jobs["untrained-contrast0.3-all-image-seed0"].call(tmp_path)
    assert set(found["raw"]) == {"image", "digit"} and found["raw"]["digit"] > 0.7
    assert 1 < found["glyphs"] <= 128
    assert found["raw"]["image"] < found["raw"]["digit"]


def test_the_page_of_maps_holds_every_label(tmp_path: Path):
    images = open_images("digits").subset(torch.arange(3))
    encoder = Encoder(small_conv(channels=1, width=16), torch.nn.Identity(), [0], [1])
    maps = local_maps(encoder, images, clusters=(2, 4), restarts=1)
    page = write_map_page(images, {"each": maps}, tmp_path / "maps.html").read_text()
    drawn = sum(len(label) for by_k in maps.labels.values() for label in by_k.values())
    assert page.count("data:image/png") == drawn and page.count("data:image/jpeg") == 3
    assert "http" not in page.replace("<!doctype html>", "")
    with pytest.raises(ValueError, match="labels of 3 images"):
        write_map_page(images.subset(torch.arange(2)), {"each": maps}, tmp_path / "maps.html")


def test_without_a_control_there_is_no_score():
    results = Results(
        rows=on_images(FLAT, (0.5, 0.4, 0.2)), measures=digits_on_images.EXPERIMENT.measures
    )
    results = results.where(contrast=0.3)
    at = {"here": {"unique": 16, "method": SIMCLR}, "untrained": {"method": UNTRAINED}}
    control = {"method": SUPERVISED, "label": "image", "unique": 1}
    found = chen_luo_li.suppression_of(results, "image", supervised=control, **at)
    assert found is not None and found.score == pytest.approx((0.6 - 0.4) / (0.6 - 0.1))
    without = control | {"label": "digit"}
    assert chen_luo_li.suppression_of(results, "image", supervised=without, **at) is None


@pytest.mark.parametrize(("gap", "holds"), [(0.01, None), (0.2, True), (-0.2, False)])
def test_a_rule_of_scaling_is_better_only_beyond_the_noise_of_the_test_images(gap, holds):
    """Best at the rate that the square root carries from base 1 to each batch, by `gap`; a negative
    one is what the linear rule carries."""
    power = 0.5 if gap > 0 else 1.0
    rows = [
        row(
            {"batch": batch, "multiple": rate, "method": chen_luo_li.SIMCLR},
            image=0.4 + abs(gap) * math.isclose(rate, (batch / 128) ** power),
        )
        for batch, rates in batch_size.grid(128).items()
        for rate in rates
    ]
    results = Results(rows=rows, measures=batch_size.EXPERIMENT.measures)
    claims = {c.test.__name__: c.test(results) for c in batch_size.EXPERIMENT.claims}
    assert claims["root_carries_rates"].holds is holds, claims["root_carries_rates"].evidence
    assert claims["impact_is_small"].holds  # all batches reach the same, within their grids


def test_ranges_over_losses_are_told_apart_only_beyond_the_noise_of_the_test_images():
    def verdict(deep):
        rows = [
            row(
                {"loss": loss, "layers": layers, "tau": None, "weight": None},
                image=0.4 + size * (k == 0),
            )
            for layers, size in ((2, 0.05), (3, 0.05), (4, deep))
            for k, loss in enumerate(generalised_losses.LOSSES)
        ]
        return generalised_losses.deeper_is_more_alike(
            Results(rows=rows, measures=generalised_losses.EXPERIMENT.measures)
        )

    assert [verdict(deep).holds for deep in (0.04, 0.0, 0.2)] == [None, True, False]


def test_slack_is_given_once_and_not_at_each_step():
    def rows_of(*values):
        return Results(
            rows=[row({"unique": 4**k}, image=v) for k, v in enumerate(values)], measures=("image",)
        )

    rises = partial(chen_luo_li.rises_over, measure="image", along="unique", slack=0.01)
    assert rises(rows_of(0.10, 0.14, 0.135, 0.20)).holds
    assert rises(rows_of(0.15, 0.142, 0.134, 0.2)).holds is False
