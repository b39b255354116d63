"""Continual training: one task after the other, with a few images of the past (Co2L, 2106.14413).

    L = L_asym + weight L_IRD,

L_asym is SupCon whose anchors are images of the current task alone, those of the buffer being
positives and negatives only; L_IRD keeps the similarities of a batch as the encoder had them at the
end of the task before (`losses.relation_distillation`). The buffer holds equally many images of
every class. After each task the state is written, so that a training that was stopped goes on.
"""

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment import views
from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation import probes
from contrapose.files import replace_file
from contrapose.losses import relation_distillation, supcon
from contrapose.progress import stage
from contrapose.training import optim
from contrapose.training.batches import shuffled

SGD = partial(optim.sgd, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The images of one task: new classes, or the same classes in another domain."""

    image: UInt8[Tensor, "N C S S"]
    label: Int[Tensor, " N"]
    test_image: UInt8[Tensor, "M C S S"]
    test_label: Int[Tensor, " M"]


def class_tasks(train: ImageSet, test: ImageSet, each: int) -> list[Task]:
    """Class- and task-incremental: `each` classes a task, in the order of their numbers.

    The two differ in what is asked at the end: the class among all, or among those of its task.
    Raises UserError for images without labels, and where classes do not divide by `each`.
    """
    if train.label is None or test.label is None:
        raise UserError(f"class_tasks: {train.name} has no labels")
    classes = torch.unique(train.label[train.label >= 0])
    if each < 1 or len(classes) % each:
        raise UserError(f"class_tasks: {each} classes a task of {len(classes)}; give a divisor")
    found = []
    for some in torch.split(classes, each):
        parts = [_of_classes(images, some) for images in (train, test)]
        (image, label), (test_image, test_label) = parts
        found.append(Task(image=image, label=label, test_image=test_image, test_label=test_label))
    return found


def rotated_tasks(train: ImageSet, test: ImageSet, angles: Sequence[float]) -> list[Task]:
    """Domain-incremental: the same classes, the training images dealt to as many tasks as angles
    (degrees, counterclockwise), every test image in each."""
    if train.label is None or test.label is None:
        raise UserError(f"rotated_tasks: {train.name} has no labels")
    found = []
    for k, angle in enumerate(angles):
        own = torch.arange(k, len(train), len(angles))
        found.append(
            Task(
                image=rotated(train.batch(own).cpu(), angle),
                label=train.label[own],
                test_image=rotated(test.batch(torch.arange(len(test))).cpu(), angle),
                test_label=test.label,
            )
        )
    return found


def rotated(image: UInt8[Tensor, "N C S S"], degrees: float) -> UInt8[Tensor, "N C S S"]:
    """Images turned counterclockwise, bilinear, black outside."""
    angle = torch.tensor(degrees).deg2rad()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    matrix = torch.cat([turn, torch.zeros(2, 1)], dim=1).expand(len(image), 2, 3)
    grid = torch.nn.functional.affine_grid(matrix, list(image.shape), align_corners=False)
    turned = torch.nn.functional.grid_sample(image.float(), grid, align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Continual:
    """How tasks are learned; values as in Co2L's code, but for the sizes."""

    views: Callable[..., Any]
    size: int  # px
    buffer: int = 200  # images of the past
    replay: bool = True  # False: the buffer is kept for the classifier alone
    asymmetric: bool = True  # anchors of the current task alone
    weight: float = 1.0  # of the distillation
    temperature: float = 0.5
    distilling: tuple[float, float] = (0.2, 0.01)  # temperatures, now and of the past
    epochs: tuple[float, float] = (500, 100)  # of the first task and of each other
    batch_size: int = 512
    lr: float = 0.5
    optimizer: Callable[..., Any] = SGD
    seed: int = 0


@dataclass
class Buffer:
    """Images of past tasks, equally many of each class of each task, chosen at random."""

    size: int
    image: UInt8[Tensor, "N C S S"]
    label: Int[Tensor, " N"]
    task: Int[Tensor, " N"]

    @classmethod
    def empty(cls, size: int, like: Task) -> "Buffer":
        nothing = torch.empty(0, dtype=torch.int64)
        return cls(size, like.image[:0], nothing, nothing)

    def add(self, of: Task, number: int, generator: Generator) -> None:
        """Take in images of a task, and leave out as many of the past; what is left over where
        the size does not divide goes to the classes that came first."""
        image = torch.cat([self.image, of.image])
        label = torch.cat([self.label, of.label])
        task = torch.cat([self.task, torch.full_like(of.label, number)])
        kinds, kind = torch.unique(torch.stack([task, label], 1), dim=0, return_inverse=True)
        share, more = divmod(self.size, len(kinds))
        order, kept = torch.randperm(len(label), generator=generator), []
        for k in range(len(kinds)):
            of_kind = order[kind[order] == k]
            kept.append(of_kind[: share + (k < more)])
        index = torch.cat(kept)
        self.image, self.label, self.task = image[index], label[index], task[index]


def learn(
    encoder: Encoder, tasks: Sequence[Task], how: Continual, folder: Path, device: str = "cpu"
) -> Buffer:
    """Train the encoder on the tasks in turn, in place; returns the buffer after the last one.

    folder: holds the state after the newest task, from which a later call goes on.
    """
    file, buffer = folder / "continual.pt", Buffer.empty(how.buffer, tasks[0])
    encoder.to(device)
    begin = 0
    if file.exists():
        state = torch.load(file, weights_only=True, map_location="cpu")
        begin = state["task"] + 1
        encoder.load_state_dict(state["encoder"])
        buffer = Buffer(how.buffer, state["image"], state["label"], state["of_task"])
    for number in range(begin, len(tasks)):
        with stage(f"task {number + 1} of {len(tasks)}"):
            _learn_one(encoder, tasks[number], buffer, number, how, device)
        generator = Generator().manual_seed(how.seed * 1000 + number)
        buffer.add(tasks[number], number, generator)
        written = io.BytesIO()
        state = {
            "task": number, "encoder": encoder.state_dict(), "image": buffer.image,
            "label": buffer.label, "of_task": buffer.task,
        }  # fmt: skip
        torch.save(state, written)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, written.getvalue())
    return buffer


