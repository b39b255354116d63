"""Transfer: metrics, splits and tests of each set; what is not at hand; a study that goes on."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support import command
from support.quick_recipe import quick

import contrapose
from contrapose import paired
from contrapose.data import concatenated, open_images
from contrapose.downstream import transfer as transfer_of
from contrapose.downstream.transfer import (
    SEARCHES,
    Search,
    at_hand,
    opened,
    published,
    read_transfer,
)
from contrapose.downstream.transfer_sets import SETS
from contrapose.errors import UserError
from contrapose.evaluation.probes import linear_probe
from contrapose.evaluation.several import eleven_point, probe_of_each


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer") / "run"
    return contrapose.train(quick(epochs=2), "digits", out=out)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data folder with three small sets of digits, laid out as their creators split them."""
    root, digits = tmp_path_factory.mktemp("data"), open_images("digits")
    x, y = digits.batch(torch.arange(len(digits)))[:, 0].numpy(), digits.label.numpy()

    def write(place, c, rows):
        folder = root / place / str(c)
        folder.mkdir(parents=True)
        for i in rows:
            Image.fromarray(x[i]).save(folder / f"{i}.png")

    for c in (0, 1, 4):
        rows = np.flatnonzero(y == c)
        write("caltech101", c, rows[: 40 + 10 * c])
        for part, chosen in (("train", rows[:20]), ("val", rows[20:40]), ("test", rows[40:90])):
            write(f"aircraft/{part}", c, chosen)
    (root / "voc2007").mkdir()
    for part, rows in (("train", range(300)), ("test", range(300, 500))):
        files = []
        for i in rows:
            Image.fromarray(x[i]).save(root / "one.png")
            files.append({"bytes": (root / "one.png").read_bytes(), "path": f"{i}.png"})
        tags = [
            [n for n, yes in (("even", y[i] % 2 == 0), ("small", y[i] < 5)) if yes] for i in rows
        ]
        table = pa.table({"image": files, "labels": tags})
        pq.write_table(table, root / "voc2007" / f"{part}-00000-of-00001.parquet")
    return root


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.setenv("CONTRAPOSE_DATA", str(home))


def test_eleven_points_are_those_of_the_definition():
    random = np.random.default_rng(0)
    for _ in range(50):
        score, wanted = random.integers(0, 8, 30) / 2.0, random.random(30) < 0.3
        if not wanted.any():
            continue
        points = []
        for t in np.arange(11) / 10:
            best = 0.0
            for cut in np.unique(score):
                there = score >= cut
                if (there & wanted).sum() / wanted.sum() >= t - 1e-12:
                    best = max(best, (there & wanted).sum() / there.sum())
            points.append(best)
        assert eleven_point(score, wanted) == pytest.approx(np.mean(points), abs=1e-12)
    assert eleven_point(np.array([3.0, 2, 1]), np.array([True, True, False])) == 1
    assert np.isnan(eleven_point(np.array([1.0]), np.array([False])))


def test_the_exchange_is_mcnemars_test_and_for_classes_every_exchange():
    random = np.random.default_rng(1)
    a, b = random.random(400) < 0.8, random.random(400) < 0.78
    found, exact = paired.by_exchange(a / 400, b / 400), paired.difference(a, b)
    assert found.p == pytest.approx(exact.p, abs=4e-3) and 0.001 < exact.p < 0.5
    assert found.value == pytest.approx(exact.value)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=4e-3)
    weight = np.repeat([1 / 4, 1 / 12, 1 / 20], 4)
    d = weight * np.array([1, 0, 1, -1, 1, 1, 0, 1, -1, 0, 1, 1])
    every = [abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-12
             for signs in itertools.product([1, -1], repeat=12)]  # fmt: skip
    assert paired.by_exchange(np.clip(d, 0, None), np.clip(-d, 0, None)).p == pytest.approx(
        np.mean(every), abs=5e-3
    )
    with pytest.raises(UserError, match="0 and 0 examples"):
        paired.by_exchange(np.zeros(0), np.zeros(0))


def test_validation_rows_choose_and_are_learned_in_the_end():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=g), torch.arange(60) % 3
    x[:, 0] += 2 * (y == 0)
    few, more = (x[:30], y[:30]), (x[30:], y[30:])
    chosen = linear_probe(*few, l2=(1.0, 1e4), validation=more)
    whole = linear_probe(x, y, l2=max(chosen.path, key=lambda p: p[1])[0])
    assert torch.allclose(chosen.weight, whole.weight, atol=1e-4)
    assert "30 validation rows" in chosen.protocol
    worst = linear_probe(*few, l2=(1.0, 1e4), validation=more, judge=lambda s, t: -float(s.std()))
    assert "l2 = 10000" in worst.chosen
    with pytest.raises(UserError, match="classes that the other rows lack"):
        linear_probe(x[y < 2], y[y < 2], validation=more)


def test_a_probe_of_each_label_is_a_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g)
    labels = (x[:, :2] + 0.5 * torch.randn(200, 2, generator=g) > 0).to(torch.int8)
    labels[3, 0] = -1
    found = probe_of_each(x[:150], labels[:150], (x[150:], labels[150:]), path=(2.0,))
    for k in range(2):
        known = labels[:, k] >= 0
        scaled = StandardScaler().fit(x[known].numpy())
        # l2 / 2 of two weights of opposite sign is l2 / 4 of their difference
        by = LogisticRegression(C=2 / 2.0, tol=1e-8).fit(
            scaled.transform(x[known].numpy()), labels[known, k].numpy()
        )
        there = by.decision_function(scaled.transform(x.numpy()))
        assert np.allclose(found.scores(x)[:, k].numpy(), there, atol=1e-3)


