"""The SimCLR lab: its recipes, parts as processes, claims on constructed results, smoke runs."""

import copy
import functools
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from contrapose import experiments, losses
from contrapose.augment import TRANSFORMATIONS
from contrapose.data import Request, balanced
from contrapose.data.request import UNKNOWN_CLASSES
from contrapose.encoders import small_conv
from contrapose.experiments import supervised
from contrapose.experiments.form import Results
from contrapose.experiments.simclr import (
    EXPERIMENTS,
    augmentation_pairs,
    bank_and_queue,
    batch_and_epochs,
    colour_strength,
    depth_and_width,
    fine_tuning,
    histogram_shortcut,
    kinds_of_loss,
    linear_evaluation,
    optimiser_and_norm,
    projection_head,
    temperature_and_norm,
    video_in_time,
)
from contrapose.experiments.simclr.optimiser_and_norm import InParts
from contrapose.experiments.simclr.protocol import SIMCLR, SUPERVISED, side_by_side
from contrapose.partials import describe


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_every_job_has_a_recipe_that_can_be_written(name, scale):
    if scale not in experiments.experiment(name).costs:
        return
    jobs = experiments.experiment(name).jobs(scale, (0, 1))
    assert jobs and len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        make = job.call.keywords.get("recipe")
        if make is not None:
            size, channels = {"smoke": (8, 1), "cpu": (16, 3), "paper": (224, 3)}[scale]
            assert describe(make(size=size, channels=channels))["loss"]["call"]


def test_the_images_of_every_job_at_scale_cpu_are_there():
    asked = set()
    for name in (*EXPERIMENTS, *supervised.EXPERIMENTS):
        for job in experiments.experiment(name).jobs("cpu", (0,)):
            how = job.call.keywords
            if isinstance(how.get("images"), str):
                named = ("images", "size", "subset", "test_subset")
                asked.add(tuple(how.get(n) for n in named))
    assert len(asked) > 1
    root = os.environ.get("CONTRAPOSE_DATA")

    @functools.cache  # several jobs ask for parts of one set; its images are not decoded here
    def opened(data, size):
        return Request(data, size=size, memory=0).train_and_test(seed=0)

    for data, size, subset, tested in sorted(asked, key=str):
        if not root or not (Path(root) / data).exists():
            pytest.skip(f"needs {data} in the folder that CONTRAPOSE_DATA names")
        train, test, which = opened(data, size)
        assert UNKNOWN_CLASSES not in which
        assert len(balanced(train, subset)) == subset
        assert len(test if tested is None else balanced(test, tested)) == (tested or len(test)) > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_numbers_are_of_jobs_that_there_are(name):
    found = experiments.experiment(name)
    facts = [dict(job.facts) for job in found.jobs("paper", (0,))] if found.published else []
    for number in found.published:
        assert any(dict(number.at).items() <= f.items() for f in facts), number
        assert 0 < number.value < 10 and "[P]" in number.source


def test_claims_of_an_experiment_without_results_are_not_tested():
    for name in EXPERIMENTS:
        found = experiments.experiment(name)
        jobs = found.jobs("cpu", (0,))
        nothing = Results(
            rows=[], missing=[job.coordinates for job in jobs], measures=found.measures
        )
        for claim in found.claims:
            assert claim.test(nothing).holds is None, (name, claim.sentence)
        for figure in found.figures:
            assert figure.draw(nothing) is None, (name, figure.title)


def row(seed=0, **values):
    return {"seed": seed, "n_test": 10_000, "n_train": 5000} | values


def test_the_grid_has_one_branch_left_alone_and_each_pair_in_both_orders():
    jobs = augmentation_pairs.jobs("cpu", (0,))
    assert len(jobs) == len(TRANSFORMATIONS) ** 2 + 1
    by = {}
    for job in jobs[:-1]:
        views = job.call.keywords["recipe"](size=16, channels=3).views
        assert not views.keywords["second"].keywords
        by[job.facts["first"], job.facts["second"]] = views.keywords["first"].keywords["by"]
    assert by["crop", "colour"] == ("crop", "colour") and by["colour", "crop"][0] == "colour"
    assert by["blur", "blur"] == ("blur",)


