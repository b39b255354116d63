"""The random-bits notebook: its cheap first layer, its batches, and a cell from end to end."""

import math

import pytest
import torch

from contrapose.encoders import notebook_conv
from contrapose.experiments.form import Results
from contrapose.experiments.suppression import notebook, random_bits_details
from contrapose.experiments.suppression.notebook import (
    Network,
    cell,
    cross_view,
    folded_layer,
    tfds_order,
)
from contrapose.experiments.suppression.random_bits_notebook import EXPERIMENT, PUBLISHED


@pytest.mark.parametrize("bits", [0, 7])
@pytest.mark.parametrize("training", [True, False])
def test_the_folded_layer_is_convolution_norm_and_relu(bits, training):
    torch.manual_seed(0)
    layers = notebook_conv(channels=1 + bits).double().layers[:3].train(training)
    layers[1].running_mean.uniform_()
    torch.nn.init.uniform_(layers[1].weight, 0.5, 1.5)
    torch.nn.init.normal_(layers[1].bias)
    view = torch.rand(6, 28, 28, dtype=torch.float64)
    shared = torch.randint(2, (6, bits)).double()
    found = []
    for folded in (False, True):
        layers.zero_grad()
        before = {name: x.clone() for name, x in layers.state_dict().items()}
        if folded:
            y = folded_layer(view, shared, layers[0].weight, layers[1])
        else:
            flat = shared[:, :, None, None].expand(-1, -1, 28, 28)
            y = layers(torch.cat([view[:, None], flat], dim=1))
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y, *(w.grad for w in layers.parameters()), layers[1].running_mean.clone()])
        found[-1].append(layers[1].running_var.clone())
        layers.load_state_dict(before)
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_images_come_in_the_order_of_tensorflow_datasets():
    """The first training images of its mnist 3.0.1 are known by their labels."""
    from contrapose.data import open_images

    order = tfds_order(60_000, "train")
    assert order[:5].tolist() == [16399, 1680, 47917, 17307, 27051]
    assert torch.equal(order.sort().values, torch.arange(60_000))
    try:
        images = open_images("mnist", split="train")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert images.label[order[:10]].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]


def test_cross_view_is_the_notebooks_two_cross_entropies():
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(9, 4).double(), dim=1) for _ in range(2))
    logits, match = a @ b.T / 0.2, torch.arange(9)
    both = [torch.nn.functional.cross_entropy(x, match) for x in (logits, logits.T)]
    torch.testing.assert_close(cross_view(a, b, temperature=0.2), both[0] + both[1])


def test_a_cell_trains_and_repeats_itself(tmp_path):
    small = {"images": "digits", "epochs": 1, "batch_size": 200, "temperature": 0.1, "bits": 5}
    found = [cell(tmp_path, seed=3, **small) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["loss"] < 2 * math.log(200)  # that of guessing
    assert found[0]["readable"] > 0.5


def test_networks_of_other_layers_take_the_plain_way():
    network = Network(3, 10)
    assert network.embed(network.represent(torch.rand(4, 28, 28), torch.ones(4, 3))).shape == (
        4,
        64,
    )


def test_claims_judge_the_printed_table_itself_true():
    rows = [
        dict(p.at) | {"seed": seed, "accuracy": p.value, "bits_readable": 1.0}
        for p in PUBLISHED
        for seed in range(2)
    ]
    results = Results(rows=rows, measures=EXPERIMENT.measures)
    assert [claim.test(results).holds for claim in EXPERIMENT.claims] == [True] * 4
    for row in rows:
        row["accuracy"] = 1 - row["accuracy"]
    assert [claim.test(results).holds for claim in EXPERIMENT.claims] == [False] * 4


def test_every_detail_makes_another_network_or_step():
    """After a step of each change the network differs from the notebook's; with no change not."""

    def after_a_step(details):
        torch.manual_seed(0)
        network = Network(2, 10, details)
        train = notebook.with_bits("digits", "train", 2)
        generator = torch.Generator().manual_seed(0)
        optimizers = notebook.optimizers_of(network, details)
        index = next(notebook._batches(details.order, len(train.pixel), 50, generator))
        notebook._step(network, optimizers, train, index, 1e-3, 0, 0.1, details, generator)
        with torch.no_grad():
            z = network.eval().embed(network.represent(torch.ones(2, 28, 28), torch.ones(2, 2)))
        return [*z.flatten().tolist(), *network.head[0].weight.flatten().tolist()]

    plain = after_a_step(notebook.NOTEBOOK)
    for change, details in random_bits_details.CHANGES.items():
        assert (after_a_step(details) == plain) == (change == "none"), change
