"""Training: exact resumption, refusals before anything starts, and what survives a bad end."""

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.quick_recipe import quick

import contrapose
from contrapose import adapt, keys, losses, recipes
from contrapose.data import open_images
from contrapose.encoders import Encoder
from contrapose.training.loop import InterruptedTraining
from contrapose.training.objective import lasting_groups
from contrapose.training.run import Run
from contrapose.training.step import NonFiniteError

QUICK = ["--encoder", "small_conv", "--batch-size", "128", "--no-explain", "--device", "cpu"]


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


def final(run: Run) -> tuple[dict, dict, list]:
    """Weights, training state and metrics without their clock."""
    weights, state = run.load_checkpoint()
    clock = ("seconds", "waiting_share")
    rows = [{k: v for k, v in row.items() if k not in clock} for row in run.metrics()]
    return weights, {k: v for k, v in state.items() if k != "seconds"}, rows


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("stop_at", [22, 16], ids=["between epochs", "within an epoch"])
def test_a_run_stopped_and_resumed_ends_bit_for_bit_where_an_unbroken_one_does(
    tmp_path, digits, stop_at
):
    whole = contrapose.train(quick(), digits, out=tmp_path / "whole")

    def stop(progress):
        if progress.step == stop_at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTraining, match="--resume"):
        contrapose.train(quick(), digits, out=tmp_path / "broken", watch=stop)
    broken = Run.open(tmp_path / "broken")
    assert broken.read("status.json")["state"] == "interrupted"
    assert broken.load_checkpoint()[1]["step"] == stop_at
    torch.manual_seed(12345)  # a new process would have another state
    contrapose.resume(broken, images=digits)
    assert same(final(broken), final(whole))
    assert broken.read("status.json")["state"] == "finished"


