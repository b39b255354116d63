"""Ridge regression on given rows, at any strength from one decomposition.

    W minimises  |Y - X W|^2 + strength |W|^2,    W = (X^T X + strength)^-1 X^T Y
                                                    = X^T (X X^T + strength)^-1 Y

The smaller of the two Gram matrices is decomposed, in float64. Directions in which its eigenvalue
is rounding, below N or D units in the last place of the largest, are none: W is 0 there, as it is
for features that depend on each other and for more columns than rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from contrapose.errors import UserError


class Ridge:
    """Ridge regression of y on x, without intercept: centre both for one."""

    def __init__(self, x: Float[Tensor, "N D"], y: Float[Tensor, "N F"]) -> None:
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
            raise UserError(
                f"ridge: features of shape {tuple(x.shape)} and targets of shape {tuple(y.shape)}; "
                "give as many rows of both, at least one"
            )
        self.x, self.y = x.double(), y.double()
        wide = x.shape[1] > x.shape[0]
        value, axes = torch.linalg.eigh(self.x @ self.x.T if wide else self.x.T @ self.x)
        floor = value.amax(dim=0, keepdim=True) * len(value) * torch.finfo(value.dtype).eps
        self.value = torch.where(value > floor, value, 0.0) if len(value) else value
        towards = axes.T @ (self.y if wide else self.x.T @ self.y)
        self.towards = torch.where(self.value[:, None] > 0, towards, 0.0)
        self.axes = self.x.T @ axes if wide else axes

    def weight(self, strength: float) -> Float[Tensor, "D F"]:
        """W; UserError unless the strength is above 0."""
        if not strength > 0:
            raise UserError(f"ridge: strength={strength}; give a number above 0")
        weight: Tensor = self.axes @ (self.towards / (self.value + strength)[:, None])
        return weight

    def cross_validated(self, strength: float) -> float:
        """Generalised cross-validation: |Y - X W|^2 / N / (1 - tr H / N)^2, H = X W's part of Y.

        Leaving one row out and predicting it, with the leverage of each row taken as their mean.
        """
        n = len(self.x)
        left = float((self.y - self.x @ self.weight(strength)).square().sum()) / n
        return left / (1 - float((self.value / (self.value + strength)).sum()) / n) ** 2
