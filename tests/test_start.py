"""Where weights start: of a run, of a file, frozen or not; and more epochs for a finished run."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from support.quick_recipe import quick

import contrapose
from contrapose import encoders, losses
from contrapose.data import open_images
from contrapose.encoders import Encoder
from contrapose.explain import Subject
from contrapose.training import optim
from contrapose.training.run import Run


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


@pytest.fixture(scope="module")
def source(tmp_path_factory, digits):
    """A run of one epoch, to start from."""
    out = tmp_path_factory.mktemp("source") / "run"
    return contrapose.train(quick(epochs=1), digits, out=out)


FAST = dict(
    optimizer=partial(optim.adamw), scaling=optim.no_scaling, lr=1e-2, epochs=0.3, warmup=0
)  # fmt: skip
STAGE_TWO = FAST | dict(
    head=encoders.none, loss=losses.cross_entropy, positives="class", freeze=("backbone",)
)


def weights(encoder, part):
    return {n: x for n, x in encoder.state_dict().items() if n.startswith(f"{part}.")}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_starts_from_the_weights_of_another(tmp_path, digits, source):
    changes = dict(out=tmp_path / "run", start=source.path)
    run = contrapose.train(quick(**FAST), digits, **changes)
    before = Encoder.load(run.path / "start.safetensors")
    assert equal(before.state_dict(), Encoder.load(source.path).state_dict())  # whitening too
    written = run.read("recipe.json")["start"]
    assert written["taken"] == ["backbone", "head"] and not written["drawn"]
    assert len(written["sha256"]) == 64 and written["unused"] == 0
    assert not equal(before.state_dict(), Encoder.load(run.path).state_dict())
    control = Subject.open(run, digits).untrained
    assert equal(before.state_dict(), control.state_dict()) and not control.training


def test_a_frozen_backbone_is_left_bit_for_bit_its_batch_norm_too(tmp_path, digits, source):
    run = contrapose.train(
        quick(**STAGE_TWO), digits, out=tmp_path / "run", start=source.path, held_out=0.2
    )
    before, after = (Encoder.load(path) for path in (source.path, run.path))
    assert equal(weights(before, "backbone"), weights(after, "backbone"))
    assert run.metrics()[-1]["classifier_accuracy"] > run.metrics()[0]["classifier_accuracy"]
    assert run.read("recipe.json")["start"]["drawn"] == ["classifier"]


def test_a_start_is_resumed_bit_for_bit_though_its_source_is_gone(tmp_path, digits, source):
    kept = tmp_path / "source.safetensors"
    kept.write_bytes((source.path / "encoder.safetensors").read_bytes())
    recipe = quick(**STAGE_TWO | {"start": str(kept)})
    whole = contrapose.train(recipe, digits, out=tmp_path / "whole")
    cut = contrapose.train(recipe, digits, out=tmp_path / "cut")
    kept.unlink()
    for name in ("encoder.safetensors", "status.json", "metrics.jsonl"):
        (cut.path / name).unlink()
    cut.remove_checkpoints()  # as a kill before the first one leaves the folder
    again = contrapose.resume(cut, images=digits, recipe=recipe)
    assert equal(*(Encoder.load(run.path).state_dict() for run in (whole, again)))


def test_weights_of_other_libraries_are_found_under_their_prefix(tmp_path, digits, source):
    of = weights(Encoder.load(source.path), "backbone")
    there = {name.removeprefix("backbone."): x for name, x in of.items()}
    older = {f"module.encoder_q.{n}": x for n, x in there.items() if "num_batches" not in n}
    save_file(older | {"module.queue": torch.zeros(3)}, tmp_path / "moco.safetensors")
    torch.save({"state_dict": there, "epoch": 3}, tmp_path / "plain.pth")
    for name, unused in (("moco.safetensors", 1), ("plain.pth", 0)):
        run = contrapose.train(
            quick(**FAST), digits, out=tmp_path / f"of-{name}", start=tmp_path / name
        )
        begun, own = (Encoder.load(p) for p in (run.path / "start.safetensors", source.path))
        named = [n for n in weights(own, "backbone") if "num_batches" not in n]
        assert all(torch.equal(begun.state_dict()[n], own.state_dict()[n]) for n in named)
        written = run.read("recipe.json")["start"]
        assert written["drawn"] == ["head"] and written["unused"] == unused


def test_what_a_frozen_start_takes_is_measured_by_its_classifier(tmp_path, source):
    run = contrapose.train(
        "cross_entropy", "digits", out=tmp_path / "run", start=source.path, freeze=["backbone"],
        epochs=0.2, batch_size=64,
    )  # fmt: skip
    assert run.read("recipe.json")["plan"]["words"].startswith("about")


def test_the_network_of_the_source_is_taken_where_none_is_asked_for(tmp_path, source):
    run = contrapose.train(
        "simclr", "digits", out=tmp_path / "run", start=source.path, epochs=0.2, batch_size=64
    )
    assert run.recipe().backbone.keywords["width"] == 32


@pytest.mark.parametrize(
    "how, says",
    [
        ({"start": "nowhere"}, "--start nowhere: there is no such run folder or file"),
        ({"start": "SOURCE", "encoder": "resnet18"}, "does not fit this encoder: it has no back"),
        ({"start": "DAMAGED"}, "cannot be read"),
        ({"start": "pretrained"}, "--pretrained: no weights are published for small_conv"),
        ({"freeze": ["backbon"]}, "--freeze backbon: the encoder has no part.*mean 'backbone'"),
        ({"freeze": ["backbone", "head"]}, "nothing is left to train"),
    ],
    ids=["missing", "other network", "damaged", "unpublished", "no part", "everything"],
)  # fmt: skip
def test_a_start_that_cannot_be_had_is_refused_before_a_folder_is_made(
    tmp_path, digits, source, how, says
):
    (tmp_path / "damaged.pth").write_bytes(b"weights")
    places = {"SOURCE": source.path, "DAMAGED": tmp_path / "damaged.pth"}
    if "start" in how:
        how = how | {"start": places.get(how["start"], how["start"])}
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        contrapose.train(quick(**FAST), digits, out=tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_published_weights_come_from_torchs_cache(tmp_path, monkeypatch, digits):
    from torchvision.models import ResNet18_Weights, resnet18

    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    weights = resnet18().state_dict()
    torch.save(weights, cache / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = open_images(torch.randint(0, 255, (16, 3, 32, 32), dtype=torch.uint8))
    recipe = quick(
        **FAST | {"epochs": 1}, backbone=encoders.resnet18, size=32, batch_size=8,
        views=contrapose.augment.crop_flip,
    )  # fmt: skip
    run = contrapose.train(recipe, images, out=tmp_path / "run", start="pretrained")
    begun = Encoder.load(run.path / "start.safetensors")
    assert torch.equal(begun.backbone.conv1.weight, weights["conv1.weight"])
    assert begun.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert run.read("recipe.json")["start"]["unused"] == 2  # the weights of its 1,000 classes


def test_a_finished_run_goes_on_for_more_epochs_and_says_what_the_rate_does(
    tmp_path, digits, capsys
):
    run = contrapose.train(quick(epochs=2), digits, out=tmp_path / "run")
    contrapose.evaluate(run, digits)
    assert contrapose.resume(run, images=digits).status()["step"] == 22
    assert (run.path / "evaluation.json").exists()  # nothing was trained
    for name in ("finetune", "controls"):  # trainings that began from this encoder
        (run.path / name).mkdir()
    (run.path / "robustness.json").write_text("{}")
    contrapose.resume(run, images=digits, epochs=3)
    status, rows = run.status(), run.metrics()
    assert status["state"] == "finished" and status["step"] == 33 == rows[-1]["step"]
    said = capsys.readouterr().err
    assert "from epoch 2 to 3, not 2" in said and "is 0.5 of it by the schedule over 3" in said
    assert rows[22]["lr"] == pytest.approx(0.25 * 0.5, rel=1e-6)  # half a cosine from 1 to 3
    written = run.read("recipe.json")
    assert written["recipe"]["epochs"] == 3
    assert written["epochs_changed"] == [{"from": 2, "to": 3, "step": 22}]
    assert not (run.path / "evaluation.json").exists()
    assert (run.path / "found-at-step-00000022" / "evaluation.json").exists()
    for name in ("finetune", "controls", "robustness.json"):
        assert not (run.path / name).exists()
        assert (run.path / "found-at-step-00000022" / name).exists()
    with pytest.raises(ValueError, match="stands at epoch 3 already; give more"):
        contrapose.resume(run, images=digits, epochs=2)


def test_a_run_that_is_extended_and_killed_goes_on_bit_for_bit(tmp_path, digits):
    import shutil

    run = contrapose.train(quick(epochs=1), digits, out=tmp_path / "whole")
    shutil.copytree(run.path, tmp_path / "broken")
    contrapose.resume(run, images=digits, epochs=2)

    class Stop(Exception): ...

    def stop(progress):
        if progress.step == 15:
            raise Stop

    broken = Run.open(tmp_path / "broken")
    with pytest.raises(Stop):
        contrapose.resume(broken, images=digits, epochs=2, watch=stop)
    contrapose.resume(broken, images=digits)  # recipe.json has the new number
    assert equal(*(r.load_checkpoint()[0] for r in (run, broken)))