def test_the_claims_of_the_grid_follow_its_numbers():
    def of(best, crop, other, found=0.9):
        rows = []
        for a in TRANSFORMATIONS:
            for b in TRANSFORMATIONS:
                accuracy = (
                    best if {a, b} == {"crop", "colour"} else crop if a == b == "crop" else other
                )
                solved = found if a == b != "crop" else 0.5
                rows.append(row(first=a, second=b, accuracy=accuracy, contrastive_accuracy=solved))
        return [c.test(Results(rows=rows)).holds for c in augmentation_pairs.EXPERIMENT.claims]

    assert of(0.5, 0.4, 0.3) == [True, True, True]
    assert of(0.3, 0.5, 0.4) == [False, False, False]
    assert of(0.401, 0.4, 0.4) == [None, None, None]
    assert of(0.5, 0.4, 0.3, found=0.4)[2] is False


def test_stronger_colour_helps_contrast_and_hurts_labels_by_the_published_numbers():
    rows = [
        row(method=m, strength=s, accuracy=v)
        for m, values in colour_strength.PUBLISHED.items()
        for s, v in zip(colour_strength.STRENGTHS, values, strict=True)
    ]
    verdicts = [c.test(Results(rows=rows)).holds for c in colour_strength.EXPERIMENT.claims]
    assert verdicts == [True, True, True, True]
    fewer = [r | {"n_test": 2_000} for r in rows]  # 0.013 with a standard error of as much
    assert colour_strength.labels_lose(Results(rows=fewer)).holds is None


def test_a_batch_of_published_accuracies_reproduces_the_papers_reading():
    rows = [
        row(**dict(number.at), accuracy=number.value) | {"n_test": 50_000}
        for number in batch_and_epochs.EXPERIMENT.published
    ]
    verdicts = [c.test(Results(rows=rows)).holds for c in batch_and_epochs.EXPERIMENT.claims]
    assert verdicts == [True, True, True, True]
    rates = [batch_and_epochs.rate_of("paper", rule, 4096) for rule in ("linear", "square root")]
    assert rates == [4.8, 4.8] == [0.3 * 4096 / 256, 0.075 * 64]
    assert batch_and_epochs.rate_of("paper", "square root", 256) == pytest.approx(0.075 * 16)
    assert batch_and_epochs.rate_of("paper", "linear", 256) == pytest.approx(0.3)


def test_larger_networks_close_the_gap_to_labels():
    def of(small, large):
        rows = [
            row(method=m, depth=d, width=w, accuracy=v, parameters=w)
            for m, values in ((SIMCLR, small), (SUPERVISED, large))
            for (d, w), v in zip([(4, 1), (4, 4), (8, 1), (8, 4)], values, strict=True)
        ]
        return [c.test(Results(rows=rows)).holds for c in depth_and_width.EXPERIMENT.claims]

    assert of((0.40, 0.50, 0.45, 0.60), (0.60, 0.62, 0.61, 0.65)) == [True, True, True]
    assert of((0.50, 0.40, 0.45, 0.35), (0.60, 0.62, 0.61, 0.65)) == [False, False, False]


def test_losses_are_compared_at_their_best_setting():
    def of(**best):
        rows = [
            row(
                loss=word,
                value=value,
                rate=1.0,
                accuracy=best[word.split(",")[0]] - 0.2 * (value != values[0]),
            )
            for word, (_, _, values) in kinds_of_loss.LOSSES.items()
            for value in values
        ]
        return kinds_of_loss.nt_xent_is_best(Results(rows=rows)).holds

    words = {"NT-Xent": 0.6, "NT-Logistic": 0.5, "margin": 0.5}
    assert of(**words) is True and of(**words | {"margin": 0.7}) is False
    assert of(**words | {"margin": 0.6}) is None


def test_products_of_any_length_have_the_formula_of_nt_xent():
    z = 3 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.arange(4).repeat(2)
    found = temperature_and_norm.nt_xent_of_products(z, group, temperature=10.0)
    s = (z @ z.T / 10).fill_diagonal_(-math.inf)
    expected = (s.logsumexp(dim=1) - s[torch.arange(8), (torch.arange(8) + 4) % 8]).mean()
    torch.testing.assert_close(found, expected)


