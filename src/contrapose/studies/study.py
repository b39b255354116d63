"""Which recipe suits one's own images: short runs, the worse ones dropped, the rest run longer.

What is run and what it says stands in `halving.py`; here it is planned to fit a time, and run. A
study is an experiment in a file of its own, `study.py` in its folder, to which each rung adds jobs;
the folders of the jobs are its only state, so it goes on after a kill. It ends in a recipe file.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from contrapose import adapt, experiments
from contrapose.data import ImageSet, Request
from contrapose.errors import UserError
from contrapose.experiments.running import engine
from contrapose.experiments.running.collect import collect, results
from contrapose.experiments.running.task import job_folders
from contrapose.files import (
    RUNS,
    as_file_name,
    as_json_bytes,
    check_writable,
    held,
    read_object,
    replace_file,
    said_of,
)
from contrapose.machine import choose_bf16, choose_device
from contrapose.report import write_experiment
from contrapose.studies import halving
from contrapose.studies.findings import VIEWS, Advice, Candidates, advise, criterion
from contrapose.studies.halving import (
    ASKED,
    NAME,
    SCALE,
    SEEDS,
    TIMES,
    TURNED,
    candidates_of,
    default_of,
)
from contrapose.training import loop
from contrapose.training.cost import cost
from contrapose.training.recipe import Recipe

MOST = 4000  # images of training
FEWEST = 400  # to which a tight budget reduces them
ENOUGH = 1000  # images for which a smaller network is taken
LEAST = 40  # images of which a fifth can judge anything
EPOCHS = (4, 25)  # of rung 0, at least and at most
SHARE = 0.9  # of the minutes that are planned
FIXED = 2.5  # s of a run beside training and embedding: probe, files
EMBEDDED = 1 / 3  # of the time of a training image: one view, no backward pass
SHORTCUTS = 5.0  # s
LABELS = 10 * (200 * 64 / 2), 20.0  # training images of the runs from scratch, s beside
SMALLER: tuple[dict[str, Any], ...] = (  # tried in turn where the recipe's network is too slow
    {},
    {"encoder": "small_conv", "base": ("backbone.width=128",)},
    {"encoder": "small_conv", "base": ("backbone.width=64",)},
    {"encoder": "small_conv", "base": ("backbone.width=128",), "size": 32},
    {"encoder": "small_conv", "base": ("backbone.width=64",), "size": 32},
    {"encoder": "small_conv", "base": ("backbone.width=32",), "size": 32},
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study runs: how many images, epochs and runs, and the time that should take."""

    images: int
    epochs: int  # of rung 0
    batch: int
    runs: tuple[int, int, int]  # at most, by rung
    minutes: float
    network: str  # with its changes
    size: int  # px
    smaller: bool  # the network or the images are not those that were asked for
    judged: int  # held-out images
    by: str  # what recipes are compared by
    counted: bool  # how many labels it saves, too
    notes: Mapping[str, int] = field(default_factory=dict)  # of the images
    left_out: tuple[str, ...] = ()  # images, each with the reason

    def words(self) -> str:
        r, e = self.runs, [self.epochs * t for t in TIMES]
        rungs = ", then ".join(f"{n} of {k}" for n, k in zip(r, e, strict=True))
        return (
            f"{rungs} epochs on {self.images:,} images, {self.judged:,} others held out: about "
            f"{self.minutes:.0f} min. Recipes are compared {self.by}{self._uncounted()}"
        )

    def _uncounted(self) -> str:
        if self.counted or self.by.startswith("without"):
            return ""
        return "; how many labels it saves is not measured, which takes more minutes"


