"""What a step optimises: contrast, a classifier, both; and that none is silently another."""

import dataclasses
import signal
from functools import partial

import pytest
import torch
from support.quick_recipe import quick

import contrapose
from contrapose import adapt, augment, encoders, losses, recipes
from contrapose.data import open_images
from contrapose.encoders import Encoder
from contrapose.training import optim
from contrapose.training.loop import InterruptedTraining
from contrapose.training.objective import Batch, Joint, learned_label, objective_of
from contrapose.training.recipe import supervised
from contrapose.training.step import step


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


FAST = dict(
    optimizer=partial(optim.adamw), scaling=optim.no_scaling, lr=1e-2, epochs=1, warmup=0
)  # fmt: skip


def taught(**changes):
    values = FAST | {"head": encoders.none, "loss": losses.cross_entropy, "positives": "class"}
    return quick(**values | changes)


def beside(weight, **changes):
    return quick(classifier=losses.cross_entropy, classifier_weight=weight, **FAST | changes)


def one_step(recipe, images, chosen):
    """(the encoder with its gradient, what was seen) of one step on these images."""
    encoder = adapt.build(recipe, images).train()
    objective = objective_of(recipe, encoder, len(images))
    label = learned_label(recipe, images)[0][chosen]
    generator = torch.Generator().manual_seed(0)
    still = torch.optim.SGD(encoder.parameters(), lr=0.0)
    batch = Batch(images.batch(chosen), chosen, label)
    return encoder, step(encoder, still, objective, batch, recipe, generator), objective


def test_a_step_of_cross_entropy_is_that_of_the_logits(digits):
    chosen = torch.arange(32)
    encoder, seen, _ = one_step(taught(), digits, chosen)
    logits = encoder.logits(seen.h).detach()
    expected = torch.nn.functional.cross_entropy(logits, digits.label[chosen].repeat(2))
    assert seen.loss == pytest.approx(float(expected), rel=1e-6)
    assert logits.abs().max() > 0 and logits.norm(dim=1).std() > 0  # of no fixed length
    share = torch.nn.functional.softmax(logits, dim=1)
    share[torch.arange(64), digits.label[chosen].repeat(2)] -= 1
    torch.testing.assert_close(encoder.classifier.weight.grad, share.T @ seen.h / 64)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_encoder_follows_the_sum_and_the_classifier_its_own_loss(digits, weight):
    chosen = torch.arange(32)
    joint, seen, objective = one_step(beside(weight), digits, chosen)
    assert isinstance(objective, Joint)
    contrast, _, _ = one_step(beside(0.0), digits, chosen)
    alone, by_labels, _ = one_step(taught(head=joint_head()), digits, chosen)
    torch.testing.assert_close(joint.classifier.weight.grad, alone.classifier.weight.grad)
    for name, p in joint.backbone.named_parameters():
        a, b = (dict(e.backbone.named_parameters())[name].grad for e in (contrast, alone))
        torch.testing.assert_close(p.grad, a + weight * b, rtol=1e-3, atol=1e-6)
    assert objective.signals(seen.compared, seen.z)["classifier_loss"] == pytest.approx(
        by_labels.loss, rel=1e-5
    )


def joint_head():
    """The head of `quick`, drawn as there so that the classifier is too, but not trained."""
    return partial(encoders.mlp, dim=16)


def test_images_without_a_label_teach_the_classifier_nothing(digits):
    chosen = torch.arange(32)
    half = dataclasses.replace(
        digits, label=torch.where(torch.arange(len(digits)) % 2 == 0, digits.label, -1)
    )
    with pytest.warns(UserWarning, match="32 of 64 rows are without a label"):
        encoder, seen, _ = one_step(taught(), half, chosen)
    known = half.label[chosen].repeat(2) >= 0
    expected = torch.nn.functional.cross_entropy(
        encoder.logits(seen.h).detach()[known], half.label[chosen].repeat(2)[known]
    )
    assert seen.loss == pytest.approx(float(expected), rel=1e-6)


def test_images_and_labels_are_mixed_alike(digits):
    def halves(image, share, generator):
        return (image + image.flip(0)) / 2, (share + share.flip(0)) / 2

    chosen = torch.arange(32)
    encoder, seen, _ = one_step(taught(mixing=halves), digits, chosen)
    label = digits.label[chosen].repeat(2)
    one = torch.nn.functional.one_hot(label, 10).float()
    logits = encoder.logits(seen.h).detach()
    expected = torch.nn.functional.cross_entropy(logits, (one + one.flip(0)) / 2)
    assert seen.loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("make", [taught, partial(beside, 0.5)], ids=["classifier", "joint"])
