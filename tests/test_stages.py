"""Two stages in one run: what is frozen, what is drawn anew, and resumption across the border."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from support.quick_recipe import quick

import contrapose
from contrapose import encoders, explain, losses, recipes
from contrapose.data import open_images
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.explain.headline import CLASSIFIER
from contrapose.training import optim
from contrapose.training.stages import linear_stage, stages_of

LAST = partial(
    linear_stage, epochs=6, batch_size=64, lr=5e-2, optimizer=partial(optim.adamw, weight_decay=0.0)
)
FIRST = dict(
    loss=partial(losses.supcon, temperature=0.2), positives="class",
    optimizer=partial(optim.adamw, weight_decay=1e-4), scaling=optim.no_scaling, lr=1e-2, epochs=2,
    warmup=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


def two(**changes):
    return quick(**FIRST | {"second_stage": LAST} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    return contrapose.train(two(), digits, out=tmp_path_factory.mktemp("stages") / "run")


def wrong_stage(recipe):
    return replace(recipe, second_stage=None)


def parts(path, name):
    weights = Encoder.load(path).state_dict()
    return {n: x for n, x in weights.items() if n.startswith(name)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_encoder_is_that_of_the_first_stage_alone_its_statistics_too(run, digits, tmp_path):
    alone = contrapose.train(two(second_stage=None), digits, out=tmp_path / "alone")
    for part in ("backbone.", "head."):
        assert equal(parts(run.path, part), parts(alone.path, part))
    status = run.status()
    assert (status["step"], status["epoch"], status["epochs"]) == (16 + 102, 8, 8)
    assert status["estimated_statistics"]["updates"] == 16
    rows = run.metrics()
    assert "contrastive_accuracy" in rows[10] and "classifier_accuracy" not in rows[10]
    assert rows[-1]["classifier_accuracy"] > 0.6 and rows[-1]["epoch"] == 8


def test_the_classifier_is_known_to_what_reads_a_run(run, digits):
    scores = {s.metric: s.value for s in explain.evaluate(run, digits)}
    assert 0.75 < scores[CLASSIFIER] <= scores["linear probe accuracy"] + 0.02  # chance: 0.1
    assert explain.robustness(run, digits, corruptions=["fog"], severities=[1]).clean.error < 0.25
    page = contrapose.write_report([run.path]).read_text()
    assert "Accuracy of the classifier" in page and "linear_stage" in page


@pytest.mark.parametrize("at", [12, 16, 17, 50], ids=["before", "border", "after", "late"])
def test_a_run_is_resumed_bit_for_bit_on_either_side_of_the_border(run, digits, tmp_path, at):
    def stop(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(contrapose.training.loop.InterruptedTraining):
        contrapose.train(two(), digits, out=tmp_path / "cut", watch=stop)
    kept = [c.name for c in (tmp_path / "cut" / "checkpoints").iterdir()]
    assert ("step-00000016" in kept) == (at == 17)  # of step 16 itself the watcher hears before
    again = contrapose.resume(tmp_path / "cut", images=digits, recipe=two())
    assert (again.path / "encoder.safetensors").read_bytes() == (
        run.path / "encoder.safetensors"
    ).read_bytes()
    same = [{k: v for k, v in r.items() if k not in ("seconds", "waiting_share")} for r in
            again.metrics()]  # fmt: skip
    assert same == [{k: v for k, v in r.items() if k not in ("seconds", "waiting_share")} for r in
                    run.metrics()]  # fmt: skip
    assert again.status()["estimated_statistics"]["updates"] == 16


def test_a_damaged_checkpoint_of_the_second_stage_leads_back_into_the_first(run, digits, tmp_path):
    def stop(progress):
        if progress.step == 23:
            raise KeyboardInterrupt

    with pytest.raises(contrapose.training.loop.InterruptedTraining):
        contrapose.train(two(), digits, out=tmp_path / "cut", watch=stop)
    newest = tmp_path / "cut" / "checkpoints" / "step-00000022"
    damaged = torch.load(newest / "training.pt")
    torch.save(damaged | {"optimizer": {}}, newest / "training.pt")
    again = contrapose.resume(tmp_path / "cut", images=digits, recipe=two())
    assert equal(parts(again.path, ""), parts(run.path, ""))


def test_the_control_of_cross_entropy_draws_its_last_layer_anew(digits, tmp_path):
    taught = two(loss=losses.cross_entropy, head=encoders.none)
    run = contrapose.train(taught, digits, out=tmp_path / "run")
    one = contrapose.train(replace(taught, second_stage=None), digits, out=tmp_path / "one")
    assert equal(parts(run.path, "backbone."), parts(one.path, "backbone."))
    assert not equal(parts(run.path, "classifier."), parts(one.path, "classifier."))


def test_the_named_recipe_and_the_flag_make_the_same_stages():
    for size, channels in ((8, 1), (32, 3), (224, 3)):
        first, last = stages_of(recipes.recipe_for("two_stage", size, channels))
        assert first.loss.func is losses.supcon and last.loss is losses.cross_entropy
        assert last.freeze == ("backbone", "head") and last.number_of_views == 1
        assert last.second_stage is None and last.classifier_bias and first.classifier_bias
    changed = contrapose.adapt.changed(
        recipes.recipe_for("simclr", 8, 1), open_images("digits"),
        changes=["second_stage=linear_stage", "second_stage.epochs=7"],
    )  # fmt: skip
    assert stages_of(changed)[1].epochs == 7 and stages_of(changed)[1].positives == "class"


@pytest.mark.parametrize(
    "changes, says",
    [
        (
            {"second_stage": partial(linear_stage, batch_size=5000)},
            "fewer than a batch of 5000; use --set second_stage.batch_size=",
        ),
        ({"classifier": losses.cross_entropy}, "second_stage=linear_stage would draw it anew"),
        ({"second_stage": partial(wrong_stage)}, "no classifier's"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_a_folder_is_made(digits, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        contrapose.train(two(**changes), digits, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_epochs_of_a_first_stage_that_is_over_are_refused(run, digits):
    with pytest.raises(UserError, match="in its second stage"):
        contrapose.resume(run, images=digits, recipe=two(), epochs=9)
