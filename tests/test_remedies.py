"""Negatives within groups that share the shortcut: the groups, the loss, the bench of remedies."""

import dataclasses
import math
import signal
from functools import partial

import pytest
import torch

import contrapose
from contrapose import adapt, encoders, losses, recipes
from contrapose.data import open_images
from contrapose.encoders import unit
from contrapose.experiments.suppression.notebook import Network, cross_view
from contrapose.experiments.suppression.remedies import (
    EXPERIMENT,
    Seen,
    cell,
    modified,
    plain,
    weighted,
)
from contrapose.training.batches import conditional, embedded, untrained_information
from contrapose.training.conditional import (
    EASY,
    SIZES,
    conditional_info_nce,
    group_size,
    neighbour_groups,
    read_colder,
    shared_information,
)
from contrapose.training.loop import InterruptedTraining
from contrapose.training.objective import in_batch
from contrapose.training.run import Run


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n, width=8, seed=0):
    return unit(torch.randn(n, width, generator=draw(seed)))


def test_groups_are_disjoint_and_hold_neighbours():
    centre = torch.eye(6).repeat_interleave(10, dim=0)
    z = (centre + 0.05 * torch.randn(60, 6, generator=draw()))[torch.randperm(60, generator=draw())]
    groups = neighbour_groups(z, 10, draw(1))
    assert groups.flatten().sort().values.tolist() == list(range(60))
    of = z.argmax(dim=1)[groups]
    assert bool((of == of[:, :1]).all())
    uneven = neighbour_groups(z, 7, draw(1))
    assert uneven.shape == (8, 7) and len(uneven.unique()) == 56
    assert len(neighbour_groups(z, 7, draw(1), count=2)) == 2
    assert torch.equal(uneven, neighbour_groups(z, 7, draw(1)))
    with pytest.raises(ValueError, match="size=61 of 60 rows"):
        neighbour_groups(z, 61, draw())


def test_equal_rows_are_neighbours_too():
    groups = neighbour_groups(torch.ones(12, 3), 4, draw())
    assert groups.flatten().sort().values.tolist() == list(range(12))


def test_the_conditional_loss_is_the_mean_of_each_groups_own():
    a, b = rows(12, seed=1).double(), rows(12, seed=2).double()
    whole = conditional_info_nce(a, b, size=12, temperature=0.2)
    torch.testing.assert_close(whole, cross_view(a, b, temperature=0.2))
    parts = [cross_view(a[i : i + 4], b[i : i + 4], temperature=0.2) for i in (0, 4, 8)]
    found = conditional_info_nce(a, b, size=4, temperature=0.2)
    torch.testing.assert_close(found, torch.stack(parts).mean())
    with pytest.raises(ValueError, match="12 rows are no whole groups of 5"):
        conditional_info_nce(a, b, size=5, temperature=0.2)


def test_what_all_of_a_group_share_does_not_move_the_loss():
    a, b = rows(20, seed=1).double(), rows(20, seed=2).double()
    code = rows(4, seed=3).double().repeat_interleave(5, dim=0)
    before = conditional_info_nce(a, b, size=5, temperature=0.1)
    after = conditional_info_nce(
        torch.cat([a, code], dim=1), torch.cat([b, code], dim=1), size=5, temperature=0.1
    )
    torch.testing.assert_close(after, before)


def test_groups_are_made_where_something_easy_keeps_content_small_and_nowhere_else():
    """60 codes of 100 images. The noise of content as long as the code is read at 0.09 or so, that
    of content of a sixth of its length far below 0.04: but only beside an easy feature."""
    n = 6000
    code = rows(60, 16, seed=1)[torch.arange(n) % 60]
    content = rows(n, 32, seed=2)

    def finder(size, noise):
        z = torch.cat([code, size * content], dim=1)
        views = [z + noise * size * torch.randn(z.shape, generator=draw(k)) for k in (3, 4)]
        return unit(z), unit(views[0]), unit(views[1])

    hidden, open_ = finder(0.15, 0.2), finder(1.0, 0.3)
    assert group_size(*hidden, draw(), untrained=0.9, sizes=(40, 10)) == 40
    assert group_size(*hidden, draw(), untrained=0.5, sizes=(40, 10)) is None
    assert group_size(*open_, draw(), untrained=0.9, sizes=(40, 10)) is None


@pytest.mark.parametrize("noise", [0.3, 0.5, 2.0])
def test_what_is_told_apart_is_the_best_of_all_temperatures_and_needs_no_scale(noise):
    a = rows(400, seed=1).double()
    b = a + noise * rows(400, seed=2).double()
    told = shared_information(a, b, size=20)
    grid = [2 ** (k / 8) for k in range(-80, 81)]
    least = min(float(conditional_info_nce(a, b, size=20, temperature=t)) for t in grid)
    assert told == pytest.approx(1 - least / (2 * math.log(20)), abs=1e-3)
    assert shared_information(a, 0.01 * b, size=20) == pytest.approx(told, abs=1e-3)
    with pytest.raises(ValueError, match="size=500 of 400 rows"):
        shared_information(a, b, size=500)