def test_the_published_table_of_temperatures_has_its_lesson():
    rows = [
        row(l2_norm=u, tau=t, entropy=e, contrastive_accuracy=c, accuracy=a) | {"n_test": 50_000}
        for u, t, e, c, a in temperature_and_norm.PUBLISHED
    ]
    verdicts = [c.test(Results(rows=rows)).holds for c in temperature_and_norm.EXPERIMENT.claims]
    assert verdicts == [True, True, True]


def test_the_head_is_judged_by_h_beside_z():
    def of(nonlinear, linear, none, z):
        rows = [row(head="none", dim=None, accuracy=none, z_accuracy=none)]
        for dim in (16, 64, 256):
            rows.append(row(head="linear", dim=dim, accuracy=linear, z_accuracy=z))
            rows.append(row(head="nonlinear", dim=dim, accuracy=nonlinear, z_accuracy=z))
        return [c.test(Results(rows=rows)).holds for c in projection_head.EXPERIMENT.claims]

    assert of(0.66, 0.63, 0.54, 0.55) == [True, True, True, True]
    assert of(0.54, 0.63, 0.66, 0.60) == [False, False, True, False]
    assert of(0.60, 0.60, 0.60, 0.60) == [None, None, True, None]


def test_accuracy_at_a_time_is_read_between_two_lengths():
    rows = [
        row(method="queue", epochs=e, train_seconds=t, accuracy=a)
        for e, t, a in ((20.0, 10.0, 0.4), (40.0, 20.0, 0.5))
    ]
    at = [bank_and_queue.at_time(Results(rows=rows), "queue", t) for t in (10, 200**0.5, 20)]
    assert [a for _, a in at] == pytest.approx([0.4, 0.45, 0.5])


def test_a_method_that_took_longer_is_compared_at_its_own_time():
    """Nothing is read beyond what was run: the better one must not have had more time."""

    def of(queue):
        large = [(10.0, 10.0, 0.60), (20.0, 20.0, 0.65)]
        rows = [
            row(method=m, epochs=e, train_seconds=t, accuracy=a)
            for m, runs in (("large batch", large), ("queue", queue))
            for e, t, a in runs
        ]
        found = bank_and_queue.large_at_equal_time(Results(rows=rows))
        return found.holds, "queue" in found.evidence and "after 40 s" in found.evidence

    assert of([(10.0, 40.0, 0.55), (20.0, 80.0, 0.58)]) == (True, True)
    assert of([(10.0, 40.0, 0.70), (20.0, 80.0, 0.72)]) == (None, True)
    assert of([(10.0, 10.0, 0.70), (20.0, 20.0, 0.75)]) == (False, False)


def test_clips_are_compared_by_a_sign_test():
    def of(gaps):
        rows = [
            {"seed": 0, "clip": f"c{k}", "method": m, "error": e}
            for k, gap in enumerate(gaps)
            for m, e in ((video_in_time.TRIPLETS, 0.2), (video_in_time.UNTRAINED, 0.2 + gap))
        ]
        return video_in_time.over_untrained(Results(rows=rows)).holds

    assert of([0.1] * 6) is True and of([-0.1] * 6) is False
    assert of([0.1] * 4) is None and of([0.1, 0.1, 0.1, 0.1, -0.1, -0.1]) is None


def test_two_measures_stand_side_by_side():
    made = side_by_side(Results(rows=[row(h=0.5, z=0.4), row(seed=1, h=0.6)]), {"h": "h", "z": "z"})
    assert made.by_seed("accuracy", of="h") == {0: 0.5, 1: 0.6}
    assert made.by_seed("accuracy", of="z") == {0: 0.4}


def test_saved_labels_are_decided_by_the_least_over_draws():
    at = {"finetuned_n_1": 50.0, "finetuned_n_100": 5000.0}
    few = Results(rows=[row(**at, saved_1=5.0, saved_least_1=3.0)])
    one = Results(rows=[row(**at, saved_1=1.5, saved_least_1=0.9)])
    beyond = Results(rows=[row(**at, saved_1=None, saved_least_1=100.0)])
    assert [fine_tuning.saves_labels(r).holds for r in (few, one, beyond)] == [True, None, True]


