"""Co2L (2106.14413, shown in S2): contrast that learns one task after the other.

    contrapose reproduce continual --scale cpu

Expect nothing of Co2L's gains at scale cpu, after about 4 min a seed on 2 cores: class-incremental
0.255 with buffer and distillation, 0.268 with neither; on rotated digits 0.583 with both and 0.732
with the buffer alone (one seed). No reproduction of Co2L was found in a maintained library.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from contrapose import augment
from contrapose.data import balanced, open_images
from contrapose.encoders import Encoder, mlp, small_conv
from contrapose.experiments.charts import Chart, chart
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import above
from contrapose.training import optim
from contrapose.training.continual import Continual, accuracies, class_tasks, learn, rotated_tasks

BOTH, BUFFER, DISTILLED = "buffer and distillation", "buffer alone", "distillation alone"
NEITHER, SYMMETRIC = "neither", "both, symmetric"
METHODS: Mapping[str, dict[str, Any]] = {
    BOTH: {}, BUFFER: {"weight": 0.0}, DISTILLED: {"replay": False},
    NEITHER: {"replay": False, "weight": 0.0}, SYMMETRIC: {"asymmetric": False},
}  # fmt: skip
CLASSES, DOMAINS = "classes", "rotations"
SETTINGS: Mapping[str, dict[str, Any]] = {  # images: training and test images of all tasks
    "smoke": {
        CLASSES: ("digits", 8, 600, 300), DOMAINS: ("digits", 8, 600, 100), "width": 16,
        "epochs": (4, 4), "batch": 64, "buffer": 50, "angles": (0.0, 60.0, 120.0),
    },
    "cpu": {
        CLASSES: ("cifar10", 16, 5000, 5000), DOMAINS: ("mnist", 16, 5000, 1000), "width": 64,
        "epochs": (30, 15), "batch": 128, "buffer": 200,
        "angles": (0.0, 36.0, 72.0, 108.0, 144.0),
    },
    "paper": {
        CLASSES: ("cifar10", 32, 50_000, 10_000), DOMAINS: ("mnist", 28, 60_000, 10_000),
        "width": 256, "epochs": (500, 100), "batch": 512, "buffer": 200,
        "angles": tuple(9.0 * k for k in range(20)),
    },
}  # fmt: skip


def trained_on_tasks(
    folder: Path, *, scale: str, scenario: str, method: str, seed: int
) -> dict[str, Any]:
    """Accuracies after the last task; a training that was stopped goes on after its last task."""
    at = SETTINGS[scale]
    data, size, n_train, n_test = at[scenario]
    train, test = (
        balanced(open_images(data, split=split, size=size), n)
        for split, n in (("train", n_train), ("test", n_test))
    )
    if scenario == CLASSES:
        tasks = class_tasks(train, test, 2)
    else:
        tasks = rotated_tasks(train, test, at["angles"])
    policy = augment.digits if train.channels == 1 else augment.supcon_cifar
    how = Continual(
        views=partial(policy), size=size, buffer=at["buffer"], epochs=at["epochs"],
        batch_size=at["batch"], lr=2e-3, optimizer=partial(optim.adamw, weight_decay=1e-4),
        seed=seed,
    )  # fmt: skip
    how = dataclasses.replace(how, **METHODS[method])
    torch.manual_seed(seed)
    net = partial(small_conv, channels=train.channels, width=at["width"])
    pixels = tasks[0].image.float().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(dim=1).tolist(), pixels.std(dim=1).clamp(min=0.01).tolist()
    encoder = Encoder.build(net, partial(mlp, dim=64), mean, std)
    buffer = learn(encoder, tasks, how, folder)
    found = accuracies(encoder, tasks, buffer, size, seed)
    return found | {"n_test": len(test), "tasks": len(tasks)}  # images, not their rotations


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    for seed in seeds:
        for scenario in (CLASSES, DOMAINS):
            for method in METHODS if scenario == CLASSES else (BOTH, BUFFER, NEITHER):
                call = partial(
                    trained_on_tasks, scale=scale, scenario=scenario, method=method, seed=seed
                )
                name = f"{scenario}-{method.replace(' ', '-').replace(',', '')}-seed{seed}"
                facts = {"scenario": scenario, "method": method}
                found.append(Job(name=name, call=call, facts=facts, seed=seed))
    return found


def _over(here: str, *others: str, scenario: str = CLASSES) -> Any:
    def test(results: Results) -> Verdict:
        if not results.rows:
            return Verdict.not_tested("no result yet")
        at = results.where(scenario=scenario)
        return all_of(*(above(at, {"method": here}, {"method": o}, measure="all") for o in others))

    return test


def bars_of_methods(scenario: str) -> Any:
    def draw(results: Results) -> Chart:
        at = [row for row in results.rows if row["scenario"] == scenario]
        methods = [m for m in METHODS if any(row["method"] == m for row in at)]
        traces = []
        for name, words in (("all", "among all classes"), ("within", "among those of its task")):
            if methods and not (scenario == DOMAINS and name == "within"):
                y = [results.mean(name, scenario=scenario, method=m) for m in methods]
                traces.append({"type": "bar", "name": words, "x": methods, "y": y})
        return chart(traces, None, "accuracy over all tasks")

    return draw


PUBLISHED = {BOTH: 0.6557, BUFFER: 0.5357, DISTILLED: 0.5889, NEITHER: 0.5325, SYMMETRIC: 0.6049}
EXPERIMENT = Experiment(
    name="continual",
    title="One task after the other",
    source="Co2L (Cha, Lee, Shin, ICCV 2021), tables 1 and 4 (E6), shown in S2",
    jobs=jobs,
    measures={
        "all": "test accuracy over all tasks among all classes: class- or domain-incremental",
        "within": "the same among the classes of the image's task: task-incremental",
        "first": "of the first task, after the last one", "last": "of the last task",
        "n_test": "test images, each rotation of one counted once", "tasks": "number of tasks",
    },
    published=(
        *(
            Published("all", {"scenario": CLASSES, "method": m}, v,
                      "E6 [P], Seq-CIFAR-10, buffer 200, ResNet-18, 10 runs")
            for m, v in PUBLISHED.items()
        ),
        Published("within", {"scenario": CLASSES, "method": BOTH}, 0.9343,
                  "E6 [P], Seq-CIFAR-10, buffer 200, ResNet-18, 10 runs"),
        Published("all", {"scenario": DOMAINS, "method": BOTH}, 0.9790,
                  "E6 [P], R-MNIST of 20 rotations, buffer 200, 10 runs"),
    ),
    claims=(
        Claim("Buffer and distillation together are above either alone and above neither.",
              "E6 [P]", _over(BOTH, BUFFER, DISTILLED, NEITHER)),
        Claim("Anchors of the current task alone are better than all anchors.", "E6 [P]",
              _over(BOTH, SYMMETRIC)),
        Claim("On rotated digits too, both are above the buffer alone and above neither.",
              "this project's", _over(BOTH, BUFFER, NEITHER, scenario=DOMAINS)),
    ),
    figures=(
        Figure("Classes in five tasks", bars_of_methods(CLASSES),
               "Among all classes the tasks must be told apart too, which is what is forgotten."),
        Figure("Digits, more rotated with each task", bars_of_methods(DOMAINS),
               "One set of classes in several domains."),
    ),
    costs={
        "smoke": "45 s on 2 cores",
        "cpu": "about 4 min a seed on 2 cores",
        "paper": "8 trainings of 900 epochs on CIFAR-10 or 2,400 on MNIST, on a GPU (not timed)",
    },
    notes=(
        "Without the buffer in training it is still there for the classifier, which is solved with "
        "an l2 of 1 on h of the last task and the buffer, each class drawn as often.",
        "The encoder of the task before is in evaluation mode; AdamW in place of SGD; at scale cpu "
        "five rotations in place of twenty.",
    ),
)  # fmt: skip
