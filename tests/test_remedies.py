"""Negatives within groups that share the shortcut: the groups, the loss, the bench of remedies."""

import pytest
import torch

from contrapose.encoders import unit
from contrapose.experiments.random_bits_notebook import Network, cross_view
from contrapose.experiments.remedies import EXPERIMENT, Seen, cell, modified, plain, weighted
from contrapose.training.conditional import (
    best_temperature,
    conditional_info_nce,
    group_size,
    neighbour_groups,
)


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


def test_groups_are_asked_for_where_content_is_kept_too_small_to_be_felt():
    """60 codes of 100 images. At t = 0.1 a finder whose views differ by noise of 0.1 to 0.3 is read
    at about its own temperature; content of a tenth of the code's size is not."""
    n = 6000
    code = rows(60, 16, seed=1)[torch.arange(n) % 60]
    content = rows(n, 32, seed=2)

    def finder(size, noise):
        z = torch.cat([code, size * content], dim=1)
        views = [z + noise * size * torch.randn(z.shape, generator=draw(k)) for k in (3, 4)]
        return unit(z), unit(views[0]), unit(views[1])

    assert group_size(*finder(0.15, 0.2), draw(), temperature=0.1, sizes=(40, 10)) == 40
    assert group_size(*finder(1.0, 0.3), draw(), temperature=0.1, sizes=(40, 10)) is None


def test_the_best_temperature_follows_the_scale_of_differences():
    a, b = rows(40, seed=1), rows(40, seed=2)
    near = unit(0.5 * a + b)
    own = best_temperature(a, near, size=20)
    shared = torch.ones(40, 1)
    far = [torch.cat([shared, x], dim=1) / 2**0.5 for x in (a, near)]  # differences halve
    assert best_temperature(*far, size=20) == pytest.approx(own / 2, rel=1e-6)


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