def _learn_one(
    encoder: Encoder, task: Task, buffer: Buffer, number: int, how: Continual, device: str
) -> None:
    past = copy.deepcopy(encoder).eval() if number and how.weight else None
    image, label = task.image, task.label
    if how.replay:
        image, label = torch.cat([image, buffer.image]), torch.cat([label, buffer.label])
    current = torch.arange(len(image)) < len(task.image)
    batch = min(how.batch_size, len(image))
    epochs = how.epochs[min(number, 1)]
    generator = Generator(device).manual_seed(how.seed * 1000 + number)
    optimizer = how.optimizer(encoder.train(), lr=how.lr)
    steps = max(1, int(len(image) // batch * epochs))
    per_epoch = len(image) // batch
    for at in range(steps):
        epoch, within = divmod(at, per_epoch)
        index = shuffled(len(image), how.seed * 1000 + number, epoch, batch)[within]
        for group in optimizer.param_groups:
            group["lr"] = how.lr * optim.warmup_cosine(at, steps)
        seen = views(partial(how.views, size=how.size), image[index].to(device), generator, n=2)
        rows = seen.flatten(0, 1)
        z, group_of = encoder(rows)[1], label[index].repeat(2).to(device)
        loss = objective(
            z, group_of, current[index].repeat(2).to(device), how,
            None if past is None else _embedded(past, rows),
        )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def objective(
    z: Float[Tensor, "N D"],
    label: Int[Tensor, " N"],
    current: Tensor,
    how: Continual,
    past: Float[Tensor, "N D"] | None,
) -> Float[Tensor, ""]:
    """L_asym + weight L_IRD of a batch; L_asym is divided by all its rows, as in Co2L's code.

    current: True for rows of the current task. past: the same rows by the encoder of the task
    before; None in the first task.
    """
    if how.asymmetric:
        loss = supcon(
            z, label, temperature=how.temperature, anchor=current, mean_over="rows"
        )  # fmt: skip
    else:
        loss = supcon(z, label, temperature=how.temperature)
    if past is None:
        return loss
    now, before = how.distilling
    return loss + how.weight * relation_distillation(
        z, past, temperature=now, past_temperature=before
    )


def accuracies(
    encoder: Encoder, tasks: Sequence[Task], buffer: Buffer, size: int, seed: int = 0
) -> dict[str, float]:
    """Test accuracy over all tasks, after the last one: "all" among all classes, "within" among
    those of the image's task, "last" and "first" of one task among all.

    The classifier is linear, on h of the last task and of the buffer, each class drawn as often.
    """
    last = tasks[-1]
    image = torch.cat([last.image, buffer.image[buffer.task < len(tasks) - 1]])
    label = torch.cat([last.label, buffer.label[buffer.task < len(tasks) - 1]])
    generator = Generator().manual_seed(seed)
    count = int(torch.bincount(label).max())
    drawn = [
        at[torch.randint(len(at), (count,), generator=generator)]
        for c in torch.unique(label)
        if len(at := (label == c).nonzero()[:, 0])
    ]
    index = torch.cat(drawn)
    h = _h(encoder, image)
    classes = int(max(int(t.label.max()) for t in tasks)) + 1
    probe = probes.linear_probe(h[index], label[index], l2=1.0, classes=classes, seed=seed)
    right: dict[str, list[Tensor]] = {"all": [], "within": []}
    for task in tasks:
        scores = probe.scores(_h(encoder, task.test_image))
        right["all"].append(scores.argmax(dim=1) == task.test_label)
        own = torch.full((classes,), -torch.inf)
        own[torch.unique(task.label)] = 0.0
        right["within"].append((scores + own).argmax(dim=1) == task.test_label)
    found = {name: float(torch.cat(x).double().mean()) for name, x in right.items()}
    first, newest = (float(right["all"][k].double().mean()) for k in (0, -1))
    return found | {"first": first, "last": newest}


@torch.no_grad()
def _embedded(encoder: Encoder, rows: Tensor) -> Tensor:
    z: Tensor = encoder(rows)[1]
    return z


@torch.no_grad()
def _h(encoder: Encoder, image: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N F"]:
    encoder.eval()
    device = next(encoder.parameters()).device
    parts = [encoder(x.to(device).float() / 255)[0].cpu() for x in torch.split(image, 512)]
    return torch.cat(parts)


def _of_classes(images: ImageSet, some: Int[Tensor, " K"]) -> tuple[Tensor, Tensor]:
    assert images.label is not None
    index = torch.nonzero(torch.isin(images.label, some)).flatten()
    return images.batch(index).cpu(), images.label[index]