def test_views_without_anything_in_common_are_not_told_apart_and_equal_ones_are():
    a, b = rows(4000, width=32, seed=1), rows(4000, width=32, seed=2)
    assert abs(shared_information(a, b)) < 0.01
    assert shared_information(a, a) > 0.999


@pytest.mark.parametrize("near", [0.3, 1.0, 3.0])
def test_groups_are_read_colder_exactly_where_the_loss_has_its_least_value_there(near):
    a = rows(40, seed=1).double()
    b = unit(near * a + rows(40, seed=2).double())
    grid = [2 ** (-k / 8) for k in range(-16, 80)]
    best = min(grid, key=lambda t: float(conditional_info_nce(a, b, size=20, temperature=t)))
    assert 4 > best > 2**-9.9  # within the grid
    assert read_colder(a, b, size=20, temperature=1.1 * best)
    assert not read_colder(a, b, size=20, temperature=best / 1.1)


def test_the_finder_sees_classes_though_a_folder_comes_class_by_class():
    images = open_images("digits")
    recipe = conditionally(batch_size=179)  # as many as a class has
    order = images.label.argsort()
    torch.manual_seed(0)
    encoder = adapt.build(recipe, images)
    before = torch.get_rng_state()
    mixed, sorted_ = (embedded(encoder, i, recipe)[0] for i in (images, images.subset(order)))
    assert (mixed[order] * sorted_).sum(dim=1).mean() > 0.95
    assert torch.equal(torch.get_rng_state(), before)


def seen(a, b, familiar=None):
    return Seen(
        a, b, a, torch.zeros(len(a), 28, 28), torch.arange(len(a)), torch.zeros(len(a)).long(),
        Network(0, 10), torch.nn.Linear(8, 1), familiar, None,
    )  # fmt: skip


def test_remedies_are_the_plain_loss_where_there_is_nothing_to_remedy():
    a, b = rows(16, seed=1), rows(16, seed=2)
    usual = plain(seen(a, b))
    torch.testing.assert_close(modified(seen(a, b), epsilon=0.0), usual)
    assert modified(seen(a, b), epsilon=0.1) > usual
    torch.testing.assert_close(weighted(seen(a, b)), usual)
    same = torch.ones(16, 1)
    torch.testing.assert_close(weighted(seen(a, b, same)), usual)


def test_weights_of_one_code_each_are_groups():
    """With a narrow bandwidth only negatives of the anchor's own code are left."""
    a, b = rows(20, seed=1), rows(20, seed=2)
    code = torch.eye(4).repeat_interleave(5, dim=0)
    found = weighted(seen(a, b, code), bandwidth=0.01)
    torch.testing.assert_close(found, conditional_info_nce(a, b, size=5, temperature=0.1))


@pytest.mark.parametrize(
    "remedy",
    [
        "conditional",
        pytest.param("groups kept", marks=pytest.mark.slow),
        pytest.param("shared against not", marks=pytest.mark.slow),
    ],
)
def test_a_cell_trains_and_repeats_itself(tmp_path, remedy):
    small = {"images": "digits", "epochs": 2, "batch_size": 200, "size": 20, "bits": 4, "seed": 0}
    one, again = (cell(tmp_path, remedy=remedy, **small) for _ in range(2))
    assert one.pop("cpu_seconds") > 0 and again.pop("cpu_seconds") > 0
    assert one == again and set(one) == set(EXPERIMENT.measures) - {"cpu_seconds"}
    assert remedy != "groups kept" or one["group"] == 20


# ---- in the training loop: --set batches=conditional ---------------------------------------------


