"""The run folder: all that a run leaves behind; a kill at any moment loses nothing of it.

    recipe.json  environment.json  status.json  metrics.jsonl  encoder.safetensors
    checkpoints/step-00000120/{weights.safetensors, training.pt}  (the newest two)

Files are written beside and renamed; a checkpoint is a folder renamed whole. Nothing here executes
code from a file: weights are safetensors, training state is read with `weights_only`.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from contrapose.files import as_json_bytes, finite, replace_file, said_of

FORMAT = 1
KEPT = 2  # checkpoints


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> "Run":
        """A new, empty folder; FileExistsError where something is there already."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            cls.refuse_existing(path)
            raise
        return cls(path)

    @staticmethod
    def refuse_existing(path: Path) -> None:
        if path.exists():
            raise FileExistsError(
                f"--out {path} exists and is left as it is; name another folder, "
                f"or continue that run with --resume {path}"
            )

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """An existing run; FileNotFoundError or ValueError that says what is wrong with it."""
        path = Path(path)
        if not (path / "recipe.json").is_file():
            what = "has no recipe.json, so it is not a run" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{path} {what}; give the folder that `contrapose train` wrote")
        run = cls(path)
        written = run.read("recipe.json")
        found = written.get("format") if isinstance(written, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{path} has run format {found!r}, this version reads {FORMAT}; "
                "read it with the version of contrapose that its environment.json names"
            )
        if not {"data", "recipe"} <= written.keys():
            raise ValueError(f"{path / 'recipe.json'} lacks its data or its recipe; restore it")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held while training, so that two processes never write one run."""
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path} is being written by another process") from None
            yield

    def write(self, name: str, value: Any) -> None:
        """One JSON file, replaced whole."""
        replace_file(self.path / name, as_json_bytes(value))

    def read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path / name} is damaged ({error}); restore it") from None

    def append_metrics(self, row: dict[str, Any]) -> None:
        path = self.path / "metrics.jsonl"
        with said_of(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows so far; a last line cut short by a kill is left out."""
        path, rows = self.path / "metrics.jsonl", []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def cut_metrics(self, step: int) -> None:
        """Forget rows after `step`: they will be made again."""
        rows = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        replace_file(self.path / "metrics.jsonl", "".join(rows).encode())

    def save_checkpoint(self, step: int, weights: bytes, state: dict[str, Any]) -> None:
        """Weights (safetensors bytes) and training state, under one name or not at all."""
        folder = self.path / "checkpoints"
        new, final = folder / f".step-{step:08d}.new", folder / f"step-{step:08d}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            for name, write in (
                ("weights.safetensors", lambda file: file.write(weights)),
                ("training.pt", lambda file: torch.save(state, file)),
            ):
                with open(new / name, "wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(new, ignore_errors=True)
            raise OSError(
                f"checkpoint of step {step} could not be written to {folder} ({error}): is the "
                f"disk full? As it is, {self.last_good()}. Free some space, then continue with "
                f"--resume {self.path}"
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
        replace_file(self.path / "encoder.safetensors", weights)
        for old in self._checkpoints()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def load_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """(weights, training state) of the newest checkpoint that can be read; None without one."""
        problems = []
        for folder in reversed(self._checkpoints()):
            try:
                weights = load_file(folder / "weights.safetensors")
                state = torch.load(folder / "training.pt", weights_only=True, map_location="cpu")
            except Exception as error:  # a damaged file makes the readers raise anything
                problems.append(f"{folder.name}: {type(error).__name__} {error}")
                continue
            for problem in problems:
                print(f"warning: unreadable checkpoint {problem}", file=sys.stderr)
            return weights, state
        if problems:
            raise ValueError(f"no checkpoint of {self.path} can be read: {'; '.join(problems)}")
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*"))

    def last_good(self) -> str:
        """Words about the newest checkpoint."""
        kept = self._checkpoints()
        return f"the last good one is {kept[-1].name}" if kept else "there is no checkpoint yet"
