"""Multinomial logistic regression with an l2 penalty, solved to its minimum by Newton's method.

    minimises  sum_i CE(W x_i + b, y_i) + l2 / 2 |W|^2,    p_i the softmax of W x_i + b

Each step solves H d = -g by conjugate gradients, which need products of the Hessian alone:
(H d)_c = sum_i p_ic (u_ic - sum_k p_ik u_ik) x_i + l2 d_c with u_i = d x_i. What is left to gain is
then known: g.H^-1 g / 2, half the squared Newton decrement, in units of the objective.

Gradient, objective and steps are float64: where classes can be told apart, a weak penalty leaves
losses of 1e-6 a row, which float32 does not tell from 0. Products inside the conjugate gradients
only say which way to go, and are of the precision of the features as long as that goes well.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEWTON_STEPS = 100  # digits and ReLU features need 2 to 20 at any l2 from 1e5 to 1e-6
INNER_STEPS = 1000  # of the conjugate gradients, for one Newton step
GAP = 1e-7  # of the objective: a step that gains less was the last one
SMALLER = 1e-2  # of the squared residual, at which conjugate gradients stop
SLOW = 20  # conjugate gradient steps after which a better preconditioner is worth its making
SURE = 1e-25  # probabilities below it count as 0 in float32 products, which slow down below 1e-38

Step = tuple[Tensor, Tensor, Tensor]  # of W [C D], of b [C 1], and what it does to logits [C N]


class LogisticRegression:
    """The regression on given rows, for one l2 after another, each from the solution before it.

    Conjugate gradients are preconditioned by one matrix for all classes: X^T diag(v) X + l2, with
    v_i = sum_c p_ic (1 - p_ic) / (C - 1), taken as its mean over the rows (X^T X is then made once)
    until that needs more than SLOW steps, and as it is from then on.
    """

    def __init__(
        self,
        x: Float[Tensor, "N D"],
        y: Int[Tensor, " N"],
        classes: int,
        *,
        standardise: bool = True,
        newton_steps: int = NEWTON_STEPS,
    ) -> None:
        self.given, self.y, self.newton_steps = x.dtype, y, newton_steps
        self.x = x.to(torch.float64, copy=True)
        std, self.mean = torch.std_mean(self.x, dim=0, correction=0)
        self.std = torch.where(std > 1e-12, std, 1.0) if standardise else torch.ones_like(std)
        self.x.sub_(self.mean).div_(self.std)
        self.inner = self.x.to(x.dtype)  # for products inside the conjugate gradients
        self.gram = (self.inner.T @ self.inner).double()
        self.weight, self.bias = self.x.new_zeros(classes, x.shape[1]), self.x.new_zeros(classes, 1)
        self.slow = False
        # of the last l2, what was left to gain relative to the objective: an estimate
        self.gap, self.converged = math.inf, False

    def solve(self, l2: float) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """Weight and bias for features as they came; `converged` and `gap` say how it went."""
        rows, before = torch.arange(len(self.x), device=self.x.device), math.inf
        self.converged = False

        def objective(logits: Tensor, square: Tensor) -> Tensor:
            cross_entropy = (logits.logsumexp(dim=0) - logits[self.y, rows]).sum()
            return cross_entropy + l2 / 2 * square

        for _ in range(self.newton_steps):
            logits = self.weight @ self.x.T + self.bias
            value = objective(logits, self.weight.square().sum())
            p = logits.softmax(dim=0)
            residual = p.clone()
            residual[self.y, rows] -= 1
            gradient = residual @ self.x + l2 * self.weight, residual.sum(dim=1, keepdim=True)
            rounding = 1e-13 * float(value)
            (dweight, dbias, dlogits), solved = self._newton_step(p, *gradient, l2, rounding)
            # g.d is -g.H^-1 g: what is to be gained is half of that
            gain = -float((gradient[0] * dweight).sum() + (gradient[1] * dbias).sum()) / 2
            square, cross, own = (
                (a * b).sum()
                for a, b in ((dweight, dweight), (self.weight, dweight), (self.weight,) * 2)
            )
            length = 1.0
            while True:
                there = own + 2 * length * cross + length**2 * square
                reached = objective(logits + length * dlogits, there)
                enough = reached <= value - 2e-4 * length * gain
                if enough or gain <= rounding or length < 1e-8:
                    break
                length /= 2
            self.weight, self.bias = self.weight + length * dweight, self.bias + length * dbias
            self.gap = gain / float(reached)
            self.converged = solved and length == 1 and self.gap <= GAP
            if self.converged:
                break
            if not solved or gain > before / 4:  # float32 may be what slows it
                self.inner = self.x
            before = gain
        weight = self.weight / self.std
        bias = self.bias[:, 0] - weight @ self.mean
        return weight.to(self.given), bias.to(self.given)

    def _newton_step(
        self, p: Float[Tensor, "C N"], dweight: Tensor, dbias: Tensor, l2: float, rounding: float
    ) -> tuple[Step, bool]:
        """-H^-1 times the gradient, and whether conjugate gradients got as far as SMALLER.

        Nothing is looked for where the objective could not gain more than `rounding`.
        """
        x, precondition = self.inner, self._preconditioner(p, l2)
        shares = torch.where(p > SURE, p, 0.0).to(x.dtype)
        found = torch.zeros_like(dweight), torch.zeros_like(dbias), torch.zeros_like(p)
        r, r_bias = -dweight, -dbias
        d, d_bias = precondition(r, r_bias)
        size = start = float((r * d).sum() + (r_bias * d_bias).sum())
        for step in range(INNER_STEPS):
            if size <= max(SMALLER * start if step else 0.0, rounding):
                self.slow = self.slow or step > SLOW
                return found, True
            u = d.to(x.dtype) @ x.T + d_bias.to(x.dtype)
            turned = shares * u
            turned -= shares * turned.sum(dim=0)
            h, h_bias = (turned @ x).double() + l2 * d, turned.sum(dim=1, keepdim=True).double()
            curvature = float((d * h).sum() + (d_bias * h_bias).sum())
            if not curvature > 0:
                break
            by = size / curvature
            for total, part in zip(found, (d, d_bias, u), strict=True):
                total.add_(part, alpha=by)
            r, r_bias = r - by * h, r_bias - by * h_bias
            s, s_bias = precondition(r, r_bias)
            before, size = size, float((r * s).sum() + (r_bias * s_bias).sum())
            d, d_bias = s + size / before * d, s_bias + size / before * d_bias
        self.slow = True
        return found, False

    def _preconditioner(
        self, p: Float[Tensor, "C N"], l2: float
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        weight = (p * (1 - p)).sum(dim=0) / max(len(p) - 1, 1)
        total = weight.sum().clamp(min=1e-100)
        if not self.slow:
            root, failed = self._root(self.gram * weight.mean(), l2)
            self.slow = bool(failed)  # X^T X of float32 products need not be positive
        if self.slow:
            root, _ = self._root((self.x * weight[:, None]).T @ self.x, l2)

        def apply(r: Tensor, r_bias: Tensor) -> tuple[Tensor, Tensor]:
            # biases that are all moved alike change nothing: H has no inverse there
            return torch.cholesky_solve(r.T, root).T, (r_bias - r_bias.mean()) / total

        return apply

    @staticmethod
    def _root(matrix: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of matrix + l2, and above 0 where there is none."""
        diagonal = matrix.diagonal()
        diagonal += l2 + 1e-14 * diagonal.max()
        root, failed = torch.linalg.cholesky_ex(matrix)
        return root, failed
