"""The experiments on temperature: their jobs, their claims on constructed results, their losses."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from contrapose import experiments, losses
from contrapose.experiments.form import Results
from contrapose.experiments.temperature import (
    perplexity,
    relations,
    temperature_limits,
    temperature_sweep,
)
from contrapose.experiments.temperature.protocol import (
    BANK,
    CONTRASTIVE,
    HARD,
    HARD_SIMPLE,
    IN_BATCH,
    SIMPLE,
    cold_limit_of_keys,
    loss_of,
    recipe,
)
from contrapose.keys import Queue
from contrapose.keys.contrast import Nearest
from contrapose.keys.sources import FromSupport
from contrapose.partials import describe

NAMES = ("temperature_limits", "temperature_sweep", "perplexity", "relations")
SIZES = {"digits": (8, 1), "mnist": (28, 1), "imagenet-100": (224, 3), "tiny-imagenet-50": (64, 3)}
Z = normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double(), dim=1)
BANK_OF = normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(1)).double(), dim=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_every_job_has_a_recipe_that_can_be_written(name, scale):
    jobs = experiments.experiment(name).jobs(scale, (0, 1))
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        make = job.call.keywords.get("recipe")
        if make is not None:
            size, channels = SIZES.get(job.facts["data"], (32, 3))
            made = make(size=size, channels=channels)
            assert describe(made)["loss"]["call"]
            assert (made.keys is None) == (made.number_of_views == 2) or "NNCLR" in job.name


def test_the_published_cells_are_jobs_of_the_paper_scale():
    jobs = temperature_sweep.jobs("paper", (0,))
    facts = [dict(job.facts) for job in jobs]
    cells = temperature_sweep.EXPERIMENT.published
    assert len(cells) == 4 * 3 * 10
    assert all(dict(cell.at) in facts and "[S1]" in cell.source for cell in cells)
    assert all(0 <= c.value <= 1 for c in cells if c.measure in ("accuracy", "tolerance"))


def test_the_protocol_is_that_of_the_paper():
    found = recipe(32, 3, data="cifar10", protocol=BANK, loss=HARD_SIMPLE, tau=None, scale="paper")
    assert (found.lr, found.batch_size, found.number_of_views) == (0.03, 128, 1)
    assert found.loss.keywords == {"weight": 1 / 4095, "k": 4095}
    assert [found.schedule(e, 200, warmup=0) for e in (0, 159, 160, 189, 190)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    simple = recipe(32, 3, data="svhn", protocol=BANK, loss=SIMPLE, tau=None, scale="paper")
    assert simple.loss.keywords == {"weight": 1 / 73_256}


@pytest.mark.parametrize("protocol", [BANK, IN_BATCH])
def test_hard_losses_keep_the_share_of_the_paper(protocol):
    assert loss_of(protocol, HARD, 0.3, negatives=49_999, k=4095).keywords["k"] == 4095
    made = recipe(32, 3, data="cifar10", protocol=IN_BATCH, loss=HARD, tau=0.3, scale="cpu")
    negatives = 2 * made.batch_size - 2
    assert made.loss.keywords["k"] / negatives == pytest.approx(0.0819, abs=1 / negatives)


def test_the_cold_limit_of_keys_is_the_limit():
    query, match = Z[:8].clone().requires_grad_(), torch.arange(8)
    limit = cold_limit_of_keys(query, BANK_OF, match, temperature=1.0)
    s = query @ BANK_OF.T
    nearest = s.masked_fill(torch.eye(8, 30, dtype=torch.bool), -2).amax(dim=1)
    expected = (nearest - s.diagonal()).relu().mean()
    cold = 1e-4 * losses.info_nce(query, BANK_OF, match, temperature=1e-4)
    torch.testing.assert_close(limit, expected)
    assert float((cold - limit).detach()) == pytest.approx(0, abs=1e-4 * math.log(30))
    torch.testing.assert_close(*(torch.autograd.grad(x, query)[0] for x in (limit, expected)))


def test_neighbours_are_compared_both_ways():
    source = FromSupport(Queue(30, 5))
    source.support.push(BANK_OF.float(), torch.full((30,), -1))
    z, view, index = Z.float(), torch.zeros(2, 6, 1, 4, 4), torch.arange(6)
    entries = source.entries(source.queries(view), z, index, index)
    contrast = source.contrast(len(z), entries)
    assert isinstance(contrast, Nearest)
    found = contrast.loss(relations.loss_of("NNCLR", 0.2, 128), z)
    nearest = BANK_OF.float()[(z @ BANK_OF.float().T).argmax(1)]
    logits = [nearest[:6] @ z[6:].T / 0.2, nearest[6:] @ z[:6].T / 0.2]
    expected = sum(torch.nn.functional.cross_entropy(x, index) for x in logits) / 2
    torch.testing.assert_close(found, expected)
    source.update(torch.nn.Identity(), entries)
    torch.testing.assert_close(source.support.key[:6], z[:6])


# ---- claims --------------------------------------------------------------------------------------


def swept(**change):
    """Results as S1 has them on CIFAR-10, for both protocols, changed where asked."""
    rows = []
    columns = zip(
        temperature_sweep.COLUMNS,
        *(
            temperature_sweep.TABLE_1["cifar10"][m]
            for m in ("accuracy", "minus_uniformity", "tolerance")
        ),
        strict=True,
    )
    cells = {(loss, tau): (a / 100, u, t) for (loss, tau), a, u, t in columns}
    cells |= {(CONTRASTIVE, 0.2): (0.83, 3.7, 0.1), (CONTRASTIVE, 0.03): (0.75, 3.8, 0.06)}
    for protocol in (BANK, IN_BATCH):
        for (loss, tau), (a, u, t) in cells.items():
            row = {
                "data": "cifar10", "protocol": protocol, "loss": loss, "tau": tau, "seed": 0,
                "accuracy": a, "minus_uniformity": u, "tolerance": t, "instance_retrieval": a,
                "n_train": 50_000,
            }  # fmt: skip
            if loss == CONTRASTIVE:
                positive = 0.7 + 0.2 * tau
                row |= {"map_x": [0.0, 1.0], "map_y": [1.0, 0.0], "map_class": [3, 5]}
                row["local_separation"] = [positive, positive - 0.3 + 0.2 * tau, *[0.1] * 9]
            row |= change.get(f"{loss}{'' if tau is None else tau}", {})
            rows.append(row)
    return Results(rows=rows, measures=temperature_sweep.EXPERIMENT.measures)


def verdicts(results):
    """Name of the test, with its protocol -> what it says."""
    found = {}
    for claim in temperature_sweep.EXPERIMENT.claims:
        test = claim.test
        protocol = getattr(test, "keywords", {}).get("protocol", BANK)
        found[getattr(test, "func", test).__name__, protocol] = test(results).holds
    return found


def test_all_claims_hold_on_the_numbers_of_the_paper():
    assert set(verdicts(swept()).values()) == {True}
    assert len(verdicts(swept())) == 21


@pytest.mark.parametrize(
    "change, falls",
    [
        ({"contrastive1.0": {"minus_uniformity": 3.5}}, "uniformity_falls"),
        ({"contrastive0.07": {"tolerance": 0.5}}, "tolerance_rises"),
        ({"hard1.0": {"minus_uniformity": 3.3}}, "hard_is_flat"),
        ({"hard0.07": {"minus_uniformity": 3.7}}, "hard_is_more_uniform"),
        ({"contrastive0.03": {"accuracy": 0.9}}, "best_inside"),
        ({"hard1.0": {"accuracy": 0.7}}, "hard_likes_warmth"),
        ({"simple": {"accuracy": 0.83}}, "simple_is_worse"),
        ({"hard-simple": {"accuracy": 0.75}}, "hard_simple_recovers"),
        ({"hard0.3": {"accuracy": 0.81}}, "table_is_reached"),
        ({"contrastive0.07": {"instance_retrieval": 0.99}}, "a_signal_follows"),
        ({"contrastive1.0": {"local_separation": [0.2] * 11}}, "cold_separates"),
    ],
)
def test_each_claim_falls_with_its_numbers(change, falls):
    found = verdicts(swept(**change))
    assert found[falls, BANK] is False
    assert falls == "table_is_reached" or found[falls, IN_BATCH] is False


def test_without_results_nothing_is_decided():
    rows = swept().rows
    absent = [{k: row[k] for k in ("data", "protocol", "loss", "tau", "seed")} for row in rows]
    results = Results(rows=[], missing=absent, measures=temperature_sweep.EXPERIMENT.measures)
    assert set(verdicts(results).values()) == {None}
    for module in (temperature_limits, perplexity, relations):
        experiment = module.EXPERIMENT
        missing = [job.coordinates for job in experiment.jobs("cpu", (0,))]
        results = Results(rows=[], missing=missing, measures=experiment.measures)
        assert {c.test(results).holds for c in experiment.claims} == {None}
        assert all(figure.draw(results) is None for figure in experiment.figures)


def test_figures_draw_what_there_is():
    for experiment, results in (
        (temperature_sweep.EXPERIMENT, swept()),
        (perplexity.EXPERIMENT, of_perplexities(lambda *cell: 0.2, lambda *cell: 25.0)),
    ):
        for figure in experiment.figures:
            drawn = figure.draw(results)
            assert drawn["data"] and all(trace["x"] for trace in drawn["data"]), figure.title


def of_perplexities(best_temperature, best_perplexity, anchors=0.0):
    """Accuracy falls with the distance from a best value, which may differ between cells."""
    rows = []
    for job in perplexity.jobs("cpu", (0,)):
        at = dict(job.facts)
        best = best_temperature if at["family"] == "temperature" else best_perplexity
        off = abs(math.log(at["value"] / best(at["data"], at["batch"])))
        scale = math.log(at["value"]) / (6 if at["family"] != "temperature" else 3)
        gain = anchors if at["family"] == "per-anchor" else 0.0
        rows.append(
            at | {"seed": 0, "accuracy": 0.6 - 0.02 * off + gain}
            | {"minus_uniformity": 3 - scale, "tolerance": 0.2 + scale / 5 + gain}
        )  # fmt: skip
    return Results(rows=rows, measures=perplexity.EXPERIMENT.measures)


def test_a_value_transfers_where_its_best_stays():
    wander = of_perplexities(lambda data, batch: 12.8 / batch, lambda data, batch: 25.0)
    assert perplexity.transfers(wander).holds is True
    assert perplexity.spreads_less(wander).holds is True
    other = of_perplexities(lambda data, batch: 0.2, lambda data, batch: batch / 5)
    assert perplexity.transfers(other).holds is False
    same = of_perplexities(lambda data, batch: 0.2, lambda data, batch: 25.0)
    assert perplexity.transfers(same).holds is None


@pytest.mark.parametrize("gain, holds", [(0.05, True), (-0.05, False), (0.0, None)])
def test_anchors_are_judged_at_equal_uniformity(gain, holds):
    found = of_perplexities(lambda data, batch: 0.2, lambda data, batch: 25.0, gain)
    assert perplexity.anchors_beat_the_plane(found).holds is holds
    assert perplexity.anchors_are_more_accurate(found).holds is (gain > 0)
