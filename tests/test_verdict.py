"""Every rule of the verdict on a constructed case, and none of them claims without its evidence."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import contrapose
from contrapose import explain, paired
from contrapose.data import open_images
from contrapose.encoders import Encoder
from contrapose.explain.verdict import slope, verdict
from contrapose.training.run import Run


def rows(n: int = 40, **signals: Any) -> list[dict[str, Any]]:
    """A healthy run, changed where a test says so; a callable is given the share of the run."""
    healthy = {
        "loss": lambda t: 4.0 - 1.0 * min(t, 0.5),
        "loss_at_chance": 6.2,
        "contrastive_accuracy": lambda t: 0.2 + 0.5 * t,
        "effective_rank_z": 40.0,
        "effective_rank_h": 60.0,
        "uniformity": -3.0,
    } | signals
    return [
        {"step": i + 1} | {k: v(i / n) if callable(v) else v for k, v in healthy.items()}
        for i in range(n)
    ]


def states(*args: Any, **keywords: Any) -> list[str]:
    return [finding.state for finding in verdict(*args, **keywords)]


def score(metric: str, value: float, features: str = "h") -> dict[str, Any]:
    return {
        "metric": metric, "value": value, "low": value - 0.02, "high": value + 0.02,
        "confidence": 0.95, "n": 1000, "split": "test", "features": features,
    }  # fmt: skip


def test_a_healthy_run_is_learning_spread_out_and_level():
    assert states(rows()) == ["learning", "spread", "no labels", "levelled off"]


def test_a_loss_at_the_level_of_guessing_is_at_chance():
    assert states(rows(loss=6.2, contrastive_accuracy=0.002))[0] == "at chance"


def test_a_loss_above_guessing_is_at_chance_too():
    assert states(rows(loss=7.0, contrastive_accuracy=0.0))[0] == "at chance"


def test_one_direction_for_all_images_is_collapsing():
    assert "collapsing" in states(rows(effective_rank_z=1.2, uniformity=-0.01))


def test_few_of_many_dimensions_is_said():
    assert "few dimensions" in states(rows(effective_rank_h=9.0), width=512)
    assert "spread" in states(rows(effective_rank_h=60.0), width=512)


def test_waiting_for_images_is_said_above_a_twentieth_of_the_time():
    waited = rows(seconds=lambda t: 400 * t, waiting_share=lambda t: 0.8 if t > 0.5 else 0.02)
    found = next(f for f in verdict(waited) if f.state == "waiting for images")
    share = (0.02 * 20 + 0.8 * 19) / 39
    assert found.sentence.startswith(f"{share:.0%} of the time was spent waiting for images")
    assert "waiting for images" not in states(rows(seconds=lambda t: 4 * t, waiting_share=0.04))


def test_a_solved_task_is_saturated():
    assert states(rows(loss=0.05, contrastive_accuracy=0.999))[0] == "saturated"


def test_pixels_that_tell_more_than_the_encoder_raise_a_suspicion():
    scores = [score("linear probe accuracy", 0.5), score("linear probe accuracy", 0.9, "pixels")]
    solved = rows(contrastive_accuracy=0.95)
    assert "shortcut suspected" in states(solved, scores)
    assert "shortcut suspected" not in states(rows(loss=6.2, contrastive_accuracy=0.0), scores)
    overlapping = [
        score("linear probe accuracy", 0.9),
        score("linear probe accuracy", 0.92, "pixels"),
    ]
    assert "shortcut suspected" not in states(solved, overlapping)


def test_the_headline_is_green_only_beyond_pixels_and_beyond_the_untrained_encoder():
    def lead(h: float, pixels: float, untrained: float, guess: float = 0.1) -> tuple[str, str]:
        values = {"h": h, "pixels": pixels, "untrained h": untrained}
        found = [score("linear probe accuracy", v, of) for of, v in values.items()]
        first = verdict(rows(), [*found, score("most common class", guess, "none")])[0]
        return first.state, first.level

    assert lead(0.9, 0.8, 0.7) == ("better than pixels and than before training", "good")
    assert lead(0.7, 0.8, 0.6) == ("worse than raw pixels", "bad")
    assert lead(0.7, 0.6, 0.8) == ("worse than before training", "bad")
    assert lead(0.7, 0.6, 0.7) == ("no better than before training", "bad")
    assert lead(0.7, 0.7, 0.6) == ("no better than raw pixels", "warn")
    assert lead(0.52, 0.3, 0.3, guess=0.5) == ("not readable", "bad")


def test_the_headline_tests_pairs_where_intervals_overlap():
    """40 of 10,000 images that pixels alone name are decisive, though both intervals overlap."""
    images = np.arange(10_000)
    h, pixels, untrained, guess = images < 9_000, images < 9_040, images < 5_000, images < 1_000
    found = [
        score("linear probe accuracy", float(x.mean()), of)
        | {"n": len(x), "images": "one set", "right": paired.packed(x)}
        for x, of in ((h, "h"), (pixels, "pixels"), (untrained, "untrained h"))
    ]
    found.append(score("most common class", 0.1, "none") | {"right": paired.packed(guess)})
    first = verdict(rows(), found)[0]
    assert first.state == "worse than raw pixels"
    assert "0 images h alone, 40 the other alone, p = 1.8e-12" in first.evidence  # 2 / 2^40
    other = [f | {"images": f["features"]} for f in found]  # of other images: no pairs
    assert verdict(rows(), other)[0].state == "no better than raw pixels"


def test_a_frozen_backbone_is_not_blamed_for_staying_as_it_was():
    still = {"signals": {"frozen": ["backbone"], "images": 1000}}
    probe, own = score("linear probe accuracy", 0.9), "classifier accuracy"
    found = states(
        rows(), [probe, score(own, 0.89), score("most common class", 0.1, "none")], **still
    )
    assert found[0] == "frozen backbone" and "learning" not in found
    assert states(rows(), [probe, score(own, 0.5)], **still)[0] == "classifier not at its end"


def test_what_neighbours_share_is_said_beside_the_most_common_class():
    signals = {"classes": 2, "most_common_class": 0.9}
    said = {f.state: f.sentence for f in verdict(rows(knn=0.9), signals=signals)}
    assert said["accuracy"].endswith(
        "a class in 90.0% of cases; the most common class has 90.0% of them."
    )
    assert "one class" in states(rows(knn=1.0), signals={"classes": 1, "most_common_class": 1.0})


def test_at_chance_is_said_against_the_untrained_encoder_and_not_against_one_point():
    signals = {"images": 400, "task_accuracy": 0.3, "task_accuracy_untrained": 0.05}
    signals["task_gain_p"] = 1e-9
    cold = rows(
        loss=lambda t: 9.5 - 3 * t, loss_at_chance=6.2
    )  # a cold loss that fell, above ln(2B - 1)
    assert states(cold)[0] == states(cold, signals=signals)[0] == "learning"
    still = rows(
        loss=5.85, loss_at_chance=6.2, contrastive_accuracy=0.06
    )  # never trained, below it
    assert states(still)[0] == "at chance"
    assert states(still, signals=signals | {"task_accuracy": 0.06})[0] == "at chance"
    easy = signals | {"task_accuracy": 0.99, "task_accuracy_untrained": 0.99}
    assert states(still, signals=easy)[0] == "easy task"


def test_the_saved_encoder_is_judged_and_where_it_differs_from_batches_that_is_said():
    lagging = {
        "uniformity": -0.56, "uniformity_views": -0.6, "mean_cosine": 0.84,
        "effective_rank_z": 20.0, "effective_rank_h": 60.0, "width_h": 128,
    }  # fmt: skip
    assert {"one-sided", "modes disagree"} <= set(states(rows(), signals=lagging))
    spread = lagging | {"uniformity": -3.0, "uniformity_views": -2.9, "mean_cosine": 0.01}
    assert "spread" in states(rows(), signals=spread)
    assert "modes disagree" not in states(rows(), signals=spread)
    made = {"state": "finished", "estimated_statistics": {"updates": 18, "views": 2, "images": 99}}
    assert "statistics estimated" in states(rows(), status=made, signals=spread)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The verdict of a run on digits in the fewest steps, and the run."""
    folder = tmp_path_factory.mktemp("digits")

    def trained(name: str, *changes: str, **keywords: Any) -> tuple[list[str], dict[str, Any], Run]:
        run = contrapose.train(
            "simclr", "digits", out=folder / name, device="cpu", changes=changes, **keywords
        )
        contrapose.evaluate(run, device="cpu")
        found = explain.diagnose(run, device="cpu")
        return [f["state"] for f in found["verdict"]], found["signals"], run

    return trained