def test_a_classifier_is_resumed_bit_for_bit_saved_and_scored(tmp_path, digits, make):
    whole = contrapose.train(make(epochs=2), digits, out=tmp_path / "whole")

    def stop(progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTraining):
        contrapose.train(make(epochs=2), digits, out=tmp_path / "broken", watch=stop)
    broken = contrapose.resume(tmp_path / "broken", images=digits)
    a, b = (run.load_checkpoint()[0] for run in (whole, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    encoder = Encoder.load(whole.path)
    assert encoder.classes == digits.classes and encoder.classifier.bias is not None
    assert whole.metrics()[-1]["classifier_accuracy"] > 0.2
    scores = contrapose.evaluate(whole, digits)
    own = next(s for s in scores if s.metric == "classifier accuracy")
    assert own.n == len(digits) // 5 or own.n > 300
    assert "saw with labels" not in own.split  # a fifth was held out
    found = contrapose.diagnose(whole, digits)
    assert found["verdict"] and found["signals"]["task_accuracy"] > 0


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_is_one_word_of_the_command_line(tmp_path, digits, name):
    changes = [f"mixing={name}", "mixing.alpha=0.4"]
    run = contrapose.train(taught(), digits, out=tmp_path / "run", changes=changes)
    assert run.recipe().mixing.keywords == {"alpha": 0.4}
    assert run.metrics()[-1]["classifier_accuracy"] > 0.1
    knn = contrapose.evaluate(run, digits)[0]
    assert knn.value > 0.5


def test_large_margin_softmax_teaches_a_classifier_without_offset(tmp_path, digits):
    loss = partial(losses.large_margin_softmax, m=2, blend=1.0)
    run = contrapose.train(taught(loss=loss), digits, out=tmp_path / "run")
    encoder = Encoder.load(run.path)
    assert encoder.classifier.bias is None
    assert run.metrics()[-1]["classifier_accuracy"] > 0.2


def test_a_feature_of_composed_images_is_learned_by_its_name(tmp_path):
    images = open_images("random-bits(digits, bits=1)")
    bit = next(name for name in images.features if name != "image")
    recipe = taught(
        positives=f"feature:{bit}",
        backbone=partial(encoders.small_conv, channels=images.channels, width=32),
        views=partial(augment.on_channels, views=partial(augment.digits), channels=1),
    )
    label, classes = learned_label(recipe, images)
    assert torch.equal(label, images.features[bit]) and classes == ("0", "1")
    run = contrapose.train(recipe, images, out=tmp_path / "run")
    assert run.metrics()[-1]["classifier_accuracy"] > 0.9
    with pytest.raises(ValueError, match=r"positives=feature:ink.*no feature 'ink'.*Available"):
        learned_label(dataclasses.replace(recipe, positives="feature:ink"), images)


def test_the_recipe_of_cross_entropy_differs_from_simclr_in_loss_and_head_alone():
    ours, plain = (recipes.recipe_for(name, 32, 3) for name in ("cross_entropy", "simclr"))
    differing = {
        f.name for f in dataclasses.fields(ours)
        if contrapose.training.recipe.describe(getattr(ours, f.name))
        != contrapose.training.recipe.describe(getattr(plain, f.name))
    }  # fmt: skip
    assert differing == {"name", "head", "loss", "positives"}
    control = supervised(plain, "feature:digit")
    assert control.positives == "feature:digit" and control.optimizer is plain.optimizer


@pytest.mark.parametrize(
    "change, says",
    [
        ("loss=cross_entropy", "weights of its head would stay as they are drawn.*head=none"),
        ("mixing=mixup", "mixes labels, which loss=nt_xent cannot take"),
        ("classifier_weight=1", "there is no classifier; put --set classifier=cross_entropy"),
        ("classifier=nt_xent", "has no 'nt_xent'. Available: cross_entropy"),
        ("positives=classes", "no 'classes'; did you mean 'class'.*feature:NAME, image, shared"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tmp_path, digits, change, says):
    with pytest.raises(ValueError, match=says):
        contrapose.train(quick(), digits, out=tmp_path / "run", changes=[change])
    assert not (tmp_path / "run").exists()


def test_a_classifiers_loss_takes_no_keys():
    with pytest.raises(ValueError, match="compares no embeddings, so leave out keys"):
        taught(keys=partial(contrapose.keys.bank, momentum=0.5))
    assert taught(number_of_views=1, optimizer=partial(optim.sgd)).needs_classifier
