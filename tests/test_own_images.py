"""People's own folders from training to the last file written: names, splits, copies."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import contrapose
from contrapose import api, explain
from contrapose.commands.console import print_images
from contrapose.data import open_images
from contrapose.report import write_report

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
    assert what == f"held-out 20%, since the 2 images of the test split have no labels{seen}"
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


def test_every_row_of_embed_names_its_file(tmp_path: Path, capsys: Any) -> None:
    data = write(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(8)])
    run = contrapose.train("simclr", data, out=tmp_path / "run", max_bad_share=0.1, **BRIEF)
    (data / "a/3.png").write_text("broken")
    expected = [f"{c}/{i}.png" for c in "ab" for i in range(8) if (c, i) != ("a", 3)]
    for out in (tmp_path / "e.npz", tmp_path / "e.parquet"):
        print_images(explain.write_embeddings(run, data, out, device="cpu"))
        shown = capsys.readouterr().out
        assert "a/3.png: not an image" in shown.replace("\n", "") and "15 images" in " ".join(
            shown.split()
        )
        whole = np.load(out) if out.suffix == ".npz" else pq.read_table(out).to_pydict()
        assert list(whole["file"]) == expected
        assert list(whole["index"]) == [0, 1, 2, *range(4, 16)]


def test_a_diagnosis_names_files(tmp_path: Path) -> None:
    data = write(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(8)])
    shutil.copy(data / "a/2.png", data / "b/5.png")
    run = contrapose.train("simclr", data, out=tmp_path / "run", **BRIEF)
    explain.evaluate(run)
    found = explain.diagnose(run)
    kept, held, _ = api.train_and_test(run)
    groups = [g for g in ([f for f in kept.files if f in ("a/2.png", "b/5.png")],) if len(g) > 1]
    assert found["duplicates"] == groups == run.read("diagnosis.json")["duplicates"]
    assert found["signals"]["duplicate_images"] == len(groups)
    pictures = np.load(run.path / "pictures.npz")
    assert sorted(pictures["map_file"]) == sorted(pictures["neighbour_query_file"])
    assert sorted(pictures["map_file"]) == held.files
    page = write_report([run.path]).read_text()
    assert all(file in page for file in held.files)


def test_a_run_whose_names_are_no_utf8_opens_again(tmp_path: Path) -> None:
    """The folder of the images, a class, a broken file, the run folder: all in Latin-1."""
    data = tmp_path / os.fsdecode(b"s\xe9t")
    write(data, [f"{c}/{i}.png" for c in ("cat", os.fsdecode(b"ni\xf1o")) for i in range(8)])
    (data / os.fsdecode(b"cat/\xff.png")).write_text("broken")
    path = tmp_path / os.fsdecode(b"r\xff")
    run = contrapose.train("simclr", data, out=path, max_bad_share=0.1, **BRIEF)
    said = json.loads((path / "recipe.json").read_bytes())["data"]
    assert said["classes"] == ["cat", "ni\\xf1o"] and said["source"] == str(data)
    assert "cat/\\xff.png: not an image" in said["skipped"][0]
    assert explain.evaluate(run)[0].n == 4
    explain.diagnose(run)
    assert "ni\\xf1o" in write_report([run.path]).read_text()
    assert len(explain.write_embeddings(run, data, tmp_path / "e.parquet")) == 16
    api.resume(path, device="cpu")


def test_images_with_several_labels_train_by_shared_ones_and_are_scored_by_mean_average_precision(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (60, 3))
    x = random.integers(0, 60, (60, 8, 8))
    x[:, :4, :4] += 190 * labels[:, 0, None, None]  # the pixels show two of the three labels
    x[:, 4:, 4:] += 190 * labels[:, 1, None, None]
    np.savez(tmp_path / "x.npz", images=x.astype(np.uint8), labels=labels)
    shared = ["positives=shared", "loss=supcon_shared", "loss.temperature=0.2"]
    run = contrapose.train(
        "simclr", tmp_path / "x.npz", out=tmp_path / "run", changes=shared, **BRIEF
    )
    assert run.read("recipe.json")["data"]["held_out"] == 0.2  # it saw labels
    found = {(s.metric, s.features): s for s in explain.evaluate(run)}
    name = "mean average precision"
    assert set(found) == {
        *((name, f) for f in ("h", "untrained h", "pixels")), (f"{name} of chance", "none"),
    }  # fmt: skip
    chance = found[f"{name} of chance", "none"]
    held = api.train_and_test(run)[1].labels
    assert chance.value == pytest.approx(held.double().mean(dim=0).mean().item())
    assert found[name, "pixels"].value > 0.75 and chance.low < chance.value < chance.high
    assert len(found[name, "h"].draws) == len(chance.draws) > 100
    said = explain.diagnose(run)["verdict"]
    assert "mean average precision" in said[0]["sentence"] and "p = " in said[0]["evidence"]
    write_report([run.path])
    with pytest.raises(ValueError, match="positives=shared takes images with several labels"):
        contrapose.train("simclr", "digits", changes=shared, **BRIEF)