KEYS = {
    "bank": dict(keys=partial(keys.bank, momentum=0.5), number_of_views=1),
    "queue": dict(keys=partial(keys.queue, size=300, momentum=0.9, chunk=50), chunk=70),
    "memory": dict(
        keys=partial(keys.memory, size=300), loss=partial(losses.supcon_memory, temperature=0.2)
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_resumed_bit_for_bit_within_an_epoch(tmp_path, digits, kind):
    contrast = partial(losses.info_nce, temperature=0.2)
    recipe = quick(**{"loss": contrast, "epochs": 1, "warmup": 0} | KEYS[kind])
    whole = contrapose.train(recipe, digits, out=tmp_path / "whole")

    def stop(progress):
        if progress.step == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTraining):
        contrapose.train(recipe, digits, out=tmp_path / "broken", watch=stop)
    torch.manual_seed(12345)
    run = contrapose.resume(tmp_path / "broken", images=digits)
    assert same(final(run), final(whole))
    assert Encoder.load(run.path).state_dict().keys() == final(whole)[0].keys()  # the query's alone


def test_keys_are_chosen_on_the_command_line_and_a_loss_that_does_not_fit_is_named(
    tmp_path, digits
):
    bank = ["keys=bank", "keys.momentum=0.7"]
    with pytest.raises(ValueError, match=r"nt_xent takes \(z, group\).*keys=bank.*info_nce"):
        contrapose.train(quick(), digits, out=tmp_path / "run", changes=bank)
    assert not (tmp_path / "run").exists()
    run = contrapose.train(
        quick(epochs=1), digits, out=tmp_path / "run", changes=[*bank, "loss=info_nce"]
    )
    written = run.read("recipe.json")["recipe"]
    assert written["keys"]["momentum"] == 0.7 and written["loss"]["temperature"] == 0.2
    assert run.metrics()[-1]["loss_at_chance"] == pytest.approx(math.log(len(digits)), abs=1e-5)
    with pytest.raises(ValueError, match="classes would go unseen"):
        labelled = [*bank, "positives=class", "loss=info_nce"]
        contrapose.train(quick(), digits, out=tmp_path / "no", changes=labelled)
    with pytest.raises(ValueError, match="put --set keys=bank before it"):
        contrapose.train(quick(), digits, out=tmp_path / "no", changes=["keys.momentum=0.5"])


@pytest.mark.slow
def test_a_killed_process_is_resumed_from_its_last_checkpoint(tmp_path):
    command = [sys.executable, "-m", "contrapose", "train", "digits", "--epochs", "6", *QUICK]
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "lo')  # a line cut short
    contrapose.resume(out)
    whole = contrapose.train(
        "simclr", "digits", epochs=6, encoder="small_conv", batch_size=128, device="cpu",
        out=tmp_path / "whole",
    )  # fmt: skip
    assert same(final(Run.open(out)), final(whole))


def test_an_encoder_is_loaded_from_its_run_without_executing_code(tmp_path, digits):
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run")
    encoder = Encoder.load(run.path)
    assert not encoder.training and encoder.width == 32
    used, saved = (
        {name: x for name, x in weights.items() if "running_" not in name}  # estimated at the end
        for weights in (encoder.state_dict(), run.load_checkpoint()[0])
    )
    assert same(used, saved)


@pytest.mark.parametrize("of", ["loss", "rows"])
def test_a_loss_that_turns_non_finite_stops_and_keeps_the_last_good_weights(tmp_path, digits, of):
    steps = []

    def blow_up(z, group):
        steps.extend([z] * z.requires_grad)  # the chance level is asked of the loss too
        factor = torch.nan if len(steps) > 16 else 1.0  # the first is the dry run
        if of == "rows":
            return losses.nt_xent(factor * z, group, temperature=0.2)
        return factor * losses.nt_xent(z, group, temperature=0.2)

    with pytest.raises(NonFiniteError, match=r"step 16 .*last good one is step-00000012"):
        contrapose.train(quick(loss=blow_up), digits, out=tmp_path / "run")
    run = Run.open(tmp_path / "run")
    weights, state = run.load_checkpoint()
    assert state["step"] == 12 and all(w.isfinite().all() for w in weights.values())
    assert run.read("status.json")["state"] == "failed"
    assert "step 16" in run.read("status.json")["reason"]


def test_an_image_without_a_label_is_its_own_group_in_every_batch():
    supervised = quick(positives="class")
    label, index = torch.tensor([3, -1, 0, -1]), torch.tensor([7, 0, 8, 9])
    group = lasting_groups(supervised, label, index)
    assert group[[0, 2]].tolist() == [3, 0] and (group >= 0).all()  # below 0: no label, alone
    later = lasting_groups(supervised, label.flip(0), index.flip(0))
    assert torch.equal(later.flip(0), group) and len(group.unique()) == 4


def test_a_full_disk_is_an_error_that_names_the_last_good_checkpoint(tmp_path, digits):
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run")
    before = final(run)
    weights = Encoder.load(run.path).to_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(weights) // 2, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"step 12 could not be written.*disk full.*last good one is step-"
        ):
            run.save_checkpoint(12, weights, {"step": 12})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert same(final(run), before)
    assert not list(run.path.glob("**/*.new"))


def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(tmp_path, digits):
    out = tmp_path / "run"
    unlabelled = open_images(torch.randint(0, 255, (200, 1, 8, 8), dtype=torch.uint8))
    threes = digits.subset(digits.label.eq(3).nonzero().flatten())
    cases = [
        (quick(batch_size=4096), digits, "1438 images, fewer than a batch of 4096"),
        (quick(positives="class"), unlabelled, "no labels"),
        (quick(positives="class", batch_size=64), threes, "two"),
    ]
    for recipe, images, says in cases:
        with pytest.raises(ValueError, match=says):
            contrapose.train(recipe, images, out=out)
        assert not out.exists()


