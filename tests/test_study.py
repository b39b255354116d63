"""The study of one's own images: what goes on, what is recommended and how surely, the plan."""

import json
import runpy

import pytest
import torch

from contrapose import adapt, recipes
from contrapose.data import Request
from contrapose.errors import UserError
from contrapose.experiments.form import Results
from contrapose.partials import describe
from contrapose.studies import findings, halving, study
from contrapose.studies.findings import ACCURACY, DEFAULT

CANDIDATES = {
    "views": {"plain": ("views=crop_flip",), "strong": ("views=simclr",)},
    "loss": {"cold": ("loss.temperature=0.1",), "hot": ("loss.temperature=1",)},
    "head": {"none": ("head=none",)},
}


def row(rung, candidate, value, factor="views", seed=0, n=10_000):
    return {"rung": rung, "candidate": candidate, "factor": factor, "seed": seed, "n_test": n,
            ACCURACY: value}  # fmt: skip


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
    file, plan = study.prepared("digits", minutes=8, out=tmp_path / "s")
    assert 0 < plan.minutes <= 8 and plan.runs[0] == 14 and "epochs on 1,151 images" in plan.words()
    assert study.prepared("digits", minutes=8, out=tmp_path / "s") == (file, plan)
    with pytest.raises(UserError, match="holds another study"):
        study.prepared("digits", minutes=9, out=tmp_path / "s")


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