# ---- batch norm in parts -------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return small_conv(channels=3, width=16).train()


def images():
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_parts_are_embedded_with_their_own_statistics():
    x, plain = images(), network()
    found = InParts(copy.deepcopy(plain), 2, False).train()(x)
    rows = torch.tensor([[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]])
    for part in rows:
        torch.testing.assert_close(found[part], copy.deepcopy(plain)(x[part]))
    assert (found - copy.deepcopy(plain)(x)).abs().max() > 1e-3


def test_shuffled_parts_return_rows_to_their_places():
    x = images()
    made = InParts(torch.nn.Identity(), 2, True).train()
    assert torch.equal(made(x), x)
    whole = InParts(network(), 2, True).eval()
    torch.testing.assert_close(whole(x), whole.network(x))


def rank_of(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    own = torch.arange(8)[4 * rank : 4 * rank + 4]
    with torch.no_grad():
        made = network()(images()[torch.cat([own, 8 + own])])
    both = [torch.empty_like(made) for _ in range(2)]
    dist.all_gather(both, made)
    if rank == 0:
        out.put([x.tolist() for x in both])
    dist.destroy_process_group()


@pytest.mark.slow
def test_parts_are_two_processes_with_batch_norms_of_their_own():
    out = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank_of, (f"{folder}/store", out), nprocs=2, start_method="spawn")
    first, second = map(torch.tensor, out.get())
    with torch.no_grad():
        found = InParts(network(), 2, False).train()(images())
    joined = [torch.cat([a, b]) for a, b in zip(first.chunk(2), second.chunk(2), strict=True)]
    torch.testing.assert_close(found, torch.cat(joined))


# ---- jobs ----------------------------------------------------------------------------------------


def run(experiment, name, folder):
    jobs = {job.name: job for job in experiment.jobs("smoke", (0,))}
    return jobs[name].call(folder)


def test_a_run_of_each_new_measure(tmp_path):
    found = run(augmentation_pairs, "crop-noise-seed0", tmp_path / "a")
    assert 0 < found["contrastive_accuracy"] <= 1 and found["n_test"] == 128
    found = run(projection_head, "linear-8-seed0", tmp_path / "b")
    assert found["accuracy"] != found["z_accuracy"]
    found = run(temperature_and_norm, "raw-tau10-seed0", tmp_path / "c")
    assert 0 <= found["entropy"] <= found["largest_entropy"] == pytest.approx(math.log(128))
    found = run(optimiser_and_norm, "norm-local-seed0", tmp_path / "d")
    assert found["leak"] == pytest.approx(found["found_together"] - found["found_apart"])
    assert found["found_together"] > 2 / 63
    found = run(bank_and_queue, "queue-x1-seed0", tmp_path / "e")
    assert found["memory"] > 0 and found["memory_of_keys"] > 128 * 64 * 4 / 1e6
    found = run(linear_evaluation, "digits-SimCLR-seed0", tmp_path / "f")
    assert {"accuracy", "sgd_probe", "classifier", "pixels"} <= found.keys()


def test_a_drawn_clip_is_aligned_by_each_method(tmp_path):
    found = {
        m: run(video_in_time, f"drawn-{m.replace(' ', '-')}-seed0", tmp_path / m)
        for m in video_in_time.METHODS
    }
    for one in found.values():
        assert 0 <= one["error"] < 1 and one["frames"] == 60
        assert one["random"] == pytest.approx(1 / 3, abs=0.01)


def test_histograms_find_the_image_until_colours_are_distorted(tmp_path):
    found = {s: run(histogram_shortcut, f"digits-strength{s}-seed0", tmp_path) for s in ("0", "1")}
    assert found["0"]["accuracy"] > 3 * found["1"]["accuracy"] > 0
    assert len(found["0"]["histograms"]) == 2 * 4 * 64
    assert losses.nt_xent is kinds_of_loss.LOSSES["NT-Xent"][0]
