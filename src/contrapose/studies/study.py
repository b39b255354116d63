"""Which recipe suits one's own images: short runs, the worse ones dropped, the rest run longer.

What is run and what it says stands in `halving.py`; here it is planned to fit a time, and run. A
study is an experiment in a file of its own, `study.py` in its folder, to which each rung adds jobs;
the folders of the jobs are its only state, so it goes on after a kill. It ends in a recipe file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from contrapose import adapt, experiments
from contrapose.data import HELD_OUT, ImageSet, Request, evenly
from contrapose.errors import UserError
from contrapose.experiments.measures import CRITERION
from contrapose.experiments.running import engine
from contrapose.experiments.running.collect import collect, results
from contrapose.experiments.running.task import job_folders
from contrapose.files import as_json_bytes, clear, read_object, replace_file, said_of
from contrapose.machine import choose_bf16, choose_device
from contrapose.report import write_experiment
from contrapose.studies.halving import (
    ACCURACY,
    NAME,
    SCALE,
    SEEDS,
    TIMES,
    Advice,
    Candidates,
    advise,
    candidates_of,
    default_of,
    finalists,
    survivors,
)
from contrapose.studies.tuning import can_be_judged
from contrapose.training import loop
from contrapose.training.cost import cost
from contrapose.training.recipe import Recipe

MOST = 5000  # images
FEWEST = 500  # to which a tight budget reduces them
EPOCHS = (4, 25)  # of rung 0, at least and at most
SHARE = 0.9  # of the minutes that are planned
FIXED = 4.0  # s of a run beside training and embedding: probe, files
SMALLER: tuple[dict[str, Any], ...] = (  # tried in turn where the recipe's network is too slow
    {},
    {"encoder": "small_conv", "base": ("backbone.width=128",)},
    {"encoder": "small_conv", "base": ("backbone.width=128",), "size": 32},
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study runs: how many images, epochs and runs, and the time that should take."""

    images: int
    epochs: int  # of rung 0
    batch: int
    runs: tuple[int, int, int]  # at most, by rung
    minutes: float
    encoder: str | None
    size: int | None

    def words(self) -> str:
        r, e = self.runs, [self.epochs * t for t in TIMES]
        rungs = ", then ".join(f"{n} of {k}" for n, k in zip(r, e, strict=True))
        return (
            f"{rungs} epochs on {self.images:,} images, a fifth of them held out: about "
            f"{self.minutes:.0f} min"
        )


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
    name = Path(str(asked.source)).stem or "images"
    folder = Path("runs") / f"study-{name}" if out is None else Path(out)
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
        plan = Plan(**before["plan"] | {"runs": tuple(before["plan"]["runs"])})
        return folder / f"{NAME}.py", plan
    plan, request = _planned(asked, wanted)
    with said_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    _write(folder, request)
    replace_file(file, as_json_bytes({"request": wanted, "plan": asdict(plan)}))
    return folder / f"{NAME}.py", plan


def _planned(asked: Request, wanted: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan that fits into the minutes, and the keywords of `experiment` for rung 0."""
    device = choose_device(wanted["device"])
    least = math.inf
    for instead in SMALLER:
        if instead and device != "cpu":
            break
        if wanted["encoder"] is not None and "size" not in instead and instead:
            continue
        encoder = wanted["encoder"] or instead.get("encoder")
        size = asked.size or instead.get("size")
        request = replace(asked, size=size) if asked.named else asked
        source = request.open("train")
        if size is not None and size >= source.size and instead.get("size") and asked.size is None:
            continue  # these are as small already
        labelled = can_be_judged(source)
        given = candidates_of(source.shown, source.size, labelled)
        most = min(MOST, len(source))
        few = source if len(source) <= most else source.subset(evenly(len(source), most))
        kept, _ = request.divided(few, HELD_OUT, seed=0)
        base = tuple(instead.get("base", ()))
        chosen = default_of(str(wanted["recipe"]), encoder, base, source)
        kinds = _different(given, chosen, source)
        n = 1 + sum(map(len, kinds.values()))
        runs = (n, 1 + math.ceil((n - 1) / 3), 3 * SEEDS)
        batch = max(2, min(chosen.batch_size, len(kept) // 8))
        sized = replace(chosen, batch_size=batch)
        loop.check(sized, kept)
        price = cost(
            sized, kept, adapt.build(sized, kept), device, bf16=choose_bf16("auto", device)
        )
        speed = price.images_per_second
        least = min(least, _seconds(runs, speed, min(FEWEST, most), EPOCHS[0]))
        budget = SHARE * 60 * float(wanted["minutes"])
        sizes = sorted({most, *(m for m in (2000, 1000, FEWEST) if m < most)}, reverse=True)
        for images in sizes:
            fitting = [
                e
                for e in range(EPOCHS[0], EPOCHS[1] + 1)
                if _seconds(runs, speed, images, e) <= budget
            ]
            if not fitting:
                continue
            plan = Plan(
                images=images, epochs=fitting[-1], runs=runs,
                batch=max(2, min(chosen.batch_size, int(images * (1 - HELD_OUT)) // 8)),
                minutes=_seconds(runs, speed, images, fitting[-1]) / 60, encoder=encoder,
                size=request.size if asked.named else None,
            )  # fmt: skip
            return plan, {
                "data": request.asked(), "recipe": wanted["recipe"], "encoder": encoder,
                "base": base,
                "images": images, "epochs": plan.epochs, "batch": plan.batch,
                "labelled": labelled, "candidates": {f: dict(c) for f, c in kinds.items()},
                "device": wanted["device"], "kept": (), "final": {},
            }  # fmt: skip
    need = math.ceil(least / 60 / SHARE)
    raise UserError(
        f"--minutes {wanted['minutes']:g} is too short: the shortest study of these images takes "
        f"about {need} min here; use --minutes {need}"
    )


def _seconds(runs: Sequence[int], speed: float, images: int, epochs: int) -> float:
    """Time of all rungs, at `speed` images/s of training."""
    units = sum(r * t for r, t in zip(runs, TIMES, strict=True))
    work = (1 - HELD_OUT) * images * epochs * units + sum(runs) * images / 3
    return work / speed + FIXED * sum(runs)


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
    folder = file.parent
    request: dict[str, Any] = _read(folder)
    criterion = ACCURACY if request["labelled"] else CRITERION
    advice: Advice | None = None
    for rung in range(len(TIMES)):
        task, _ = engine.reproduce(
            str(file), scale=SCALE, seeds=1, jobs=jobs, out=folder, begin=begin, watch=watch
        )
        found = results(experiments.experiment(str(file)), job_folders(task))
        if rung == 0 and not request["kept"]:
            request["kept"] = survivors(found, criterion)
        elif rung == 1 and not request["final"]:
            request["final"] = finalists(found, criterion, request["candidates"])
        elif rung == 2:
            advice = advise(found, criterion, request["final"])
        if not request["kept"] or (rung and not request["final"]):
            break  # runs failed, so that nothing can be chosen
        _write(folder, request)
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
    found |= {name: tuple(found[name]) for name in ("kept", "base")}
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
