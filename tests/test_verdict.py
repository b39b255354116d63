"""Every rule of the verdict on a constructed case, and none of them claims without its evidence."""

import random
from typing import Any

from contrapose.explain.verdict import slope, verdict


def rows(n: int = 40, **signals: Any) -> list[dict[str, Any]]:
    """A healthy run, changed where a test says so; a callable is given the share of the run."""
    healthy = {
        "loss": lambda t: 4.0 - 1.0 * min(t, 0.5),
        "chance": 6.2,
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


def test_readable_means_more_than_the_most_common_class():
    guess = score("most common class", 0.5, "none")
    assert "readable" in states(rows(), [score("linear probe accuracy", 0.6), guess])
    assert "not readable" in states(rows(), [score("linear probe accuracy", 0.52), guess])


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
    assert level.count("levelled off") >= 190  # the rule errs in at most 1 of 20 flat runs


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
