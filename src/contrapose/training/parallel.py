"""Training on several ranks: each embeds its images of the global batch, and all stay the same.

The images of a batch are dealt in turn: rank r of W has those at r, r + W, r + 2W ... of the batch,
so that each also has its share of every part and every chunk; of pairs in two halves of the batch,
such as frames near in time, both in turn. Everything beside the encoder (keys,
batches, signals) takes in the rows of the whole batch, gathered in the order of one process.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from contrapose.augment import Policy, views
from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.keys import chunked
from contrapose.losses.checks import LONGEST
from contrapose.partials import describe
from contrapose.portions import Portion, portion_of_batch
from contrapose.processes import Rank, shared
from contrapose.similarity import across, gather_rows
from contrapose.training.batches import drawn
from contrapose.training.compiling import as_asked
from contrapose.training.global_batchnorm import exactly, over_ranks
from contrapose.training.objective import in_halves
from contrapose.training.recipe import Recipe
from contrapose.training.stages import stages_of
from contrapose.training.weight_gradient import sum_first_exactly


class Alone:
    """Training on one process: the batch is whole, and there is nobody to agree with."""

    alone = True

    def __init__(self, encoder: Encoder, recipe: Recipe, compiled: str = "off") -> None:
        self.embed: nn.Module = _Pass(as_asked(encoder, compiled), recipe.chunk)

    def join(self) -> None:
        """Exchange gradients from here on; called by all, with the same weights."""

    def place(self, images: int) -> slice | Shaped[Tensor, " b"]:
        """Which images of a batch this process has."""
        return slice(None)

    @contextmanager
    def sharing(self, images: int) -> Iterator[None]:
        """A context for the step of a batch of so many images."""
        yield

    def whole(self, images: int) -> Callable[[Tensor], Tensor]:
        """A function from this process's rows of such a batch to those of all, in its order."""
        return lambda x: x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over processes."""
        return x

    def broken(self, z: Tensor) -> bool:
        """True if another process has rows that a loss refuses."""
        return False


class Together(Alone):
    """Training on the ranks of a group, by torch's DistributedDataParallel."""

    alone = False

    def __init__(self, encoder: Encoder, recipe: Recipe, me: Rank, compiled: str = "off") -> None:
        self.me, self.local = me, recipe.batch_norm == "local"
        self.encoder = encoder
        self.in_halves = in_halves(recipe)
        cuda = next(encoder.parameters()).device.type == "cuda"
        if not self.local:
            over_ranks(encoder, cuda=cuda and me.world == torch.distributed.get_world_size())
        if not cuda:
            sum_first_exactly(encoder)
        super().__init__(encoder, recipe, compiled)

    def join(self) -> None:
        device = next(self.embed.parameters()).device
        # A static graph permits weights that are used in several chunks, or outside of `embed` as
        # the classifier's are; it exchanges the first gradients when that of the output arrives,
        # so the output must have one.
        names = [n for n, weight in self.encoder.named_parameters() if weight.requires_grad]
        static = any(not name.startswith("classifier.") for name in names)
        with warnings.catch_warnings(action="ignore"):  # torch 2.14 renames broadcast_buffers
            self.embed = DistributedDataParallel(
                self.embed,
                device_ids=[device] if device.type == "cuda" else None,
                process_group=self.me.group,
                broadcast_buffers=self.local,
                static_graph=static,
            )

    def place(self, images: int) -> Shaped[Tensor, " b"]:
        return self._dealt(images, self.me.rank)

    def _dealt(self, images: int, rank: int) -> Shaped[Tensor, " b"]:
        if not self.in_halves:
            return torch.arange(rank, images, self.me.world)
        first = torch.arange(rank, images // 2, self.me.world)
        return torch.cat([first, first + images // 2])

    @contextmanager
    def sharing(self, images: int) -> Iterator[None]:
        with portion_of_batch(Portion(self.place(images), images)), across(self.me.group):
            yield

    def whole(self, images: int) -> Callable[[Tensor], Tensor]:
        dealt = [self._dealt(images, rank) for rank in range(self.me.world)]
        mine = len(dealt[self.me.rank])

        def gathered(x: Tensor) -> Tensor:
            count = len(x) // mine
            rows = torch.cat([Portion(place, images).rows(count * len(place)) for place in dealt])
            with across(self.me.group):
                return gather_rows(x.detach())[rows.argsort().to(x.device)]

        return gathered

    def mean(self, x: Tensor) -> Tensor:
        return self.me.mean(x)

    def broken(self, z: Tensor) -> bool:
        if z.device.type != "cpu":  # losses look at rows on a CPU only
            return False
        length = torch.linalg.vector_norm(z.detach().float(), dim=1)
        return self.me.any(not bool((length <= LONGEST).all()))[0]


class _Pass(nn.Module):
    """The encoder on the rows of a step, in chunks where the recipe asks for them."""

    def __init__(self, encode: nn.Module, chunk: int | None) -> None:
        super().__init__()
        self.encode, self.chunk = encode, chunk

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.chunk is None:
            return self.encode(rows)  # type: ignore[no-any-return]
        return chunked(self.encode, rows, chunk=self.chunk)  # type: ignore[no-any-return]


def training_of(encoder: Encoder, recipe: Recipe, me: Rank, compiled: str = "off") -> Alone:
    """How the steps of a run share their batches. To be called before the optimiser is made.

    compiled: one of `compiling.WAYS`.
    """
    if me.world == 1:
        return Alone(exactly(encoder), recipe, compiled)
    return Together(encoder, recipe, me, compiled)


def check_same(me: Rank, *images: ImageSet, encoder: Encoder | None = None) -> None:
    """UserError, on all ranks, where they see other images or weights than each other."""
    if me.world == 1:
        return
    seen = [("images", of.name, of.fingerprint) for of in images]
    if encoder is not None:
        seen.append(("weights", "the encoder", sha256(encoder.to_bytes()).hexdigest()[:16]))
    for kind, name, mine in seen:
        every = me.every(mine)
        others = [f"{of} on rank {rank}" for rank, of in enumerate(every) if of != every[0]]
        if others:
            raise shared(
                UserError(
                    f"the ranks see different {kind}: those of {name} have fingerprint "
                    f"{every[0]} on rank 0 and {', '.join(others)}; give all of them the same files"
                )
            )


def check_ranks(recipe: Recipe, images: ImageSet, me: Rank) -> None:
    """UserError for a run that so many ranks cannot share, or of which they see different things.

    Ranks must have the same images, by fingerprint, and the same recipe. Views must be drawn by
    `contrapose.augment`'s functions, from which a rank takes the numbers of its own images.
    """
    if me.world == 1:
        return
    check_same(me, images)
    recipes = me.every(describe(recipe))

    def refuse() -> None:
        check_sharable(recipe, images, me.world)
        if any(of != recipes[0] for of in recipes):
            raise UserError("the ranks were given different recipes; start all by one command")

    me.all_do(refuse)


def check_sharable(recipe: Recipe, images: ImageSet, world: int) -> None:
    """UserError for a run that so many ranks cannot share."""
    if world == 1:
        return
    kinds = (recipe.batches or drawn)(len(images), recipe.batch_size).possible_sizes(recipe)
    whole = [stage.batch_size for stage in stages_of(recipe)]
    least = min(whole + [recipe.batch_size // size * size for size in kinds])
    least = least // 2 if in_halves(recipe) else least
    if world > least:
        what = "pairs" if in_halves(recipe) else "images"
        raise UserError(
            f"{world} ranks for a batch of {least} {what}: each needs one; use fewer ranks, "
            f"or a larger --batch-size than {recipe.batch_size}"
        )
    if _draws_by_itself(recipe.policy, recipe, images):
        raise UserError(
            "the recipe's views draw random numbers of their own, which on several ranks would "
            "repeat; draw them by contrapose.augment's uniform, normal, integers and "
            "bernoulli, or train on one process"
        )


def _draws_by_itself(policy: Policy, recipe: Recipe, images: ImageSet) -> bool:
    """True unless a portion of a batch gets the views that it has in the whole batch."""
    image = images.batch(torch.arange(min(5, len(images)))).cpu()
    place, count = torch.tensor(sorted({1, len(image) - 1})), len(image)
    n, (one, other) = recipe.number_of_views, (torch.Generator().manual_seed(0) for _ in range(2))
    whole = views(policy, image, one, n)
    with portion_of_batch(Portion(place, count)):
        own = views(policy, image[place], other, n)
    alike = torch.allclose(own, whole[:, place], atol=1e-4)
    return not (alike and torch.equal(one.get_state(), other.get_state()))
