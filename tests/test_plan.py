"""What a run takes is measured before it begins; what was asked for is never changed."""

import dataclasses

import numpy as np
import pytest
import torch

import contrapose
from contrapose import adapt, api, plan, recipes
from contrapose.errors import UserError
from contrapose.progress import duration
from contrapose.training.cost import cost


@pytest.fixture(scope="module")
def photographs() -> contrapose.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 255, (600, 48, 48, 3), dtype=np.uint8)
    return contrapose.open_images(pixels)


def making(photographs, **asked):
    """As `train` makes a run of SimCLR on these images, with what the plan chooses instead."""

    def make(instead):
        left = {k: v for k, v in instead.items() if "." not in k and k != "size"}
        paths = [f"{k}={v}" for k, v in instead.items() if "." in k or k == "size"]
        chosen = recipes.recipe_for("simclr", 48, 3)
        chosen = adapt.changed(chosen, photographs, **(left | asked), changes=paths)
        return plan.Made(chosen, photographs, adapt.build(chosen, photographs), {})

    return make


def test_memory_is_proportional_to_the_batch_and_bounded_by_a_chunk(photographs):
    small = dataclasses.replace(recipes.recipe_for("simclr", 16, 3), batch_size=64)
    small = adapt.changed(small, photographs, encoder="small_conv")
    network = adapt.build(small, photographs)
    of = {
        (batch, chunk): cost(
            dataclasses.replace(small, batch_size=batch, chunk=chunk), photographs, network
        ).memory
        for batch, chunk in ((64, None), (128, None), (256, None), (256, 128))
    }
    step = of[128, None] - of[64, None]
    assert of[256, None] - of[128, None] == pytest.approx(2 * step, rel=0.02)
    assert of[256, 128] == of[64, None]  # 128 views are 64 images


def test_measuring_leaves_the_network_and_the_random_state_alone(photographs):
    recipe, images, network, *_ = making(photographs, encoder="small_conv")({})
    before, weights = torch.get_rng_state(), [p.clone() for p in network.parameters()]
    cost(recipe, images, network)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_a_run_of_days_is_made_one_of_minutes_and_says_why(photographs):
    many = photographs.subset(torch.arange(600).repeat(8))  # days on a fast processor too
    (recipe, _, network, *_), found = plan.planned(
        making(many), asked=(), device="cpu", bf16=False, free=8e9
    )
    assert recipe.backbone.func.__name__ == found.chosen["encoder"] == "small_conv"
    assert recipe.size == network.backbone.width // 4 == 32
    assert found.cost.seconds < plan.PATIENCE
    assert found.reason.startswith("resnet18 at 48 px, batch 256, 200 epochs would take ")
    assert found.otherwise.startswith("--encoder resnet18 --size 48")  # and epochs, where slow


def test_a_number_of_epochs_that_was_asked_for_does_not_keep_an_encoder_of_hours(photographs):
    many = photographs.subset(torch.arange(600).repeat(8))
    make = making(many, epochs=200)
    made, found = plan.planned(make, asked={"epochs"}, device="cpu", bf16=False, free=8e9)
    assert made.recipe.epochs == 200 and found.chosen["encoder"] == "small_conv"
    assert "epochs" not in found.chosen and found.otherwise == "--encoder resnet18 --size 48"


def test_what_was_asked_for_is_kept_and_refused_with_a_command_that_fits(photographs):
    asked = {"encoder": "resnet18", "batch_size": 256}
    with pytest.raises(UserError, match=r"resnet18 at 32 px with a batch of 256 takes") as error:
        plan.planned(making(photographs, **asked), asked=asked, device="cpu", bf16=False, free=1e9)
    fits = int(str(error.value).split("--batch-size ")[1].split(",")[0])
    (recipe, *_), found = plan.planned(
        making(photographs, **(asked | {"batch_size": fits, "epochs": 1})),
        asked={*asked, "epochs"}, device="cpu", bf16=False, free=1e9,
    )  # fmt: skip
    assert recipe.batch_size == fits and found.cost.memory <= plan.SHARE * 1e9
    assert recipe.backbone.func.__name__ == "resnet18"


def test_the_plan_of_a_run_is_recorded(tmp_path):
    run = api.train("simclr", "digits", epochs=0.2, out=tmp_path / "run", device="cpu")
    found = run.read("recipe.json")["plan"]
    assert found["chosen"] == {} and found["cost"]["images_per_second"] > 10
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    few = api.train("simclr", pixels, epochs=1, out=tmp_path / "few", device="cpu")
    assert few.read("recipe.json")["recipe"]["batch_size"] == 3


def test_every_setting_is_said_with_its_reason(photographs, tmp_path):
    run = api.train(
        "simclr", photographs, epochs=0.2, batch_size=32, changes=["backbone.stem=imagenet"],
        out=tmp_path / "run", device="cpu", precision="fp32",
    )  # fmt: skip
    choices = run.read("recipe.json")["choices"]
    assert {name: why for name, (_, why) in choices.items()} == {
        "encoder": "asked for by --set backbone", "size": "of the images",
        "batch_size": "asked for by --batch-size", "epochs": "asked for by --epochs",
    }  # fmt: skip
    assert choices["encoder"][0] == "resnet18, 12 M parameters"
    assert run.read("environment.json")["why"] == {
        "device": "asked for by --device cpu", "precision": "asked for by --precision fp32",
        "compile": "no gain on such a device wherever it was measured",
    }  # fmt: skip
    again = api.resume(run, images=photographs, device="cpu").read("environment.json")
    assert again["resumed"][-1]["why"]["precision"] == "as the run was begun"


def test_what_a_size_changes_besides_is_said(photographs):
    made = making(photographs)({"size": 32})
    found = plan.choices(made, "simclr", {"size": "--size"}, {"epochs": 3})
    assert found["size"] == ["32 px", "asked for by --size"]
    assert found["epochs"][1] == "chosen for this machine"
    for words in (
        "with 32 px, simclr also has (in parentheses: with 224 px)", "temperature 0.5 (0.1)",
        "views simclr_cifar (simclr)", "weight decay 0.0001 (1e-06)", "learning rate 1 (0.3)",
    ):  # fmt: skip
        assert words in found["beside size"]
    assert "beside size" not in plan.choices(made, "simclr", {}, {})


def test_times_are_said_in_the_unit_that_suits():
    assert [duration(s) for s in (0.21, 40, 700, 2.46 * 3600, 11 * 3600, 4e6)] == [
        "0.21 s", "40 s", "12 min", "2.5 h", "11 h", "46 days",
    ]  # fmt: skip
