"""The run folder: all files of a run. A kill at any moment leaves it valid.

    recipe.json  environment.json  status.json  metrics.jsonl  encoder.safetensors
    start.safetensors  (the encoder before the first step, where its weights were not drawn)
    checkpoints/step-00000120/{weights.safetensors, training.pt}  (the newest two)

Files and checkpoints (folders) are written under another name and then renamed. No code from a file
is executed: weights are safetensors, training state is read with `weights_only`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from contrapose.encoders import checkpoints, final_step, step_of
from contrapose.encoders.weights import tensors_in
from contrapose.errors import UserError, first_of_launched, printable
from contrapose.files import (
    as_json_bytes,
    check_writable,
    clear,
    conform,
    finite,
    held,
    present_names,
    read_json,
    read_object,
    remove,
    remove_folder,
    replace_file,
    said_of,
    unfinished,
    was_killed,
)
from contrapose.training.recipe import Recipe, recipe_from

Weights = dict[str, torch.Tensor]
FORMAT = 1
FINDINGS = (  # about the encoder as it is saved, and the runs that start from it or resemble it
    "evaluation*.json", "diagnosis*.json", "robustness*.json", "suppression.json", "pictures.npz",
    "views.json", "report.html", "finetune*", "transfer", "controls",
)  # fmt: skip
START_FILE = "start.safetensors"
KEPT = 2  # checkpoints
KILLED = (
    "if nobody did that, memory ran out: a new run needs a smaller --batch-size or --set chunk=64"
)


_RANGE = {"low": ([float], float), "high": ([float], float), "of_bytes?": bool | None}
_START = {"source": str, "sha256": str, "taken": [str], "drawn": [str], "unused": int}
SHAPE: dict[str, Any] = {  # what readers of recipe.json rely on
    "command?": str | None,
    "choices?": ({str: ([str], str)}, None),  # [value, why], but for a sentence on the size
    "plan?": ({"words": str, "chosen": dict, "reason": str, "otherwise": str}, None),
    "start?": (_START, None),
    "epochs_changed?": [{"from": float, "to": float, "step": (int, None)}],
    "data": {
        "name?": str, "source": str | None, "labels": str | None, "held_out?": float,
        "max_bad_share?": float, "size": int, "channels": int, "fingerprint": str,
        "groups?": str | None, "copies_together?": bool,
        "label_column?": str | None, "image_column?": str | None, "subset?": int | None,
        "test_subset?": int | None, "few_labels?": int | None, "max_pixels?": int | None,
        "rgb?": ([int], None),
        "value_range?": (_RANGE, None),
    },
    "recipe": {
        "name": str, "size": int, "seed": int, "batch_size": int, "number_of_views": int,
        "epochs": float, "warmup": float, "lr": float, "positives": str,
        "clip?": float | None, "chunk?": int | None,
        "start?": str | None, "freeze?": [str], "batch_norm?": str,
    },
}  # fmt: skip
SCORE: dict[str, Any] = {  # of one score in evaluation.json
    "metric": str, "features": str, "n": int, "value": float | None, "low": float | None,
    "high": float | None, "confidence": float, "protocol": str, "split": str, "seed": int,
    "images?": str, "right?": str, "group?": str, "groups?": int | None, "draws?": [float],
}  # fmt: skip
STATUS: dict[str, Any] = {
    "state": str, "step?": int, "steps?": int, "epoch?": float, "epochs?": float,
    "seconds?": float, "images_per_second?": float, "reason?": str | None, "pid?": int,
    "host?": str, "estimated_statistics?": dict,
}  # fmt: skip


class OtherImages(UserError):
    """The images are not those that the run was trained on."""


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path

    @classmethod
    @contextmanager
    def begun(cls, path: Path, recipe: dict[str, Any]) -> Iterator["Run"]:
        """A new run with this recipe.json, held by this process until the block ends.

        A folder that is empty, or in which a kill left a start without recipe.json, is taken over.
        Raises FileExistsError where there is anything else.
        """
        cls.refuse_existing(path)
        with said_of(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        with run.locked():
            cls.refuse_existing(path)  # another process may have begun and ended meanwhile
            run.write("recipe.json", recipe)
            yield run

    @staticmethod
    def refuse_existing(path: Path) -> None:
        if not unfinished(path):
            raise FileExistsError(
                f"--out {path} exists and is left as it is; name another folder, "
                f"or continue that run with --resume {path}"
            )
        check_writable(path)

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """An existing run; FileNotFoundError or UserError that says what is wrong with it."""
        path = Path(path)
        if not (path / "recipe.json").is_file():
            what = "has no recipe.json, so it is not a run" if path.is_dir() else "does not exist"
            if path.is_dir() and unfinished(path):
                what = "has no recipe.json: nothing was begun in it, so begin with --out"
            raise FileNotFoundError(f"{path} {what}; give the folder that `contrapose train` wrote")
        run = cls(path)
        written = read_object(path / "recipe.json")
        if (found := written.get("format")) != FORMAT:
            raise UserError(
                f"{path / 'recipe.json'} has run format {found!r}, this version reads {FORMAT}; "
                "read it with the version of contrapose that its environment.json names"
            )
        conform(written, SHAPE, str(path / "recipe.json"))
        return run

    def recipe(self, own: ModuleType | None = None) -> Recipe:
        """What the run trains by; own: the module of a recipe file of the user's own.

        UserError that names recipe.json where it describes no recipe.
        """
        try:
            return recipe_from(self.read("recipe.json")["recipe"], own)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.path / 'recipe.json'}: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held while something is written, so that two processes never write one run."""
        with held(self.path):
            yield

    def write(self, name: str, value: Any) -> None:
        """One JSON file, replaced whole."""
        replace_file(self.path / name, as_json_bytes(value))

    def read(self, name: str) -> Any:
        """The JSON value of a file; UserError that names a damaged one."""
        return read_json(self.path / name)

    def status(self) -> dict[str, Any]:
        """How far the run is; {} where nothing was trained yet, or the file is damaged (said).

        Its state is running, finished, interrupted, failed, or `killed` where it says running and
        the process that wrote that is gone.
        """
        file = self.path / "status.json"
        try:
            found = read_object(file, STATUS) if file.exists() else {}
        except UserError as error:  # training goes on from checkpoints, whatever this says
            say(f"{error}; left out")
            return {}
        killed = {"state": "killed", "reason": KILLED} if was_killed(self.path, found) else {}
        return found | killed

    def scores(self, name: str = "evaluation.json") -> list[dict[str, Any]]:
        """The scores of evaluation.json, or of another set's file, as JSON.

        None where nothing was evaluated yet. Those without a finite value and interval are left
        out.
        """
        file = self.path / name
        if not file.exists():
            return []
        remedy = "evaluate again"
        found: list[dict[str, Any]] = conform(
            read_json(file, remedy=remedy), [SCORE], str(file), remedy
        )
        return [s for s in found if None not in (s["value"], s["low"], s["high"])]

    def append_metrics(self, row: dict[str, Any]) -> None:
        path = self.path / "metrics.jsonl"
        with said_of(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows so far, each with its `step`; a last line cut short by a kill is left out.

        Other lines that cannot be read are left out too, and counted on standard error.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines()
        rows = [_row(line) for line in lines]
        damaged = [number for number, row in enumerate(rows[:-1], 1) if row is None]
        if damaged:
            say(
                f"{path}: {len(damaged)} of {len(lines)} lines cannot be read and are left out, "
                f"first line {damaged[0]}"
            )
        return [row for row in rows if row is not None]

    def cut_metrics(self, step: int) -> None:
        """Forget rows after `step`: they will be made again."""
        rows = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        replace_file(self.path / "metrics.jsonl", "".join(rows).encode())

    # ---- checkpoints -----------------------------------------------------------------------------

    def save_checkpoint(self, step: int, weights: bytes, state: dict[str, Any]) -> None:
        """Weights (safetensors bytes) and training state, under one name or not at all."""
        folder = self.path / "checkpoints"
        final = folder / f"step-{step:08d}"
        new = folder / f".{final.name}.new"
        remove(new)
        try:
            new.mkdir(parents=True)
            for name, write in (
                ("weights.safetensors", lambda file: file.write(weights)),
                ("training.pt", lambda file: torch.save(state, file)),
            ):
                with open(new / name, "wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            remove(new)
            raise OSError(
                f"checkpoint of step {step} could not be written to {folder} ({error}): is the "
                f"disk full? As it is, {self.last_good()}. Free some space, then continue with "
                f"--resume {self.path}"
            ) from error
        remove_folder(final)
        new.rename(final)
        self.write_encoder(weights)
        self._forget_old()

    def write_start(self, weights: bytes) -> None:
        """Keep the encoder that training starts from: the control of what was learned."""
        replace_file(self.path / START_FILE, weights)

    def write_encoder(self, weights: bytes) -> None:
        """Replace encoder.safetensors, the file that is read and passed on."""
        replace_file(self.path / "encoder.safetensors", weights)

    def load_checkpoint(
        self, take: Callable[[Weights, dict[str, Any]], None] = lambda weights, state: None
    ) -> tuple[Weights, dict[str, Any]] | None:
        """(weights, training state) of the newest checkpoint that can be read; None without one.

        `take` is given both, and may raise for what it cannot use: then an older one is tried.
        Raises UserError where there are checkpoints and none can be read.
        """
        problems = []
        for folder in reversed(checkpoints(self.path)):
            try:
                weights, _ = tensors_in(folder / "weights.safetensors")
                state = torch.load(folder / "training.pt", weights_only=True, map_location="cpu")
                if state["step"] != step_of(folder):
                    raise UserError(f"training.pt is of step {state['step']}")
                take(weights, state)
            except OtherImages:
                raise
            except Exception as error:  # a damaged file makes the readers raise anything
                problems.append(f"{folder.name} ({type(error).__name__}: {_briefly(error)})")
                continue
            if problems:
                say(
                    f"{self.path}: going on from {folder.name}, for {'; '.join(problems)} "
                    "cannot be read"
                )
            return weights, state
        if problems:
            raise UserError(
                f"no checkpoint of {self.path} can be read: {'; '.join(problems)}; restore them, "
                "or start a new run"
            )
        return None

    def settle(self, step: int) -> None:
        """Make the folder that of a run at this step, the step of the checkpoint gone on from.

        Checkpoints of later steps, which could not be read, are kept as damaged-step-N; later rows
        of metrics.jsonl are forgotten; encoder.safetensors holds the checkpoint's weights, or those
        of a training that ended at this step.
        """
        folder = self.path / "checkpoints"
        clear(folder)
        for later in (c for c in checkpoints(self.path) if step_of(c) > step):
            aside = folder / f"damaged-{later.name}"
            remove(aside)
            later.rename(aside)
        if step:
            weights = (folder / f"step-{step:08d}" / "weights.safetensors").read_bytes()
            file = self.path / "encoder.safetensors"
            if not file.is_file() or (file.read_bytes() != weights and final_step(file) != step):
                replace_file(file, weights)
        self._forget_old()
        self.cut_metrics(step)

    def set_aside_findings(self, step: int) -> None:
        """Move what was found of the encoder at this step into found-at-step-N: training goes on.

        Scores, diagnoses, pictures and the page of another encoder would else be read as the new
        one's.
        """
        found = [file for pattern in FINDINGS for file in sorted(self.path.glob(pattern))]
        aside = self.path / f"found-at-step-{step:08d}"
        for file in found:
            aside.mkdir(exist_ok=True)
            file.rename(aside / file.name)

    def remove_checkpoints(self) -> None:
        """Leave the weights in encoder.safetensors alone: the run cannot be trained further."""
        remove_folder(self.path / "checkpoints")

    def _forget_old(self) -> None:
        for old in checkpoints(self.path)[:-KEPT]:
            remove_folder(old)

    def last_good(self) -> str:
        """Words about the newest checkpoint."""
        kept = checkpoints(self.path)
        return f"the last good one is {kept[-1].name}" if kept else "there is no checkpoint yet"


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None where it holds no numbers with their step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    try:
        return present_names(conform(row, {"step": float, str: float | None}, "row"))
    except UserError:
        return None


def _briefly(error: Exception) -> str:
    lines = (str(error).strip() or "empty").splitlines()
    return " ".join(line.strip() for line in lines[:2])  # torch names the weight in the second


def say(sentence: str) -> None:
    """A line on standard error, where warnings are read beside any progress bar.

    Of the processes that a launcher started only the first one says it.
    """
    if first_of_launched():
        print(f"warning: {printable(sentence)}", file=sys.stderr)
