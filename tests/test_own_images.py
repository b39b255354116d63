"""People's own folders from training to the last file written: names, splits, copies."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import contrapose
from contrapose import api, explain
from contrapose.data import open_images

BRIEF: dict[str, Any] = {"epochs": 1, "batch_size": 8, "encoder": "small_conv", "device": "cpu"}


def write(folder: Path, names: Iterable[str]) -> Path:
    """A noise image of 8 px for each name."""
    random = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("recipe", ["simclr", "supcon"])
def test_a_test_split_without_labels_leaves_a_part_of_train_to_be_scored(
    tmp_path: Path, recipe: str
) -> None:
    names = [*(f"train/{c}/{i}.png" for c in "ab" for i in range(10)), "test/1.png", "test/2.png"]
    data = write(tmp_path / "set", names)
    run = contrapose.train(recipe, data, out=tmp_path / "run", **BRIEF)
    train, test, what = api.train_and_test(run)
    assert (len(train), len(test)) == (16, 4) and test.label.tolist() == [0, 0, 1, 1]
    seen = {"simclr": ", which the encoder saw without labels", "supcon": ""}[recipe]
    assert what == f"held-out 20%{seen}, since the 2 images of the test split have no labels"
    assert explain.evaluate(run)[0].n == 4
    steps = run.read("status.json")["step"]
    assert steps == {"simclr": 20, "supcon": 16}[recipe] // 8


def test_a_run_is_resumed_on_a_copy_of_its_files_however_it_is_stored(tmp_path: Path) -> None:
    data = write(tmp_path / "set", [f"{i}.png" for i in range(16)])
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)

    class Stop(Exception): ...

    def stop(at: Any) -> None:
        if at.step == 2:
            raise Stop

    with pytest.raises(Stop):
        stopped = open_images(data, memory=0)
        api.train("simclr", stopped, out=tmp_path / "run", watch=stop, **(BRIEF | {"epochs": 2}))
    other = open_images(write(tmp_path / "other", [f"{i}.png" for i in range(1, 17)]), memory=0)
    with pytest.raises(ValueError, match="restore the images"):
        api.resume(tmp_path / "run", images=other.subset(other.index.flip(0)), device="cpu")
    run = api.resume(tmp_path / "run", images=open_images(copy, memory=0), device="cpu")
    assert api.resume(run, images=open_images(copy), device="cpu").read("status.json")["step"] == 4