def prepared(
    data: Any,
    *,
    out: Path | str | None = None,
    minutes: float = 30,
    recipe: str = "simclr",
    encoder: str | None = None,
    device: str = "auto",
    **how: Any,
) -> tuple[Path, Plan]:
    """Plan the study and write its file into `out`; (the file, the plan).

    A folder that holds this study already keeps its plan. how: fields of a `Request`. out: by
    default runs/study- and the name of the images.
    Raises UserError for minutes that are too short, with those that suffice, and for a folder with
    another study.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes {minutes:g}: use a positive number")
    asked = Request.of(data, **how)
    name = as_file_name(Path(str(asked.source)).stem)
    folder = RUNS / f"study-{name}" if out is None else Path(out)
    wanted = {
        "data": asked.asked(), "minutes": minutes, "device": device, "encoder": encoder,
        "recipe": str(Path(recipe).resolve()) if recipe.endswith(".py") else recipe,
    }  # fmt: skip
    file = folder / "plan.json"
    if file.exists():
        before = read_object(file)
        if before["request"] != wanted:
            raise UserError(
                f"--out {folder} holds another study ({before['request']}); name another folder, "
                "or ask for that one again to go on with it"
            )
        listed = {n: tuple(before["plan"].get(n, ())) for n in ("runs", "left_out")}
        plan = Plan(**before["plan"] | listed)
        return folder / f"{NAME}.py", plan
    check_writable(folder)
    plan, request = _planned(asked, wanted)
    with said_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        _write(folder, request)
        replace_file(file, as_json_bytes({"request": wanted, "plan": asdict(plan)}))
    return folder / f"{NAME}.py", plan


@dataclass(frozen=True, kw_only=True)
class _Option:
    """A network and a size of images with which a study could be run."""

    encoder: str | None
    base: tuple[str, ...]
    told: dict[str, Any]  # of the images
    smaller: bool
    kept: ImageSet
    judged: int
    labelled: bool
    by: str
    batch: int
    candidates: Candidates
    runs: tuple[int, int, int]
    speed: float  # images/s of training

    def seconds(self, counted: bool, images: int, epochs: int) -> float:
        """Time of all rungs. counted: how many labels it saves too."""
        units = sum(r * t for r, t in zip(self.runs, TIMES, strict=True))
        if self.labelled:
            embedded = sum(self.runs) * (images + self.judged) + self.runs[0] * 13 * ASKED
        else:
            embedded = sum(self.runs) * (5 * ASKED + 8 * min(TURNED, self.judged))
        work = images * epochs * units + EMBEDDED * embedded + (LABELS[0] if counted else 0)
        beside = SHORTCUTS + FIXED * sum(self.runs) + (LABELS[1] if counted else 0)
        return work / self.speed + beside

    def epochs(self, counted: bool, images: int, seconds: float) -> int | None:
        """The most epochs of rung 0 that fit into the time."""
        every = range(EPOCHS[0], EPOCHS[1] + 1)
        return max((e for e in every if self.seconds(counted, images, e) <= seconds), default=None)


def _planned(asked: Request, wanted: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan that fits into the minutes, and the keywords of `experiment` for rung 0.

    Of those that fit, the first that counts labels, has ENOUGH images, has the larger network, has
    more images, in this order.
    """
    options = list(_options(asked, wanted))
    budget = SHARE * 60 * float(wanted["minutes"])
    for counted, enough, option in itertools.product((True, False), (ENOUGH, FEWEST), options):
        most = len(option.kept)
        for images in sorted({most, *(m for m in (2000, 1000, FEWEST) if m < most)}, reverse=True):
            epochs = option.epochs(counted, images, budget)
            if epochs is None or images < min(enough, most) or counted > option.labelled:
                continue
            plan = Plan(
                images=images, epochs=epochs, runs=option.runs,
                batch=max(2, min(option.batch, images // 8)),
                minutes=option.seconds(counted, images, epochs) / 60,
                network=" ".join((option.encoder or "of the recipe", *option.base)),
                size=option.kept.size, smaller=option.smaller, judged=option.judged, by=option.by,
                counted=counted, notes=dict(option.kept.notes),
                left_out=tuple(f"{s.path}: {s.reason}" for s in option.kept.skipped),
            )  # fmt: skip
            return plan, {
                "data": option.told, "recipe": wanted["recipe"], "encoder": option.encoder,
                "base": option.base, "images": images, "epochs": plan.epochs, "batch": plan.batch,
                "labelled": option.labelled, "device": wanted["device"],
                "candidates": {f: dict(c) for f, c in option.candidates.items()},
                "kept": (), "final": {}, "recommended": None,
                "labels": halving.budgets(option.kept, images) if counted else (),
            }  # fmt: skip
    least = min(o.seconds(False, min(FEWEST, len(o.kept)), EPOCHS[0]) for o in options)
    need = math.ceil(least / 60 / SHARE)
    raise UserError(
        f"--minutes {wanted['minutes']:g} is too short: the shortest study of these images takes "
        f"about {need} min here; use --minutes {need}"
    )


def _options(asked: Request, wanted: Mapping[str, Any]) -> Iterator[_Option]:
    """The recipe's network at the size that was asked for, then smaller ones, each measured."""
    device = choose_device(wanted["device"])
    tried: set[tuple[Any, ...]] = set()
    for instead in SMALLER if device == "cpu" else SMALLER[:1]:
        encoder = wanted["encoder"] or instead.get("encoder")
        base = () if wanted["encoder"] else tuple(instead.get("base", ()))
        reduced = "size" in instead and asked.size is None
        told = (replace(asked, size=instead["size"]) if reduced else asked).asked()
        kept, judges = (halving.fifth(part, data=told, most=MOST) for part in ("train", "test"))
        if len(kept) + len(judges) < LEAST:
            raise UserError(
                f"{kept.name} has {len(kept) + len(judges)} images: a study compares recipes on a "
                f"fifth of them, held out, and needs {LEAST} at least"
            )
        larger = any(kept.size > size for _, _, size in tried)
        if (encoder, base, kept.size) in tried or larger:
            continue
        tried.add((encoder, base, kept.size))
        chosen = default_of(str(wanted["recipe"]), encoder, base, kept)
        kinds = _different(candidates_of(kept.shown, kept.size), chosen, kept)
        n = 2 + sum(map(len, kinds.values()))  # the default, and views without what they share
        batch = max(2, min(chosen.batch_size, len(kept) // 8))
        sized = replace(chosen, batch_size=batch)
        loop.check(sized, kept)
        price = cost(
            sized, kept, adapt.build(sized, kept), device, bf16=choose_bf16("auto", device)
        )
        labelled, by = halving.judged_by(kept)
        yield _Option(
            encoder=encoder, base=base, told=told, kept=kept, judged=len(judges), by=by,
            smaller=reduced or (encoder, base) != (wanted["encoder"], ()), labelled=labelled,
            batch=chosen.batch_size, candidates=kinds, speed=price.images_per_second,
            runs=(n, 2 + math.ceil((n - 2) / 3), 3 * SEEDS),
        )  # fmt: skip


def _different(given: Candidates, default: Recipe, images: ImageSet) -> Candidates:
    """The candidates that this recipe takes, without those that change nothing."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for factor, each in given.items():
        for name, changes in each.items():
            try:
                made = adapt.changed(default, images, changes=changes)
            except UserError:
                continue  # a loss without a temperature, a recipe of the user's own
            if made != default and repr(made) != repr(default):
                found.setdefault(factor, {})[name] = changes
    if not found:
        raise UserError("the recipe takes none of the changes that a study tries; see --recipe")
    return found


def study(
    file: Path,
    *,
    jobs: int = 1,
    begin: Any = lambda experiment, task, at: None,
    watch: Any = lambda at: None,
    command: str | None = None,
) -> tuple[Advice | None, dict[str, str], Path]:
    """Run what is missing of the study that `prepared` wrote, rung after rung.

    Returns the advice (None if runs failed), errors of jobs by name, and the report. The advice is
    also in study.json, and the recipe it ends in, recipe.py, both in the folder of the file.
    """
    with held(file.parent):
        return _run(file, jobs, begin, watch, command)


def _run(
    file: Path, jobs: int, begin: Any, watch: Any, command: str | None
) -> tuple[Advice | None, dict[str, str], Path]:
    folder = file.parent
    request: dict[str, Any] = _read(folder)
    measure = criterion(request["labelled"])
    advice: Advice | None = None
    for rung in (*range(len(TIMES)), "labels"):
        _write(folder, request)
        task, _ = engine.reproduce(
            str(file), scale=SCALE, seeds=1, jobs=jobs, out=folder, begin=begin, watch=watch
        )
        found = results(experiments.experiment(str(file)), job_folders(task))
        if rung == 0 and not request["kept"]:
            more = halving.unshared(found)
            request["kept"] = (*halving.survivors(found, measure), *more)
            if more:
                request["candidates"].setdefault(VIEWS, {}).update(more)
        elif rung == 1 and not request["final"]:
            request["final"] = halving.finalists(found, measure, request["candidates"])
        elif rung == 2:
            advice = advise(found, measure, request["final"])
            request["recommended"] = None if advice is None else advice.recommended
        if not request["kept"] or (rung and not request["final"]):
            break  # runs failed, so that nothing can be chosen
        if rung == 2 and (advice is None or not request["labels"]):
            break
    if advice is not None:
        replace_file(folder / "study.json", as_json_bytes(asdict(advice)))
        replace_file(folder / "recipe.py", _recipe_file(request, advice).encode())
    page = write_experiment(collect(task, command).parent)
    return advice, engine.errors(task), page


def _write(folder: Path, request: Mapping[str, Any]) -> None:
    """study.py, which `contrapose reproduce` takes too, and request.json, which `_read` reads."""
    lines = "".join(f"    {name}={value!r},\n" for name, value in request.items())
    text = (
        '"""Which recipe suits these images: a study by `contrapose study`."""\n\n'
        "from contrapose.studies.halving import experiment\n\n"
        f"EXPERIMENT = experiment(\n{lines})\n"
    )
    replace_file(folder / f"{NAME}.py", text.encode())
    replace_file(folder / "request.json", as_json_bytes(dict(request)))


def _read(folder: Path) -> dict[str, Any]:
    found = dict(read_object(folder / "request.json"))
    found |= {name: tuple(found[name]) for name in ("kept", "base", "labels")}
    found["candidates"] = {
        f: {n: tuple(c) for n, c in each.items()} for f, each in found["candidates"].items()
    }
    found["final"] = {n: tuple(c) for n, c in found["final"].items()}
    return found


def _recipe_file(request: Mapping[str, Any], advice: Advice) -> str:
    """A recipe file for the user: the study's recipe with what it recommends."""
    lines = [
        f'"""{advice.sentence[0].upper()}{advice.sentence[1:]}.',
        "",
        "By `contrapose study`, on images held out of training; sure: " + advice.sure + ".",
        "contrapose train DATA --recipe recipe.py",
        '"""',
        "",
        "from contrapose import recipes",
        "from contrapose.partials import assign",
        "",
        f"CHANGES = {advice.changes!r}",
        "",
        "",
        "def recipe(size, channels):",
        f"    found = recipes.recipe_for({request['recipe']!r}, size, channels)",
        "    for change in CHANGES:",
        '        path, _, value = change.partition("=")',
        "        found = assign(found, path, value)",
        "    return found",
        "",
    ]
    return "\n".join(lines)
