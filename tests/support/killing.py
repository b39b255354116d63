"""Processes that are killed at one of their file operations: for the tests of crash safety.

    python tests/support/killing.py FOLDER EVERY

The first process imports torch once; each run is a fork of it. It trains a whole run, then one run
for each file operation that this one made, killed (SIGKILL) at that operation, resumed, and
compared with the whole one. EVERY = 11 takes every eleventh operation; 1 takes all, and kills the
run that goes on a second time. Prints how many were tried.
"""

import builtins
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # which every optimiser imports, for a second; here once for all
from quick_recipe import quick
from safetensors import safe_open

import contrapose
import contrapose.api
from contrapose.data import ImageSet, open_images
from contrapose.encoders import Encoder
from contrapose.training.run import Run

EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0}  # the path's
RECIPE = quick(  # 4 steps, a checkpoint after each
    name="tiny", width=8, dim=4, batch_size=8, epochs=4 / 3, warmup=0
)


class Counted:
    """Counts operations that change files under a folder, in order; kills the process at one."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder, self.kill_at, self.made = f"{folder}{os.sep}", kill_at, 0
        sys.addaudithook(self._audited)
        fsync, plain = os.fsync, builtins.open
        os.fsync = lambda file: (self._operation(), fsync(file))[1]

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
            if self._mine(file) and mode in ("wb", "a"):
                binary = io.BufferedWriter(Written(os.fspath(file), mode[0], self._operation))
                return binary if mode == "wb" else io.TextIOWrapper(binary, encoding)
            return plain(file, mode, buffering, encoding, errors, newline, **more)

        builtins.open = io.open = opened

    def _mine(self, path: object) -> bool:
        return isinstance(path, str | Path) and f"{path}{os.sep}".startswith(self.folder)

    def _audited(self, event: str, args: tuple) -> None:
        if event not in EVENTS or not self._mine(args[EVENTS[event]]):
            return
        if event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._operation()

    def _operation(self) -> None:
        self.made += 1
        if self.made == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Written(io.FileIO):
    """A file of which a killed write leaves the first half."""

    def __init__(self, path: str, mode: str, operation: Callable[[], None]) -> None:
        super().__init__(path, mode)
        self.operation = operation

    def write(self, content) -> int:
        half = len(content) // 2
        super().write(content[:half])
        self.operation()
        return half + super().write(content[half:])


def forked(
    work: Callable[[], None], counted: Path | None = None, kill_at: int | None = None
) -> int:
    """Run it in a process of its own: how many operations it made; -1 where it was killed."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            count = Counted(counted, kill_at) if counted else None
            work()
            os.write(writer, str(count.made if count else 0).encode())
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    told = os.read(reader, 100)
    os.close(reader)
    assert status in (0, -signal.SIGKILL), f"the process ended with {status}"
    return int(told) if status == 0 else -1


def train(out: Path, images: ImageSet) -> None:
    contrapose.train(RECIPE, images, out=out, device="cpu")


def go_on(out: Path, images: ImageSet) -> None:
    """What a user does after a kill: resume, or the same command where there is no run yet."""
    try:
        run = Run.open(out)
    except FileNotFoundError:
        train(out, images)
        return
    contrapose.resume(run, recipe=RECIPE, images=images, device="cpu")


def everything(run: Path) -> dict[str, object]:
    """All that a run holds by file, but for clocks and process numbers."""
    found: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = str(path.relative_to(run))
        if path.suffix == ".pt":
            state = torch.load(path, weights_only=True)
            found[name] = {k: v for k, v in state.items() if k != "seconds"}
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            clock = ("seconds", "waiting_share")
            found[name] = [{k: v for k, v in row.items() if k not in clock} for row in rows]
        elif path.name == "status.json":
            found[name] = {k: json.loads(path.read_text())[k] for k in ("state", "step", "steps")}
        else:
            kept = path.suffix == ".safetensors" or path.name == "recipe.json"
            found[name] = path.read_bytes() if kept else None
    return found


def check_killed(run: Path) -> None:
    """What a reader finds after the kill is whole, and of the newest checkpoint."""
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    saved = sorted((run / "checkpoints").glob("step-*"))
    if saved:
        Run(run).load_checkpoint()
        read = Encoder.load(run).state_dict()
        with safe_open(saved[-1] / "weights.safetensors", "pt") as file:
            assert all(
                torch.equal(read[name], file.get_tensor(name))
                for name in file.keys()
                if "running_" not in name  # estimated in the encoder file of a run this short
            )
    if (run / "status.json").exists():
        assert Run(run).status()["state"] in ("killed", "finished")


def check_resumed(run: Path, whole: dict[str, object]) -> None:
    found = everything(run)
    assert found.keys() == whole.keys(), found.keys() ^ whole.keys()
    for name, value in whole.items():
        assert same(found[name], value), name


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def main(folder: Path, every: int) -> None:
    images = open_images("digits")
    images = images.subset(torch.arange(24))
    made = forked(partial(train, folder / "whole", images), counted=folder / "whole")
    whole = everything(folder / "whole")
    tried = 0
    for kill_at in range(1, made + 1, every):
        out = folder / "killed"
        killed = forked(partial(train, out, images), counted=out, kill_at=kill_at)
        assert killed == -1, f"operation {kill_at} of {made} was not reached"
        try:
            check_killed(out)
            runs = [out]
            if every == 1 and out.exists():  # a second kill, somewhere on the way back
                runs.append(shutil.copytree(out, out.with_name("twice")))
                forked(partial(go_on, runs[1], images), runs[1], kill_at=1 + 7 * kill_at % 41)
            for run in runs:
                forked(partial(go_on, run, images))
                check_resumed(run, whole)
                shutil.rmtree(run)
        except BaseException:
            print(f"killed at operation {kill_at} of {made}", file=sys.stderr)
            raise
        tried += 1
    print(f"{tried} of {made}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
