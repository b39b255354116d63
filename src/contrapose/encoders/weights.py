"""Reading weights: from a .safetensors file, or the newest ones of a run folder."""

import json
import sys
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from contrapose.errors import UserError

FINAL = "final_step"  # beside the architecture in weights written once training had ended


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str], Path]:
    """(weights by name, metadata, the file) of a .safetensors file, or the newest of a run folder.

    In a run folder it is encoder.safetensors, if training ended at the step of the newest
    checkpoint. Otherwise the process was killed, and encoder.safetensors may be older than the
    newest checkpoint: then that checkpoint is tried first, then encoder.safetensors, then older
    checkpoints. A file that cannot be read is named on standard error, once.
    Raises FileNotFoundError, or UserError if none can be read.
    """
    files = weights_files(path) if path.is_dir() else [path]
    problems: list[str] = []
    for file in files:
        try:
            weights, metadata = tensors_in(file)
        except FileNotFoundError:
            continue
        except (safetensors.SafetensorError, OSError) as error:
            problems.append(f"{file} is damaged ({error})")
            continue
        if problems:
            print(f"warning: {'; '.join(problems)}; reading {file}", file=sys.stderr)
        return weights, metadata, file
    if problems:
        raise UserError("; ".join(problems))
    missing = path / "encoder.safetensors" if path.is_dir() else path
    raise FileNotFoundError(f"{missing} does not exist: nothing was saved there yet")


def tensors_in(
    file: Path, *, metadata_only: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata) of one .safetensors file; its path need not be valid UTF-8.

    metadata_only: the tensors are not needed, and not read where that can be avoided.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:  # safetensors opens no such path
        data = file.read_bytes()
        weights = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return weights, header.get("__metadata__", {})
    with safetensors.safe_open(file, framework="pt") as opened:
        names = [] if metadata_only else opened.keys()
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def weights_files(run: Path) -> list[Path]:
    """The files of a run folder that may hold its weights, latest step first."""
    kept = list(reversed(checkpoints(run)))
    saved = [folder / "weights.safetensors" for folder in kept]
    file = run / "encoder.safetensors"
    if kept and final_step(file) == step_of(kept[0]):
        return [file, *saved]
    return [*saved[:1], file, *saved[1:]]


def final_step(file: Path) -> int | None:
    """The step at which training ended, if the file was written after its end, else None."""
    try:
        named = json.loads(tensors_in(file, metadata_only=True)[1].get("encoder", "null"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    found = named.get(FINAL) if isinstance(named, dict) else None
    return found if isinstance(found, int) else None


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, checkpoints/step-00000120 and the like, latest last."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((f for f in found if f.name[5:].isdecimal()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))
