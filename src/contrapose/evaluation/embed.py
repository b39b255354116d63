"""Computing h and z of images, with every module in evaluation mode."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.augment import center, views
from contrapose.data import ImageSet
from contrapose.encoders import Encoder, modes_kept
from contrapose.errors import UserError
from contrapose.machine import has_float64
from contrapose.portions import seed_of_step
from contrapose.processes import Rank, shared
from contrapose.progress import counted


@dataclass(frozen=True)
class Embedded:
    """Representations h and embeddings z, float32 on the CPU, in the order of the images."""

    h: Float[Tensor, "N F"]  # representation
    z: Float[Tensor, "N D"]  # embedding, of unit length where the head says so


@torch.no_grad()
def embed(
    encoder: Encoder,
    images: ImageSet,
    *,
    size: int,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16", "fp64"] = "fp32",
    batch_size: int = 256,
    me: Rank | None = None,
) -> Embedded:
    """h and z of every image, centre-cropped to `size` px, without augmentation.

    The encoder is moved to `device`. Every module is in evaluation mode meanwhile, so that batch
    norm uses its running statistics and does not change them; afterwards modes are restored.
    precision: "bf16" runs the network under autocast; "fp64" runs a copy in float64, so that a row,
    rounded to float32, does not depend on the rest of its batch.
    me: this process among those that share the images, each of which calls this: whole batches, so
    that a row is that of one process. In the end all of them hold all rows, 4 N (F + D) bytes each,
    and for a moment their own share twice.
    Raises UserError for an empty set, and if an output is not finite.
    """
    if len(images) == 0:
        raise UserError(f"embed: {images.name} ({images.split}) has no images")
    if precision not in ("fp32", "bf16", "fp64"):
        raise UserError(f"embed: precision={precision!r}; use 'fp32', 'bf16' or 'fp64'")
    device = torch.device(device)
    if precision == "fp64" and not has_float64(device):
        device = torch.device("cpu")
    encoder.to(device)
    if precision == "fp64":
        encoder = copy.deepcopy(encoder).double()

    def rows(batches: Sequence[Tensor]) -> list[Tensor]:
        parts: list[tuple[Tensor, Tensor]] = []
        for index in counted(batches, f"embedding {len(images):,} images"):
            _assert_evaluating(encoder)
            x = center(images.batch(index).to(device), size)
            x = x.double() if precision == "fp64" else x
            with _autocast(device, precision):
                h, z = encoder(x)
            parts.append((h.float().cpu(), z.float().cpu()))
        return [torch.cat(columns) for columns in zip(*parts, strict=True)]

    with modes_kept(encoder):
        encoder.eval()
        batches = torch.split(torch.arange(len(images)), batch_size)
        found = Embedded(*(me or Rank()).rows_of(batches, rows))
    bad = int((~(found.h.isfinite().all(dim=1) & found.z.isfinite().all(dim=1))).sum())
    if bad:
        raise shared(
            UserError(
                f"embed: {bad} of {len(images)} images of {images.name} have a representation that "
                "is not finite: the weights diverged, or bf16 overflowed (try precision='fp32')"
            )
        )
    return found


@torch.no_grad()
def embed_views(
    encoder: Encoder,
    images: ImageSet,
    policy: Callable[..., Tensor],
    *,
    n: int = 2,
    features: Literal["h", "z"] = "z",
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    me: Rank | None = None,
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """(z or h of n views of each image, view by view; the image that each row shows).

    In evaluation mode, and shared among processes, as in `embed`; afterwards modes are restored.
    The views of a batch follow from the seed and the number of the batch.
    """
    which = 0 if features == "h" else 1
    encoder.to(device)
    generator = torch.Generator(device)

    def rows(batches: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        found = []
        for number, index in counted(batches, f"embedding views of {len(images):,} images"):
            generator.manual_seed(seed_of_step(seed, number))
            seen = views(policy, images.batch(index).to(device), generator, n=n)
            found.append(torch.stack([encoder(view)[which].float().cpu() for view in seen], dim=1))
        return [torch.cat(found)]

    with modes_kept(encoder):
        encoder.eval()
        batches = torch.split(torch.arange(len(images)), batch_size)
        (z,) = (me or Rank()).rows_of([*enumerate(batches)], rows)
    return z.transpose(0, 1).flatten(0, 1), torch.arange(len(images)).repeat(n)


def _assert_evaluating(encoder: Encoder) -> None:
    training = [name or "encoder" for name, module in encoder.named_modules() if module.training]
    if training:
        raise RuntimeError(
            f"embed: {', '.join(training[:3])} stayed in training mode; features would depend on "
            "the batch they were computed in"
        )


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    bf16 = precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