def test_parts_of_a_batch_contrast_on_their_own():
    z, image = rows(24, seed=1), torch.arange(12).repeat(2)
    part = (torch.arange(12) // 4).repeat(2)
    within = in_batch(torch.arange(12), torch.arange(12), torch.arange(12) // 4, 2)
    loss = partial(losses.nt_xent, temperature=0.2)
    each = [loss(z[part == p], image[part == p]) for p in range(3)]
    torch.testing.assert_close(within.loss(loss, z), torch.stack(each).mean())
    key, pairs, _ = within.negatives(z)
    asked = pairs.mask()
    wanted = (part[:, None] == part) & (image[:, None] != image)
    assert torch.equal(key, z) and torch.equal(asked, wanted)
    one = in_batch(torch.arange(12), torch.arange(12), torch.zeros(12, dtype=torch.long), 2)
    torch.testing.assert_close(one.loss(loss, z), loss(z, image))


def test_batches_hold_whole_groups_and_every_epoch_has_as_many():
    chosen = conditional(103, 32, sizes=(7,))
    plainly = chosen.order(3, seed=1)
    assert plainly.shape == (3, 32) and len(plainly.unique()) == 96
    chosen.groups = neighbour_groups(rows(103), 7, draw())
    order = chosen.order(3, seed=1)
    assert order.shape[1] == 28 and len(order) >= 3 and len(order.unique()) == order.numel()
    known = {frozenset(g.tolist()) for g in chosen.groups}
    assert {frozenset(g.tolist()) for g in order.view(-1, 7)} <= known
    assert not torch.equal(order, chosen.order(4, seed=1))
    with pytest.raises(ValueError, match="after=0"):
        conditional(103, 32, after=0)
    with pytest.raises(ValueError, match=r"sizes=\(40,\) in batches of 32"):
        conditional(103, 32, sizes=(40,))


def shortcut(bits: int):
    return open_images(f"random-bits(digits, bits={bits})")


def conditionally(**changes):
    simclr = recipes.recipe_for("simclr", 8, 1)
    values = dict(
        backbone=partial(encoders.small_conv, width=32), batches=partial(conditional, after=2),
        epochs=5, warmup=0, batch_size=128,
    )  # fmt: skip
    return dataclasses.replace(simclr, **values | changes)


def test_a_shortcut_is_found_and_the_run_resumes_bit_for_bit(tmp_path):
    images = shortcut(6)
    whole = contrapose.train(conditionally(), images, out=tmp_path / "whole")
    sizes = [row["part_size"] for row in whole.metrics()]
    assert sizes[0] == 128 and sizes[-1] in SIZES
    assert whole.metrics()[-1]["loss_at_chance"] == pytest.approx(
        math.log(2 * sizes[-1] - 1), abs=1e-4
    )

    def stop(progress):
        if progress.step == 3 * 14 + 5:  # within an epoch, after the groups were made
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTraining):
        contrapose.train(conditionally(), images, out=tmp_path / "broken", watch=stop)
    run = contrapose.resume(tmp_path / "broken", images=images)
    for name, weight in whole.load_checkpoint()[0].items():
        assert torch.equal(weight, run.load_checkpoint()[0][name]), name


def test_without_a_shortcut_the_run_is_the_plain_one(tmp_path):
    images = open_images("digits")
    asked = contrapose.train(conditionally(), images, out=tmp_path / "asked")
    usual = contrapose.train(conditionally(batches=None), images, out=tmp_path / "usual")
    assert {row["part_size"] for row in asked.metrics()} == {128.0}
    for name, weight in usual.load_checkpoint()[0].items():
        assert torch.equal(weight, asked.load_checkpoint()[0][name]), name


def test_what_an_untrained_network_tells_apart_is_of_images_and_views_alone():
    """Little of plain digits, most with 8 bits: whatever temperature, batch and network."""
    plain, with_bits = open_images("digits"), shortcut(8)
    recipe = conditionally()
    others = [
        dataclasses.replace(recipe, loss=partial(losses.nt_xent, temperature=1.0)),
        dataclasses.replace(recipe, batch_size=64),
        dataclasses.replace(recipe, backbone=partial(encoders.small_conv, width=8)),
    ]
    for images, low, high in ((plain, 0.0, 0.2), (with_bits, EASY, 1.0)):
        asked = [adapt.beside_constants(r, images) for r in (recipe, *others)]
        told = {untrained_information(adapt.build(r, images), images, r) for r in asked}
        assert len(told) == 1 and low < told.pop() < high


def test_batches_are_set_by_name_and_refused_where_they_do_not_fit(tmp_path):
    images, out = open_images("digits"), tmp_path / "run"

    def train(*changes, **fields):
        contrapose.train(conditionally(epochs=3.1, **fields), images, out=out, changes=changes)

    with pytest.raises(ValueError, match=r"perplexity=20 effective negatives, but there are 8"):
        train("loss.perplexity=20")  # in groups of 5
    with pytest.raises(ValueError, match="leave it out with keys"):
        train("keys=queue")
    with pytest.raises(ValueError, match=r"batches=conditonal.*did you mean 'conditional'"):
        train("batches=conditonal")
    with pytest.raises(ValueError, match=r"asks after epoch 4, and training ends with epoch 3\.1"):
        train("batches.after=4")
    assert not out.exists()
    train("batches=conditional", "batches.after=3", "batches.sizes=20,10", batches=None)
    written = Run.open(out).read("recipe.json")["recipe"]["batches"]
    assert written["after"] == 3 and written["sizes"] == [20, 10]
