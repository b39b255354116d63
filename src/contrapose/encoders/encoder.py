"""The encoder: a backbone computes h, a projection head z, and possibly a classifier logits of h.

h is the representation, z the embedding; the classifier is linear.
Backbones and heads are functions that return modules, so that a recipe can hold them as
`functools.partial(resnet18, stem="cifar")` and `functools.partial(mlp, dim=128)`. Images stay in
[0, 1]: the encoder subtracts `mean` and divides by `std` itself.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from contrapose.encoders.weights import FINAL, read_weights
from contrapose.errors import UserError
from contrapose.files import conform
from contrapose.partials import describe, revive, unknown

ARCHITECTURE: dict[str, Any] = {  # in the metadata of an encoder file
    "backbone": str | dict, "head": str | dict, "classes?": [str],
}  # fmt: skip


class Encoder(nn.Module):
    """x -> h = backbone((x - mean) / std) -> z = head(h) / |head(h)|, or head(h) as it is.

    backbone: a module from [B, C, H, W] to h [B, F], with an attribute `width`, which is F.
    head: a module from [B, F] to [B, D]; its `unit_length` says if z is normalised (see `heads`).
    mean, std: one number per channel, for images in [0, 1].
    classifier: a dense layer from h to the logits [B, C] of `classes`, or None.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        classifier: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise UserError(
                f"Encoder: mean {tuple(mean)} and std {tuple(std)} must have one number per "
                "channel each, and every std must be positive"
            )
        self.backbone, self.head, self.classifier = backbone, head, classifier
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

        self.architecture: dict[str, Any] | None = None
        self.frozen: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        backbone: Callable[..., nn.Module],
        head: Callable[..., nn.Module],
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str] | None = None,
        *,
        bias: bool = True,
    ) -> "Encoder":
        """The encoder of backbone() and head(width); their names are kept for `to_bytes`.

        classes: the classes of a linear classifier on h; None for no classifier. bias: True for
        logits W h + b, False for W h.
        """
        body = backbone()
        top = head(body.width)
        width: Any = body.width
        linear = None if classes is None else nn.Linear(width, len(classes), bias=bias)
        if linear is not None:
            linear.to(next((p.dtype for p in body.parameters()), torch.float32))
        encoder = cls(body, top, mean, std, linear)
        encoder.architecture = {"backbone": describe(backbone), "head": describe(head)}
        if classes is not None:
            encoder.architecture["classes"] = list(classes)
        return encoder

    @classmethod
    def load(cls, path: Path | str, own: ModuleType | None = None) -> "Encoder":
        """The encoder of a run folder or of a .safetensors file, in evaluation mode.

        No code of the file is executed: it names functions of this library, or of `own`, the module
        of a recipe file that you trust. Raises FileNotFoundError or UserError.
        """
        weights, metadata, file = read_weights(Path(path))
        written = metadata.get("encoder")
        if written is None:
            raise UserError(f"{file} names no architecture; was it written by contrapose?")
        try:
            architecture = conform(json.loads(written), ARCHITECTURE, "architecture")
            mean, std = (weights[name].tolist() for name in ("mean", "std"))
            backbone, head = (revive(architecture[part], own) for part in ("backbone", "head"))
            classes, bias = architecture.get("classes"), "classifier.bias" in weights
            encoder = cls.build(backbone, head, mean, std, classes, bias=bias)
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            raise UserError(f"{file} holds no encoder that can be built: {error}") from error
        try:
            encoder.load_state_dict(weights)
        except RuntimeError as error:  # torch lists every weight
            raise UserError(
                f"{file} holds other weights than its backbone and head have: "
                f"{architecture['backbone']}, {architecture['head']}"
            ) from error
        return encoder.eval()

    def to_bytes(self, final_step: int | None = None) -> bytes:
        """The content of a .safetensors file for `load`: weights and names of the architecture.

        final_step: the step at which training ended, to be noted in the file.
        """
        weights = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        named = (self.architecture or {}) | ({} if final_step is None else {FINAL: final_step})
        # one entry: safetensors writes several in any order
        return safetensors_bytes(weights, metadata={"encoder": json.dumps(named or None)})

    def freeze(self, parts: Sequence[str]) -> None:
        """Freeze parts: training does not change their weights and batch norm statistics.

        parts: names of modules, such as `backbone`, `head` or `backbone.layer1`. Raises UserError
        for an unknown name, and if nothing is left to train.
        """
        known = {name: part for name, part in self.named_modules() if name}
        for name in parts:
            if name not in known:
                near = [n for n in known if n.count(".") <= name.count(".")]
                raise UserError(f"--freeze {name}: the encoder has no part {unknown(name, near)}")
            known[name].requires_grad_(False)
        self.frozen = tuple(parts)
        if parts and not any(p.requires_grad for p in self.parameters()):
            raise UserError(f"--freeze {','.join(parts)}: nothing is left to train")
        self.train(self.training)

    def train(self, mode: bool = True) -> "Encoder":
        """As torch's, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def width(self) -> int:
        """F, the width of the representation h."""
        return int(self.backbone.width)  # type: ignore[arg-type]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the classifier in the order of its logits; () without one."""
        return tuple((self.architecture or {}).get("classes", ()))

    def logits(self, h: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        """The logits of the classifier, in float32 or float64; UserError without a classifier."""
        if self.classifier is None:
            raise UserError(
                "this encoder has no classifier: train one with --recipe cross_entropy, or beside "
                "another loss with --set classifier=cross_entropy"
            )
        logits: Tensor = self.classifier(h)
        return logits.to(_widened(logits))

    @property
    def unit_length(self) -> bool:
        """True if z is divided by its length (an attribute of the head)."""
        return bool(getattr(self.head, "unit_length", True))

    def represent(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """The representation h, which is used after training; x is float in [0, 1]."""
        if x.ndim != 4 or x.shape[1] != self.channels or not x.is_floating_point():
            raise UserError(
                f"Encoder: got {x.dtype} of shape {tuple(x.shape)}; needs float images in [0, 1] "
                f"of shape [B {self.channels} H W]"
            )
        h: Tensor = self.backbone((x - self.mean[:, None, None]) / self.std[:, None, None])
        return h

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B F"], Tensor]:
        """(h, z). z [B, D] is float32 in any precision, of unit length if `unit_length`."""
        h = self.represent(x)
        z: Tensor = self.head(h)
        return h, unit(z) if self.unit_length else z.to(_widened(z))


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """A context that restores the mode, training or evaluation, of every submodule at its end."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def unit(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """x / |x| row by row, in float32 or float64; a row shorter than 1e-6 stays as it is.

    The gradient of x / |x| is as large as 1/|x|, so that a single row close to 0 would outweigh the
    rest of the batch.
    """
    x = x.to(_widened(x))
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length < 1e-6, 1.0, length)


def _widened(x: Tensor) -> torch.dtype:
    """float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