def test_a_run_that_hardly_moved_is_no_better_than_before_training(digits):
    said, _, _ = digits("still", "lr=1e-9", epochs=4)
    assert said[0] in ("worse than raw pixels", "no better than before training")
    assert "at chance" in said and "learning" not in said


def test_a_cold_run_that_learned_is_not_at_chance_and_its_saved_encoder_is_spread(digits):
    said, signals, run = digits("cold", epochs=5, temperature=0.05)
    assert "learning" in said and "statistics estimated" in said
    assert signals["mean_cosine"] < 0.05 and signals["uniformity"] < -2.5
    assert run.status()["estimated_statistics"]["updates"] == 25
    saved = load_file(run.path / "checkpoints/step-00000025/weights.safetensors")
    used = Encoder.load(run.path).state_dict()
    differ = {name for name in saved if not torch.equal(saved[name], used[name])}
    assert differ and all("running_" in name for name in differ)
    contrapose.resume(run.path, device="cpu")  # finished: the file stays as it is
    assert all(torch.equal(x, used[n]) for n, x in Encoder.load(run.path).state_dict().items())


def test_another_set_leaves_the_scores_of_the_run_as_they_are(digits):
    _, _, run = digits("again", epochs=1)
    kept = {n: (run.path / n).read_bytes() for n in ("evaluation.json", "pictures.npz")}
    random = np.random.default_rng(0)
    other = (random.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2)
    found = contrapose.evaluate(run, other, device="cpu")
    assert {n: (run.path / n).read_bytes() for n in kept} == kept
    assert len(json.loads((run.path / "evaluation-array.json").read_text())) == len(found)