def test_each_set_is_split_and_measured_by_its_own_rule(run, at_home):
    found = transfer_of(run, ("caltech101", "aircraft", "voc2007"))["sets"]
    caltech, aircraft, voc = found.values()
    assert (caltech["metric"], caltech["n_train"]) == ("mean per class", 90)
    assert caltech["n"] == 10 + 20 + 50 and caltech["rows"][0]["value"] > 0.7
    assert aircraft["validation"] == "its creators'" and aircraft["n"] == 150
    assert "60 validation rows" in aircraft["rows"][0]["protocol"]
    assert voc["metric"] == "11-point mAP" and voc["labels"] == 2 and voc["n"] == 200
    low, value, high = (voc["rows"][0][name] for name in ("low", "value", "high"))
    assert 0.5 < low < value < high <= 1
    parts = opened(run, "caltech101", seed=1)
    assert parts.train.index.tolist() != opened(run, "caltech101", seed=0).train.index.tolist()
    assert not set(parts.train.files) & set(parts.test.files)


def test_two_runs_are_compared_on_the_same_images_alone(run, at_home, tmp_path):
    other = contrapose.train(quick(epochs=0.1, warmup=0, seed=5), "digits", out=tmp_path / "other")
    mine = transfer_of(run, ("caltech101", "voc2007"))["sets"]
    theirs = transfer_of(other, ("caltech101", "voc2007"))["sets"]
    found = paired.of_transfer(mine["caltech101"], theirs["caltech101"], "linear")
    gap = mine["caltech101"]["rows"][0]["value"] - theirs["caltech101"]["rows"][0]["value"]
    assert found.value == pytest.approx(gap) and 0 < found.p <= 1
    page = contrapose.write_report([run.path, other.path], tmp_path / "both.html").read_text()
    points = f"{100 * gap:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert f"first less second {points} points" in page
    assert f"<b>{100 * mine['caltech101']['rows'][0]['value']:.1f}" in page
    assert "90.3 / 94.5" in page  # SimCLR's and the supervised network's, published
    assert paired.of_transfer(mine["voc2007"], theirs["voc2007"], "linear").n == 200
    assert paired.of_transfer(mine["caltech101"], theirs["voc2007"], "linear") is None
    assert paired.of_transfer(mine["caltech101"], theirs["caltech101"], "scratch") is None


def test_what_is_not_at_hand_is_said_and_what_was_measured_is_kept(run, at_home):
    assert at_hand("aircraft") and at_hand("digits") and not at_hand("food101")
    transfer_of(run, ("aircraft",))
    found = transfer_of(run, ("caltech101",))
    assert set(found["absent"]) == set(SETS) - {"caltech101", "aircraft", "voc2007", "digits"}
    assert set(read_transfer(run.path)["sets"]) >= {"aircraft", "caltech101"}
    with pytest.raises(UserError, match=r"Food-101 is not at hand; get it from .*licence"):
        transfer_of(run, ("food101",))
    with pytest.raises(UserError, match=r"no method .*did you mean 'linear'"):
        transfer_of(run, ("digits",), methods=("liner",))


def test_fine_tuning_is_searched_kept_and_goes_on(run, at_home, monkeypatch):
    brief = Search(words="brief", how=published(8), rates=(0.03, 0.1))
    monkeypatch.setitem(SEARCHES, "default", {"finetuned": brief, "scratch": brief})
    how = dict(methods=("linear", "finetuned", "scratch"))
    entry = transfer_of(run, ("aircraft",), **how)["sets"]["aircraft"]
    assert [row["method"] for row in entry["rows"]] == ["linear", "finetuned", "scratch"]
    assert all("rate" in row["chosen"] for row in entry["rows"][1:])
    folder = run.path / "transfer" / "of-aircraft"
    assert len(list(folder.glob("finetuned-*"))) == 3
    whole = next(folder.glob("finetuned-chosen-*")) / "recipe.json"
    assert json.loads(whole.read_text())["data"]["images"] == 120  # training and validation
    file = next(folder.glob("scratch-chosen-*")) / "encoder.safetensors"
    before = file.stat().st_mtime_ns
    assert transfer_of(run, ("aircraft",), **how)["sets"]["aircraft"] == entry
    assert file.stat().st_mtime_ns == before
    several = transfer_of(run, ("voc2007",), **how)["sets"]["voc2007"]
    assert len(several["rows"]) == 1 and "one label of each image" in several["notes"][0]


def test_a_damaged_record_is_said_and_no_section_without_one(run, tmp_path, at_home):
    plain = contrapose.train(quick(epochs=0.1, warmup=0), "digits", out=tmp_path / "plain")
    assert 'id="transfer"' not in contrapose.write_report([plain.path]).read_text()
    (plain.path / "transfer").mkdir()
    (plain.path / "transfer" / "transfer.json").write_text('{"sets": {"a": {"title": 3}}}')
    page = contrapose.write_report([plain.path]).read_text()
    assert "transfer.json is damaged" in page and 'id="transfer"' not in page


def test_two_sets_of_other_classes_are_not_put_together():
    digits = open_images("digits")
    both = concatenated(digits.subset(torch.arange(5)), digits.subset(torch.arange(5, 9)))
    assert torch.equal(both.label, digits.label[:9]) and len(both) == 9
    assert torch.equal(both.batch(torch.arange(9)), digits.batch(torch.arange(9)))
    with pytest.raises(UserError, match="differ in classes or shape"):
        concatenated(digits, open_images("digits", size=10))


def test_the_command_prints_values_and_the_test(run, home, tmp_path):
    done = command.contrapose(
        "transfer", run.path, "--to", "caltech101", "--against", run.path, CONTRAPOSE_DATA=str(home)
    )
    assert done.returncode == 0, done.stderr
    assert "mean per class" in done.stdout and "Not at hand: food101" in done.stdout
