"""The study of one's own images: what goes on, what is recommended and how surely, the plan."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from contrapose import adapt, recipes
from contrapose.data import Request
from contrapose.encoders import Encoder, mlp
from contrapose.errors import UserError
from contrapose.experiments import measures
from contrapose.experiments.form import Results
from contrapose.experiments.trained import Trained
from contrapose.files import HeldElsewhere
from contrapose.partials import describe
from contrapose.studies import findings, halving, study
from contrapose.studies.findings import ACCURACY, DEFAULT

CANDIDATES = {
    "views": {"plain": ("views=crop_flip",), "strong": ("views=simclr",)},
    "loss": {"cold": ("loss.temperature=0.1",), "hot": ("loss.temperature=1",)},
    "head": {"none": ("head=none",)},
}

BOTH = ("train", "test")


def row(rung, candidate, value, factor="views", seed=0, n=10_000):
    return {"rung": rung, "candidate": candidate, "factor": factor, "seed": seed, "n_test": n,
            "n_judged": n, ACCURACY: value}  # fmt: skip


def test_the_best_third_goes_on():
    values = {DEFAULT: 0.5, "plain": 0.3, "strong": 0.6, "cold": 0.55, "hot": 0.2, "none": 0.4}
    found = Results(rows=[row(0, name, v) for name, v in values.items()])
    assert halving.survivors(found, ACCURACY) == ("strong", "cold")
    lost = Results(rows=[r for r in found.rows if r["candidate"] != "strong"])
    assert halving.survivors(lost, ACCURACY) == ("cold", "none")


def test_changes_that_beat_the_default_are_tried_together():
    def of(**values):
        rows = [row(1, name, v) for name, v in {DEFAULT: 0.5, **values}.items()]
        return halving.finalists(Results(rows=rows), ACCURACY, CANDIDATES)

    both = of(strong=0.6, cold=0.55)
    assert both == {DEFAULT: (), "strong": ("views=simclr",),
                    "combined": ("views=simclr", "loss.temperature=0.1")}  # fmt: skip
    assert list(of(strong=0.6, cold=0.45)) == [DEFAULT, "strong"]
    assert list(of(strong=0.45, plain=0.4)) == [DEFAULT, "strong"]  # the default may lose yet


def last(default, other, n=10_000, seeds=(1, 2)):
    rows = [row(2, DEFAULT, default, seed=s, n=n) for s in seeds]
    rows += [row(2, "strong", other, seed=s, n=n) for s in seeds]
    final = {DEFAULT: (), "strong": ("views=simclr",)}
    return findings.advise(Results(rows=rows), ACCURACY, final)


def test_advice_is_as_sure_as_the_noise_allows_and_never_loses_to_the_default():
    sure, fairly, noise, worse = last(0.5, 0.6), last(0.5, 0.507), last(0.5, 0.503), last(0.5, 0.4)
    assert (sure.recommended, sure.sure, fairly.sure) == ("strong", "sure", "fairly")
    assert sure.low > 0 > fairly.low and fairly.high > fairly.gain == pytest.approx(0.007)
    assert noise.recommended == worse.recommended == DEFAULT and worse.changes == ()
    assert last(0.5, 0.52, n=100).recommended == DEFAULT
    assert last(0.5, 0.6, seeds=(1,)) is None


def test_a_recipe_file_gives_the_recipe_that_was_recommended(tmp_path):
    advice = last(0.5, 0.6)
    file = tmp_path / "recipe.py"
    file.write_text(study._recipe_file({"recipe": "simclr"}, advice))
    made = runpy.run_path(str(file))["recipe"](size=32, channels=3)
    assert describe(made.views)["call"].endswith(".simclr")
    assert recipes.recipe_for(str(file), 32, 3) == made or describe(made) == describe(
        recipes.recipe_for(str(file), 32, 3)
    )


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (96, 3)])
def test_every_candidate_is_a_recipe_of_its_own(side, channels):
    pixels = torch.randint(0, 256, (40, channels, side, side), dtype=torch.uint8).numpy()
    images = Request(pixels.transpose(0, 2, 3, 1)).open("train")
    default = halving.default_of("simclr", None, (), images)
    given = halving.candidates_of(channels, side)
    kept = study._different(given, default, images)
    made = [
        str(describe(adapt.changed(default, images, changes=c)))
        for each in kept.values()
        for c in each.values()
    ]
    assert len(set(made)) == len(made) >= 9 and str(describe(default)) not in made
    assert set(kept) == {"views", "temperature", "loss", "head"}


def test_a_short_time_is_refused_with_one_that_suffices(tmp_path):
    with pytest.raises(UserError, match=r"--minutes 0.01 is too short.*use --minutes \d+"):
        study.prepared("digits", minutes=0.01, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="--minutes -1"):
        study.prepared("digits", minutes=-1, out=tmp_path / "s")


def test_a_plan_is_kept_and_another_study_refused(tmp_path):
    data = saved_images(tmp_path / "images", ["a"] * 40 + ["b"] * 40)["source"]
    (tmp_path / "images" / "train" / "b" / "broken.png").write_bytes(b"\x89PNG half")
    _, seen = study.prepared(data, minutes=60, out=tmp_path / "t")
    assert len(seen.left_out) == 1 and "broken.png" in seen.left_out[0]
    assert study.prepared(data, minutes=60, out=tmp_path / "t")[1] == seen
    file, plan = study.prepared("digits", minutes=8, out=tmp_path / "s")
    assert 0 < plan.minutes <= 8 and plan.runs[0] == 14 and "epochs on 1,151 images" in plan.words()
    assert study.prepared("digits", minutes=8, out=tmp_path / "s") == (file, plan)
    with pytest.raises(UserError, match="holds another study"):
        study.prepared("digits", minutes=9, out=tmp_path / "s")


# ---- images and labels ---------------------------------------------------------------------------


def saved_images(folder, labels, side=12):
    """A folder of noise, one class for each label, or loose files where it is None."""
    from PIL import Image

    random = np.random.default_rng(0)
    for k, label in enumerate(labels):
        place = folder / "train" / label if label else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (side, side, 3), np.uint8)).save(
            place / f"{k:03}.png"
        )
    return {"source": str(folder)}


def test_every_seed_is_judged_by_images_that_chose_nothing():
    data = {"source": "digits"}
    parts = [
        [set(halving.fifth(s, data=data, most=10**6, fold=k).index.tolist()) for s in BOTH]
        for k in range(3)
    ]
    for train, test in parts:
        assert not train & test and len(train | test) == 1438
        assert 0.18 < len(test) / 1438 < 0.22
    assert not parts[0][1] & parts[1][1] | parts[1][1] & parts[2][1] | parts[0][1] & parts[2][1]
    few = halving.fifth("train", data=data, most=100, fold=1)
    assert len(few) == 100 and set(few.index.tolist()) < parts[1][0]


def test_a_class_of_one_image_judges_nothing(tmp_path):
    label = ["<script>"] * 30 + ["b&c"] * 30 + ["lonely"]
    data = saved_images(tmp_path, label)
    train, test = (halving.fifth(s, data=data, most=4000) for s in BOTH)
    known = [sorted({train.classes[k] for k in p.label.tolist() if k >= 0}) for p in (train, test)]
    assert known == [["<script>", "b&c"]] * 2
    assert halving.judged_by(train)[0]


def test_labels_that_can_judge_nothing_are_said(tmp_path):
    train = Request("digits").open("train")
    assert halving.judged_by(replace(train, label=None)) == (False, "without labels")
    some = torch.where(torch.arange(len(train)) < 100, train.label, -1)
    judged, words = halving.judged_by(replace(train, label=some))
    assert judged and words.startswith("by 100 labels of 10 classes")
    every = torch.arange(len(train))  # each image a class of its own
    judged, words = halving.judged_by(replace(train, label=every))
    assert not judged and "only 0 classes have 5 labelled images" in words


def test_a_dozen_images_are_too_few(tmp_path):
    data = saved_images(tmp_path / "images", [None] * 12)
    with pytest.raises(UserError, match=r"has 12 images: .* needs 40 at least"):
        study.prepared(data["source"], minutes=9, out=tmp_path / "s")


def test_a_folder_is_of_one_process(tmp_path):
    file, _ = study.prepared("digits", minutes=30, out=tmp_path / "s")
    script = "import sys; from contrapose.files import held; from pathlib import Path\n"
    script += "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "s")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(HeldElsewhere, match="another process"):
            study.study(file)
        other.stdin.close()


class Quarters(torch.nn.Module):
    """h is the mean of each quarter of the image."""

    width = 12

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.mark.parametrize(("upright", "expected"), [(True, 1.0), (False, 0.25)])
def test_a_turn_is_told_only_where_there_is_an_up(upright, expected):
    pixels = np.random.default_rng(0).integers(0, 100, (120, 8, 8, 3), dtype=np.uint8)
    pixels[:, :4] += 150 if upright else 0
    images = Request(pixels).open("train")
    encoder = Encoder.build(Quarters, partial(mlp, dim=4), [0.5] * 3, [0.25] * 3)
    of = Trained(
        encoder=encoder.eval(), recipe=recipes.recipe_for("simclr", 8, 3), train=images,
        test=images, device="cpu", seed=0,
    )  # fmt: skip
    found = measures.rotation_probe(of, most=100)
    assert found["n_turned"] == 100
    assert found["rotation_probe"] == pytest.approx(expected, abs=0.0 if upright else 0.2)


# ---- verdicts ------------------------------------------------------------------------------------


def test_views_that_help_and_destroy_are_named():
    values = {DEFAULT: 0.5, "strong": 0.6, "plain": 0.4, "mild": 0.501}
    rows = [row(0, n, v, factor="views" if n != DEFAULT else DEFAULT) for n, v in values.items()]
    verdict = findings.views_destroy(Results(rows=rows))
    assert verdict.holds and "destroys: plain -0.100" in verdict.evidence
    assert "helps: strong +0.100" in verdict.evidence
    assert "no difference beyond noise: mild" in verdict.evidence
    assert findings.views_destroy(Results(rows=[rows[0], rows[1]])).holds is None


def test_a_shortcut_is_what_views_share_and_h_holds():
    def of(bits, read):
        looked = row(-1, DEFAULT, None, factor="shortcuts", n=512) | {
            "shared": {"border": {"value": bits, "low": bits - 0.1}}, "changes": [],
        }  # fmt: skip
        last = row(2, DEFAULT, 0.5, factor=DEFAULT, seed=1) | {"read": {"border": read}}
        return findings.shortcut(Results(rows=[looked, last]), criterion=ACCURACY)

    assert of(4.0, 0.9).holds is False and "border can stand for the image" in of(4.0, 0.9).evidence
    assert of(1.0, 0.9).holds and of(4.0, 0.2).holds
    assert "of 9.0 bits that name an image: border 4.0 bits, R² of h 0.20" in of(4.0, 0.2).evidence


def test_labels_are_saved_only_beyond_noise():
    def of(**more):
        saved = {"labels": "5-per-class", "n": 50, "beyond": 20.0, "draws": 3, "not_reached": 0,
                 "factor": 3.0, "low": 2.0, "high": 4.0} | more  # fmt: skip
        rows = [row(3, DEFAULT, None, factor="labels") | {"saved": [saved]}]
        return findings.saves_labels(Results(rows=rows), counted=True)

    assert "more --minutes" in findings.saves_labels(Results(rows=[]), counted=False).evidence
    assert of().holds and "saves 100 labels" in of().evidence
    assert of(low=0.5, high=9.0).holds is None and of(factor=0.5, low=0.3, high=0.8).holds is False
    assert of(factor=None, low=None, high=None, not_reached=3).holds


def test_signals_are_compared_with_labels_only_where_accuracies_differ_beyond_noise():
    def of(step, n):
        rows = [
            row(0, f"c{k}", 0.5 + step * k, n=n) | dict.fromkeys(findings.SIGNALS, float(-k))
            for k in range(6)
        ]
        return findings.signals_agree(Results(rows=rows))

    assert of(0.05, 1000).holds is False
    assert of(0.05, 20).holds is None and "no more than noise" in of(0.05, 20).evidence


def test_the_headline_is_what_is_recommended():
    def of(value):
        rows = [
            row(2, n, v, seed=s) for n, v in ((DEFAULT, 0.5), ("strong", value)) for s in (1, 2)
        ]
        final = {DEFAULT: (), "strong": ("views=simclr",)}
        return findings.lead(Results(rows=rows), criterion=ACCURACY, final=final)

    assert of(0.6)[:2] == ("good", "Use strong") and "+0.100" in of(0.6)[2]
    assert of(0.4)[1] == "Keep the default" and "-0.100" in of(0.4)[2]


@pytest.mark.slow
def test_a_study_goes_on_and_ends_in_a_recipe(tmp_path):
    file, _ = study.prepared("digits", minutes=8, out=tmp_path)
    request = study._read(tmp_path)
    request |= {"images": 400, "epochs": 1, "batch": 32}
    request["candidates"] = {f: dict(list(c.items())[:2]) for f, c in request["candidates"].items()}
    study._write(tmp_path, request)
    advice, errors, page = study.study(file)
    assert not errors and 560 <= advice.n <= 590 and page.exists()  # two fifths
    assert json.loads((tmp_path / "study.json").read_text())["recommended"] == advice.recommended
    recipes.recipe_for(str(tmp_path / "recipe.py"), 8, 1)
    results = sorted(tmp_path.glob("study-cpu/*/result.json"))
    rungs = [p.parent.name.partition("-")[0] for p in results]
    assert rungs.count("rung0") == 9 and rungs.count("rung1") == 4 and rungs.count("rung2") >= 4
    assert rungs.count("shortcuts") == rungs.count("labels") == 1
    first = [p.stat().st_mtime_ns for p in results]
    results[-1].unlink()  # as if it had been killed there
    again, _, _ = study.study(file)
    assert again == advice
    assert [p.stat().st_mtime_ns for p in results[:-1]] == first[:-1]
