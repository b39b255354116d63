"""A loss with its operands, computed by one process in float64 or by several in any precision."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from contrapose.similarity import across, dense, using
from contrapose.verification.inputs import data, keywords, parameters_of, the_same_everywhere
from contrapose.verification.stored import sources_of, stored_data, stored_losses


@dataclass(frozen=True)
class Inputs:
    """Rows on the sphere in groups of one, two, three and five, in random order."""

    name: str
    rows: int
    dim: int
    temperature: float

    def z(self) -> Float[Tensor, "N D"]:
        generator = torch.Generator().manual_seed(self.rows)
        return normalize(torch.randn(self.rows, self.dim, generator=generator).double(), dim=1)

    def group(self) -> Int[Tensor, " N"]:
        sizes = torch.tensor([1, 2, 2, 3, 5, 2, 3, 2, 1, 3]).repeat(1 + self.rows // 24)
        group = torch.arange(len(sizes)).repeat_interleave(sizes)[: self.rows]
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(1))
        return 10 * group[order]

    def of_rows(self, name: str) -> Tensor:
        """`anchor`: two thirds of the rows; `image`: the rows of a group by twos."""
        if name == "anchor":
            return torch.arange(self.rows) % 3 > 0
        group = self.group()
        earlier = (group[:, None] == group[None, :]).tril(-1).sum(dim=1)
        return 100 * group + earlier // 2


@dataclass(frozen=True)
class Form:
    """A way to call a loss: other settings, and further arguments with one entry a row."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    rows: tuple[str, ...] = ()


PLAIN = Form("")
FORMS = (
    Form(" ppl/batch", (("perplexity", 5.0), ("per", "batch"))),
    Form(" ppl/anchor", (("perplexity", 5.0), ("per", "anchor"))),
    Form(" anchors", rows=("anchor",)),
    Form(" capped", (("max_positives", 2),), ("image",)),
)


@dataclass(frozen=True)
class Outcome:
    """A loss, and its gradient in everything differentiable by the name of the argument."""

    loss: float
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A loss and what it is called with; `stored`: the queue, bank or memory of its keys."""

    loss: Callable[..., Tensor]
    inputs: Inputs
    stored: str | None = None
    form: Form = PLAIN

    @property
    def name(self) -> str:
        return self.loss.__name__ + self.form.name

    @cached_property
    def data(self) -> dict[str, Tensor]:
        rows = self.inputs.z(), self.inputs.group()
        if self.stored:
            return stored_data(*rows)
        parameters = parameters_of(self.loss)
        given = dict(zip(parameters, data(parameters, *rows), strict=False))
        if "labels" in given:
            several = [rows[1] % 3 == 0, rows[1] % 5 == 1, rows[1] % 2 == 0]
            given["labels"] = torch.stack(several, dim=1).to(torch.int8)
        return given | {name: self.inputs.of_rows(name) for name in self.form.rows}

    @cached_property
    def spread(self) -> set[str]:
        """The data that are rows of the batch: processes hold different ones."""
        all_hold = set() if self.stored else the_same_everywhere(parameters_of(self.loss))
        return self.data.keys() - all_hold

    @property
    def rows(self) -> int:
        return len(self.data[min(self.spread)])

    def settings(self) -> dict[str, Any]:
        """The keywords; those that may be learned are tensors."""
        parameters = parameters_of(self.loss)
        given = keywords(parameters, self.inputs.temperature)
        learned = {name for name in given if "Tensor" in str(parameters[name].annotation)}
        given = {k: torch.tensor(v).double() if k in learned else v for k, v in given.items()}
        if "perplexity" in dict(self.form.settings):
            del given["temperature"]
        return given | dict(self.form.settings)

    def expected(self, precision: torch.dtype) -> Outcome:
        """By definition: whole matrices, float64, one process, with operands rounded before."""
        with using(dense):
            return self.solved(precision, compute=torch.float64)

    def plain(self, precision: torch.dtype) -> Outcome:
        """With whole matrices in this precision, on one process."""
        with using(dense):
            return self.solved(precision)

    def solved(
        self,
        precision: torch.dtype,
        *,
        rows: slice = slice(None),
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
        compute: torch.dtype | None = None,
    ) -> Outcome:
        """The outcome of a process with some of the rows; other processes of `group` have the
        rest."""

        def operand(name: str, x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x[rows] if name in self.spread else x
            if not x.is_floating_point():
                return x.to(device)
            # a learned number is kept in float32 at least, as optimisers do
            rounded = x.to(precision if x.ndim else torch.promote_types(precision, torch.float32))
            return rounded.to(device, compute or rounded.dtype, copy=True).requires_grad_()

        operands = {k: operand(k, x) for k, x in (self.data | self.settings()).items()}
        joined = contextlib.nullcontext() if group is None else across(group)
        total = 0.0
        with warnings.catch_warnings(), joined:
            warnings.simplefilter("ignore")  # of rows without a positive: they are meant
            for loss in self.losses(operands):
                torch.autograd.backward(loss)
                total += float(loss.detach())
        gradient = {
            name: (torch.zeros_like(x) if x.grad is None else x.grad).double().cpu()
            for name, x in operands.items()
            if isinstance(x, Tensor) and x.is_floating_point()
        }
        return Outcome(total, gradient)

    def losses(self, operands: dict[str, Any]) -> Iterator[Float[Tensor, ""]]:
        """One, or one of every step."""
        if not self.stored:
            yield self.loss(**operands)
            return
        settings = {name: operands[name] for name in self.settings()}
        rows = {name: operands[name] for name in self.data}
        yield from stored_losses(
            self.stored, partial(self.loss, **settings), self.inputs.rows, **rows
        )

    def joined(self, parts: Sequence[Outcome]) -> Outcome:
        """The outcomes of the processes combined as in DDP, by the mean over processes.

        For a row, which only one process has, this is its gradient over the number of processes.
        """
        gradient = {}
        for name in parts[0].gradient:
            pieces = [part.gradient[name] / len(parts) for part in parts]
            whole = torch.cat(pieces) if name in self.spread else torch.stack(pieces).sum(dim=0)
            gradient[name] = whole
        return Outcome(sum(part.loss for part in parts) / len(parts), gradient)


def problems(loss: Callable[..., Tensor], inputs: Inputs) -> list[Problem]:
    """The loss with keys of the batch, as it is and in every form it has, and of stores."""
    known = parameters_of(loss).keys()
    forms = [f for f in FORMS if {*dict(f.settings), *f.rows} <= known]
    found = [Problem(loss, inputs, form=form) for form in (PLAIN, *forms)]
    return found + [Problem(loss, inputs, stored=name) for name in sources_of(loss)]