def test_an_existing_folder_is_never_written_over(tmp_path, digits):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="--resume"):
        contrapose.train(quick(), digits, out=tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_folders_that_are_no_run_of_this_version_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no recipe\.json"):
        Run.open(tmp_path)
    (tmp_path / "recipe.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match="run format 7, this version reads 1"):
        Run.open(tmp_path)
    (tmp_path / "recipe.json").write_text('{"form')
    with pytest.raises(ValueError, match="damaged"):
        Run.open(tmp_path)


def test_one_run_is_written_by_one_process_at_a_time(tmp_path, digits):
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run")
    with run.locked(), pytest.raises(ValueError, match="another process"):
        contrapose.resume(run, images=digits)


def test_resuming_on_other_images_is_refused(tmp_path, digits):
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run")
    with pytest.raises(ValueError, match="fingerprint"):
        contrapose.resume(run, images=digits.subset(torch.arange(1000)))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, digits, capsys):
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run")
    old, new = sorted((run.path / "checkpoints").iterdir())
    (new / "training.pt").write_bytes(b"half")
    assert run.load_checkpoint()[1]["step"] == int(old.name[-8:])
    assert new.name in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, says",
    [
        ("loss.temperature=1e-300", "loss cannot run"),
        ("loss=dclw", "loss cannot run.*sigma"),
        ("loss=time_contrastive", r"time_contrastive takes \(z, time\).*given \(z, group\)"),
        ("loss=clip", r"clip takes \(image, text\).*one of .*nt_xent"),
        ("schedule=steps", "schedule cannot run.*milestones"),
        ("optimizer.weight_decay=-1", "optimizer cannot run"),
        ("backbone.channels=3", "backbone and head cannot run"),
        ("views=moco_v1", None),
    ],
)
def test_one_step_is_tried_before_a_folder_is_made(tmp_path, digits, change, says):
    out = tmp_path / "run"
    if says is None:  # a policy with colour works on one channel
        contrapose.train(quick(epochs=0.1, warmup=0), digits, out=out, changes=[change])
        return
    with pytest.raises(ValueError, match=says):
        contrapose.train(quick(), digits, out=out, changes=[change])
    assert not out.exists()


def test_milestones_are_set_from_the_command_line(tmp_path, digits):
    changes = ["schedule=steps", "schedule.milestones=0.5,0.75"]
    with pytest.raises(ValueError, match="milestones"):
        contrapose.train(quick(epochs=1), digits, out=tmp_path / "run", changes=changes[:1])
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run", changes=changes)
    assert run.read("recipe.json")["recipe"]["schedule"]["milestones"] == [0.5, 0.75]


def test_images_of_which_few_have_a_label_train_and_are_evaluated(tmp_path, digits):
    label = torch.where(torch.arange(len(digits)) % 20 == 0, digits.label, -1)
    some = dataclasses.replace(digits, label=label)
    run = contrapose.train(quick(epochs=1, batch_size=16), some, out=tmp_path / "run")
    scores = contrapose.evaluate(run, some)
    assert scores[0].n < 40 and "without labels" in scores[0].split


def test_classes_that_no_training_image_has_are_left_out_of_the_accuracy(tmp_path, digits):
    one_of_each = torch.stack([digits.label.eq(c).nonzero()[0, 0] for c in range(10)])
    many = digits.label.eq(3).nonzero()[:40].flatten()
    images = digits.subset(torch.cat([one_of_each, many]))
    run = contrapose.train(quick(epochs=1, batch_size=16), images, out=tmp_path / "run")
    scores = contrapose.evaluate(run, images)
    assert all("without a training image left out" in score.split for score in scores)
    assert scores[0].n < 10
    few = contrapose.train(
        quick(epochs=1, batch_size=4), digits.subset(one_of_each), out=tmp_path / "few"
    )
    assert contrapose.evaluate(few, digits.subset(one_of_each)) == []