def test_after_many_updates_the_statistics_are_those_of_training(tmp_path):
    images = open_images("digits").subset(torch.arange(64))
    run = contrapose.train("simclr", images, out=tmp_path / "r", epochs=12, batch_size=16)
    saved = load_file(run.path / "checkpoints/step-00000048/weights.safetensors")
    assert all(torch.equal(saved[n], x) for n, x in Encoder.load(run.path).state_dict().items())
    assert "estimated_statistics" not in run.status()


def test_a_flat_loss_at_the_end_of_a_schedule_is_not_called_converged():
    flat = verdict(rows(lr=lambda t: 1.0001 - t))[-1]
    assert flat.state == "levelled off" and "learning rate ran out" in flat.sentence


def test_a_task_solved_at_once_with_few_dimensions_raises_a_suspicion():
    solved = rows(contrastive_accuracy=0.97, effective_rank_h=4.0)
    assert "shortcut suspected" in states(solved)
    assert "shortcut suspected" not in states(rows(contrastive_accuracy=0.97))


def test_what_the_finder_of_composed_batches_found_is_said():
    found = verdict(rows(part_size=lambda t: 128.0 if t < 0.1 else 40.0, epoch=lambda t: 20 * t))
    said = next(f for f in found if f.state == "conditional batches")
    assert said.evidence == "groups of 40, by epoch 2.00; batches of 128 before"
    assert "plain batches" in states(rows(part_size=128.0))
    assert {"conditional batches", "plain batches"}.isdisjoint(states(rows()))


def test_a_falling_loss_is_still_improving_and_a_rising_one_is_said():
    assert "still improving" in states(rows(loss=lambda t: 4 - 2 * t))
    assert "rising" in states(rows(loss=lambda t: 3 + 2 * t))


def test_noise_is_no_trend():
    noise = random.Random(0)
    level = [states(rows(loss=lambda t: noise.gauss(3.0, 0.2)))[-1] for _ in range(200)]
    assert level.count("too noisy to tell") >= 190  # the rule errs in at most 1 of 20 flat runs
    quiet = [states(rows(loss=lambda t: noise.gauss(3.0, 0.002)))[-1] for _ in range(200)]
    assert quiet.count("levelled off") >= 190


def test_a_short_run_has_no_trend_and_no_rows_no_verdict():
    assert "short" in states(rows(4))
    assert states([]) == ["no measurements"]


def test_a_failed_run_says_so_first_with_its_reason():
    failed = {"state": "failed", "reason": "the loss was nan at step 7", "step": 7, "steps": 90}
    first = verdict(rows(), status=failed)[0]
    assert (first.state, first.level) == ("failed", "bad") and "nan at step 7" in first.sentence


def test_missing_signals_are_not_invented():
    found = verdict([{"step": 1, "loss": 1.0}])
    assert found[0].state == "unknown task" and all(f.evidence for f in found)


def test_slope_of_a_line_is_its_fall_without_noise():
    fall, noise = slope([5.0, 4.0, 3.0, 2.0])
    assert abs(fall - 3.0) < 1e-12 and noise < 1e-12


def of_several(value: float, draws: Any, features: str = "h", metric: str = "") -> dict[str, Any]:
    """A mean average precision whose interval alone would tell nothing."""
    found = score(f"mean average precision{metric}", value, features)
    wide = {"low": value - 0.3, "high": value + 0.3, "images": "f0", "draws": list(draws)}
    return found | wide


@pytest.mark.parametrize(
    ("h", "pixels", "untrained", "state"),
    [
        (0.6, 0.5, 0.4, "better than pixels and than before training"),
        (0.45, 0.5, 0.4, "worse than raw pixels"),
        (0.6, 0.5, 0.6, "no better than before training"),
        (0.6, 0.6, 0.4, "no better than raw pixels"),
        (0.2, 0.5, 0.4, "not readable"),
    ],
)
def test_images_with_several_labels_are_judged_by_mean_average_precision_on_the_same_draws(
    h: float, pixels: float, untrained: float, state: str
) -> None:
    noise = 0.2 * np.sin(np.arange(200.0))  # of the draws, shared by all
    own = 0.01 * np.cos(7 * np.arange(200.0))  # of h alone
    scores = [
        of_several(h, h + noise + own), of_several(pixels, pixels + noise, "pixels"),
        of_several(untrained, untrained + noise, "untrained h"),
        of_several(0.2, 0.2 + noise, "none", " of chance"),
    ]  # fmt: skip
    findings = verdict(rows(), scores)
    assert findings[0].state == state and "labels" in findings[0].sentence
    assert "p = " in findings[0].evidence and f"chance {0.2:.1%}" in findings[0].evidence
    assert "no labels" not in [f.state for f in findings]
    said = next(f for f in findings if f.state == "accuracy").sentence
    assert f"{h:.1%}" in said and "20.0%" in said
