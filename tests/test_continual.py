"""Continual training: tasks, the buffer, Co2L's objective by hand, and going on after a task."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from contrapose import augment
from contrapose.data import balanced, open_images
from contrapose.encoders import Encoder, mlp, small_conv
from contrapose.errors import UserError
from contrapose.training import optim
from contrapose.training.continual import (
    Buffer,
    Continual,
    accuracies,
    class_tasks,
    learn,
    objective,
    rotated,
    rotated_tasks,
)

HOW = Continual(
    views=partial(augment.digits), size=8, buffer=23, epochs=(2, 2), batch_size=32, lr=5e-3,
    optimizer=partial(optim.adamw, weight_decay=1e-4),
)  # fmt: skip


@pytest.fixture(scope="module")
def sets():
    train, test = (open_images("digits", split=s) for s in ("train", "test"))
    return balanced(train, 300), balanced(test, 100)


def encoder():
    torch.manual_seed(0)
    return Encoder.build(partial(small_conv, width=16), partial(mlp, dim=8), [0.3], [0.4])


def test_tasks_share_out_classes_or_images(sets):
    tasks = class_tasks(*sets, 2)
    assert [sorted(set(t.label.tolist())) for t in tasks] == [[2 * k, 2 * k + 1] for k in range(5)]
    assert sum(len(t.label) for t in tasks) == 300 == 3 * sum(len(t.test_label) for t in tasks)
    turned = rotated_tasks(*sets, (0.0, 90.0, 180.0))
    assert sum(len(t.label) for t in turned) == 300
    assert all(len(t.test_label) == 100 for t in turned)
    assert torch.equal(turned[1].test_image, torch.rot90(turned[0].test_image, 1, (2, 3)))
    with pytest.raises(UserError, match="3 classes a task of 10"):
        class_tasks(*sets, 3)


def test_turning_keeps_what_a_quarter_keeps(sets):
    x = sets[0].batch(torch.arange(4))
    assert torch.equal(rotated(x, 0.0), x)
    assert torch.equal(rotated(rotated(x, 90.0), -90.0), x)


@pytest.mark.parametrize("size", [4, 23, 60, 1000])
def test_the_buffer_holds_as_many_of_each_class_and_what_it_holds_is_real(sets, size):
    tasks, generator = class_tasks(*sets, 2), torch.Generator().manual_seed(0)
    buffer = Buffer.empty(size, tasks[0])
    for number, task in enumerate(tasks):
        buffer.add(task, number, generator)
        count = torch.bincount(buffer.label, minlength=10)[: 2 * (number + 1)]
        assert len(buffer.label) == min(size, 60 * (number + 1))
        assert int(count.max() - count.min()) <= 1
    at = int((buffer.task == 1).nonzero()[0])
    assert buffer.label[at] in (2, 3)
    same = (tasks[1].image == buffer.image[at]).flatten(1).all(dim=1)
    assert buffer.label[at] in tasks[1].label[same]


def test_the_objective_is_co2ls(sets):
    generator = torch.Generator().manual_seed(0)

    def unit(n):
        z = torch.randn(n, 5, generator=generator, dtype=torch.float64)
        return z / z.norm(dim=1, keepdim=True)

    z, past = unit(8), unit(8)
    label = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    current = torch.tensor([True, True, True, True, True, False, False, False])
    apart = ~torch.eye(8, dtype=torch.bool)
    s = (z @ z.T / 0.5).masked_fill(~apart, -torch.inf)
    log_p = s.log_softmax(dim=1).masked_fill(~apart, 0.0)
    positive = apart & (label[:, None] == label[None, :])
    each = -(log_p * positive).sum(dim=1) / positive.sum(dim=1)
    asymmetric = (each * current).sum() / 8  # over all rows, as the code
    assert float(objective(z, label, current, HOW, None)) == pytest.approx(float(asymmetric))
    q = (past @ past.T / 0.01).masked_fill(~apart, -torch.inf).softmax(dim=1)
    log_q = (z @ z.T / 0.2).masked_fill(~apart, -torch.inf).log_softmax(dim=1)
    kept = -(q * log_q.masked_fill(~apart, 0.0)).sum(dim=1).mean()
    both = objective(z, label, current, HOW, past)
    assert float(both) == pytest.approx(float(asymmetric + kept))
    symmetric = objective(z, label, current, replace(HOW, asymmetric=False), None)
    assert float(symmetric) == pytest.approx(float(each.mean()))


def test_a_training_goes_on_after_its_last_task_bit_for_bit(sets, tmp_path):
    tasks = class_tasks(*sets, 2)[:3]
    one, two = encoder(), encoder()
    whole = learn(one, tasks, HOW, tmp_path / "whole")
    learn(two, tasks[:2], HOW, tmp_path / "cut")
    fresh = encoder()
    again = learn(fresh, tasks, HOW, tmp_path / "cut")
    for name, x in one.state_dict().items():
        assert torch.equal(x, fresh.state_dict()[name]), name
    assert torch.equal(whole.label, again.label) and torch.equal(whole.image, again.image)
    found = accuracies(one, tasks, whole, 8)
    assert found["within"] > found["all"] > 0.25 and found["within"] > 0.6  # chance 1/6 and 1/2
    assert found["last"] >= found["all"] - 0.2


def test_without_replay_the_past_is_not_seen(sets, tmp_path):
    tasks = class_tasks(*sets, 2)[:2]
    alone = replace(HOW, replay=False, weight=0.0)
    one, two = encoder(), encoder()
    learn(one, tasks, alone, tmp_path / "one")
    learn(two, tasks, replace(alone, buffer=60), tmp_path / "two")  # of the classifier alone
    assert all(torch.equal(x, two.state_dict()[n]) for n, x in one.state_dict().items())
    three = encoder()
    learn(three, tasks, replace(alone, replay=True), tmp_path / "three")
    assert any(not torch.equal(x, three.state_dict()[n]) for n, x in one.state_dict().items())
