"""The search for a temperature: what it recommends, what it refuses, and that it goes on."""

import json
from pathlib import Path

import numpy as np
import pytest

from contrapose.experiments.form import Results
from contrapose.experiments.trained import both_splits
from contrapose.partials import describe
from contrapose.studies import tuning
from contrapose.studies.tuning import ACCURACY, CRITERION, recommend

QUICK = ("backbone.width=16", "batch_size=64")


def of(table, measure=CRITERION):
    """Temperature -> a value for each seed."""
    rows = [
        {"tau": t, "seed": seed, measure: value}
        for t, values in table.items()
        for seed, value in enumerate(values)
    ]
    return Results(rows=rows, measures=tuple(tuning.MEASURES))


def test_a_clear_best_is_sure_and_ties_are_named():
    clear = recommend(of({0.1: [40, 41], 0.2: [50, 51], 0.5: [42, 43]}), labelled=False)
    assert (clear.temperature, clear.sure, clear.close) == (0.2, "sure", (0.2,))
    tied = recommend(
        of({0.1: [40, 41], 0.2: [50, 52], 0.3: [50, 51], 0.5: [42, 43]}), labelled=False
    )
    assert tied.sure == "fairly" and tied.close == (0.2, 0.3)
    assert any("Not significantly worse: 0.3." in s for s in tied.sentences)
    assert any("not an accuracy" in s for s in tied.sentences)


def test_noise_and_single_seeds_leave_it_open():
    noisy = recommend(of({0.1: [40, 60], 0.2: [45, 58], 0.5: [39, 61]}), labelled=False)
    assert noisy.sure == "cannot tell" and noisy.close == (0.1, 0.2, 0.5)
    single = recommend(of({0.1: [40], 0.2: [50]}), labelled=False)
    assert single.sure == "cannot tell" and any("--seeds 2" in s for s in single.sentences)


def test_the_end_of_the_grid_is_never_sure():
    found = recommend(of({0.1: [60, 61], 0.2: [50, 51], 0.5: [42, 43]}), labelled=False)
    assert found.temperature == 0.1 and found.sure == "fairly"
    assert any("the lowest tried: a lower one" in s for s in found.sentences)


def test_labels_decide_where_there_are_any():
    rank = of({0.1: [60, 61], 0.2: [50, 51], 0.3: [44, 45], 0.5: [42, 43]})
    right = of({0.1: [0.5, 0.5], 0.2: [0.7, 0.7], 0.3: [0.6, 0.6], 0.5: [0.4, 0.4]}, ACCURACY)
    rows = [a | b for a, b in zip(rank.rows, right.rows, strict=True)]
    found = recommend(Results(rows=rows, measures=rank.measures), labelled=True)
    assert (found.temperature, found.criterion, found.sure) == (0.2, ACCURACY, "sure")
    assert any("Spearman's 0.40" in s for s in found.sentences)


def test_too_little_recommends_nothing():
    assert recommend(of({0.1: [40, 41]}), labelled=False) is None


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise of two brightnesses, without labels."""
    file = tmp_path_factory.mktemp("images") / "photos.npy"
    random = np.random.default_rng(0)
    pixels = (
        random.integers(0, 120, (200, 12, 12, 3)) + 100 * (np.arange(200) % 2)[:, None, None, None]
    )
    np.save(file, pixels.astype(np.uint8))
    return file


def request(photos, out, **change):
    given = {"temperatures": (0.1, 0.5), "epochs": 1, "changes": QUICK, "encoder": "small_conv"}
    return tuning.prepared(photos, out=out, device="cpu", **given | change)


def test_a_search_without_labels_recommends_and_is_not_done_twice(photos, tmp_path):
    file = request(photos, tmp_path / "search")
    advice, rows, errors, page = tuning.search(file, seeds=2)
    assert not errors and page.is_file() and advice.criterion == CRITERION
    written = json.loads((file.parent / "tuning.json").read_text())
    assert written["temperature"] == advice.temperature in (0.1, 0.5)
    assert [row["seeds"] for row in rows] == [2, 2] and "linear_probe" not in rows[0]
    results = sorted(file.parent.glob("*/*/result.json"))
    before = [result.stat().st_mtime_ns for result in results]
    assert len(before) == 4 and request(photos, tmp_path / "search") == file
    tuning.search(file, seeds=2)
    assert [result.stat().st_mtime_ns for result in results] == before


def test_labels_are_noticed_and_the_test_split_is_not_touched(tmp_path):
    file = tuning.prepared("digits", out=tmp_path, images=500, changes=QUICK, epochs=1)
    assert "labelled=True" in file.read_text()
    jobs = tuning.experiments.experiment(str(file)).jobs(tuning.SCALE, (0,))
    source = jobs[0].call.keywords["images"]
    train, held = both_splits(source, None, None, None)
    assert len(train) + len(held) == 500
    with pytest.raises(tuning.NoSuchSplit):
        source("test")
    assert [job.facts["tau"] for job in jobs] == list(tuning.GRID)
    assert describe(jobs[0].call)["epochs"] == 1


@pytest.mark.parametrize(
    "change, says",
    [
        ({"temperatures": (0.1,)}, "--temperatures 0.1: give two positive numbers"),
        ({"temperatures": (0.1, -1.0)}, r"--temperatures 0\.1,-1: give two"),
        ({"images": 20}, "fewer than a batch"),
        ({"recipe": "align_uniform"}, "has no 'temperature'"),
        ({"recipe": "supcon"}, "learns from classes"),
        ({"changes": ("batch_sise=3",)}, "did you mean 'batch_size'"),
        ({"encoder": "resnet19"}, "did you mean 'resnet18'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_a_folder_is_made(photos, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        request(photos, tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_another_search_in_the_folder_is_not_overwritten(photos, tmp_path):
    file = request(photos, tmp_path)
    with pytest.raises(ValueError, match="holds another search; name another folder"):
        request(photos, tmp_path, epochs=2)
    assert Path(file).read_text().count("epochs=1") == 1
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy"):
        tuning.prepared(tmp_path / "nowhere.npy", out=tmp_path / "other")
