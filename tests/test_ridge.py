"""Ridge regression beside scikit-learn's, with fewer directions than columns or rows too."""

import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV

from contrapose.evaluation.ridge import Ridge


def rows(n, d, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, min(n, d, rank or d), generator=generator).double()
    x = x @ torch.randn(x.shape[1], d, generator=generator).double() if rank or n < d else x
    return x, torch.randn(n, 3, generator=generator).double()


SHAPES = {
    "tall": rows(80, 6),
    "wide": rows(9, 40),
    "square": rows(12, 12),
    "columns that depend on each other": rows(60, 20, rank=4),
    "rows that depend on each other": rows(20, 60, rank=4),
    "equal columns": tuple(t[:, [0, 0, 1, 2, 2]] for t in rows(50, 3)),
    "zeros": (torch.zeros(5, 3), torch.ones(5, 2)),
    "one row": rows(1, 5),
}


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_scikit_learns(shape, strength):
    x, y = SHAPES[shape]
    theirs = SklearnRidge(alpha=strength, fit_intercept=False, solver="svd").fit(x, y)
    ours = Ridge(x, y).weight(strength)
    torch.testing.assert_close(
        ours, torch.from_numpy(theirs.coef_.T).to(ours), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_penalty_it_is_least_squares_of_the_smallest_norm(shape):
    x, y = (t.double() for t in SHAPES[shape])
    ours = Ridge(x, y).weight(1e-13)
    torch.testing.assert_close(ours, torch.linalg.pinv(x, rtol=1e-9) @ y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", ["tall", "wide", "columns that depend on each other"])
def test_the_derivative_of_the_objective_is_zero(shape):
    x, y = SHAPES[shape]
    weight = Ridge(x, y).weight(0.3).requires_grad_()
    ((y - x @ weight).square().sum() + 0.3 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-10


@pytest.mark.parametrize("shape", ["tall", "columns that depend on each other"])
def test_generalised_cross_validation_is_its_formula(shape):
    x, y = SHAPES[shape]
    ridge = Ridge(x, y)
    for strength in (0.1, 10.0):
        hat = x @ torch.linalg.solve(
            x.T @ x + strength * torch.eye(x.shape[1]).double(), x.T.clone()
        )
        left = (y - hat @ y).square().sum() / len(x)
        expected = left / (1 - hat.trace() / len(x)) ** 2
        assert ridge.cross_validated(strength) == pytest.approx(float(expected), rel=1e-9)


def test_the_strength_it_prefers_is_near_that_of_leaving_one_out():
    x, _ = rows(200, 30, seed=1)
    y = x[:, :1] + 3 * rows(200, 30, seed=2)[1][:, :1]
    strengths = [10.0**k for k in range(-3, 5)]
    theirs = RidgeCV(alphas=strengths, fit_intercept=False).fit(x, y[:, 0]).alpha_
    assert min(strengths, key=Ridge(x, y).cross_validated) == theirs


def test_what_cannot_be_fitted_is_refused():
    x, y = SHAPES["tall"]
    with pytest.raises(ValueError, match=r"strength=0.0; give a number above 0"):
        Ridge(x, y).weight(0.0)
    with pytest.raises(ValueError, match=r"shape \(0, 6\) and targets of shape \(0, 3\)"):
        Ridge(x[:0], y[:0])