def test_a_supervised_run_without_a_test_split_holds_images_out_of_training(tmp_path, digits):
    recipe = quick(epochs=1, positives="class", loss=partial(losses.supcon, temperature=0.1))
    seen = []
    run = contrapose.train(
        recipe, digits, out=tmp_path / "run", begin=lambda run, recipe, images: seen.append(images)
    )
    assert len(seen[0]) == pytest.approx(0.8 * len(digits), abs=10)
    held = contrapose.evaluate(run, digits)[0]
    assert held.n == len(digits) - len(seen[0])
    contrapose.resume(run, images=digits)
    half = contrapose.train(recipe, digits, out=tmp_path / "half", held_out=0.5)
    assert contrapose.evaluate(half, digits)[0].n == pytest.approx(len(digits) / 2, abs=10)


def test_every_signal_survives_a_batch_of_one_class(tmp_path, digits):
    order = torch.cat([digits.label.eq(1).nonzero()[:64], digits.label.eq(0).nonzero()[:1]])
    mixed = digits.subset(order.flatten())
    recipe = quick(
        epochs=1, batch_size=8, positives="class", loss=partial(losses.supcon, temperature=0.1)
    )
    contrapose.train(recipe, mixed, out=tmp_path / "run", held_out=0.0)


def test_labels_given_apart_are_found_again(tmp_path, monkeypatch):
    import numpy as np

    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8))
    np.save(tmp_path / "y.npy", np.arange(60) % 2)
    monkeypatch.chdir(tmp_path)
    run = contrapose.train(
        quick(epochs=1, batch_size=16), "x.npy", labels="y.npy", out=tmp_path / "run"
    )
    monkeypatch.chdir("/")
    assert contrapose.evaluate(run)[0].n == 12


def test_metrics_hold_every_signal_and_are_json(tmp_path, digits):
    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "run")
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["loss_at_chance"] == pytest.approx(
        torch.tensor(2 * 128 - 1.0).log().item(), abs=1e-5
    )
    signals = {"loss", "lr", "gradient_norm", "contrastive_accuracy", "alignment", "uniformity"}
    signals |= {"effective_rank_h", "effective_rank_z", "effective_negatives", "tolerance", "knn"}
    assert signals <= last.keys()


def test_supervised_positives_and_every_recipe_train(tmp_path, digits):
    frames = dataclasses.replace(digits, features={"time": 40 * torch.arange(len(digits))})
    for name in recipes.names():
        of_time = recipes.recipe_for(name, 8, 1).of_time
        run = contrapose.train(
            name,
            frames if of_time else digits,
            out=tmp_path / name,
            epochs=1,
            encoder="small_conv",
            device="cpu",
            changes=["backbone.width=64"],
        )
        rows = run.metrics()
        # keys that start at random make the first epochs harder, not easier
        if recipes.recipe_for(name, 8, 1).keys is None:
            assert rows[-1]["loss"] < rows[0]["loss"], name


def test_own_recipe_file(tmp_path, digits):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom contrapose import losses\n"
        "from contrapose.recipes import simclr\n"
        "def my_loss(z, group, *, strength: float = 1.0):\n"
        "    return strength * losses.nt_xent(z, group, temperature=0.3)\n"
        "def recipe(size, channels):\n"
        "    base = simclr.recipe(size, channels)\n"
        "    return replace(base, name='mine', loss=my_loss, epochs=1, warmup=0)\n"
    )
    run = contrapose.train(file, digits, out=tmp_path / "run", changes=["loss.strength=2"])
    assert run.read("recipe.json")["recipe"]["loss"]["strength"] == 2.0
    with pytest.raises(ValueError, match="--recipe FILE"):
        contrapose.resume(run, images="digits")
    contrapose.resume(run, recipe=file, images="digits")
    assert Path(run.path / "encoder.safetensors").is_file()


def test_a_warm_up_longer_than_training_is_shortened_as_by_the_flag(digits):
    with pytest.warns(UserWarning, match="a warm-up of 2 epochs of 1 is shortened to 0.1"):
        own = dataclasses.replace(recipes.recipe_for("simclr", 8, 1), epochs=1)
    assert own.warmup == adapt.changed(recipes.recipe_for("simclr", 8, 1), digits, epochs=1).warmup
