"""What version 0.1.0 wrote opens still, or one sentence says what to do."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import contrapose
from contrapose import api, experiments, partials, recipes
from contrapose.errors import UserError
from contrapose.experiments.running.engine import reproduce
from contrapose.report import write_experiment, write_report
from contrapose.report.run_folder import read_run
from contrapose.training.run import Run

OLD = Path(__file__).parent / "old"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def test_an_old_run_opens_is_resumed_and_reported(run: Path) -> None:
    h, z = contrapose.Encoder.load(run)(torch.rand(3, 1, 8, 8))
    assert h.shape == (3, 16) and z.shape == (3, 8)
    before = (run / "encoder.safetensors").read_bytes()
    api.resume(run, device="cpu")
    assert (run / "encoder.safetensors").read_bytes() == before, "a finished run is left as it is"
    assert contrapose.evaluate(run, device="cpu")[0].value > 0.5
    assert "chance" in (run / "metrics.jsonl").read_text()
    assert all("loss_at_chance" in row for row in Run.open(run).metrics())
    assert {"loss", "loss_at_chance"} < read_run(run).curves.keys()
    assert write_report([run]).is_file()


def test_an_old_run_goes_on_from_its_checkpoint(run: Path, tmp_path: Path) -> None:
    """The recipe in memory is the one of the folder, although its functions are named anew."""
    written = json.loads((run / "recipe.json").read_text())["recipe"]
    assert written["backbone"]["call"] == "contrapose.encoders.small_conv"
    from contrapose.training.recipe import recipe_from

    api.resume(run, recipe=recipe_from(written), images=contrapose.open_images("digits"))


def test_results_of_an_old_experiment_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "swap-smoke", tmp_path / "swap-smoke")
    before = {path: path.read_bytes() for path in folder.rglob("result.json")}
    _, at = reproduce("swap", scale="smoke", out=tmp_path)
    assert len(at.finished) == at.total == len(before) == 5
    assert all(path.read_bytes() == content for path, content in before.items())
    assert write_experiment(folder).is_file()


def test_an_old_recipe_file_still_makes_a_recipe() -> None:
    assert recipes.recipe_for(OLD / "recipe.py", 8, 1).name == "narrow"


def test_an_old_experiment_file_says_where_its_imports_are_now() -> None:
    with pytest.raises(UserError, match=r"it is contrapose\.experiments\.measures\.knn now"):
        experiments.experiment(str(OLD / "experiment.py"))


def test_every_name_that_moved_is_where_the_table_says() -> None:
    for now in partials.MOVED.values():
        module, _, name = now.rpartition(".")
        assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(now), now


def test_a_file_of_ones_own_with_an_earlier_name_is_told_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from contrapose.similarity import everyone\n")
    with pytest.raises(UserError, match=r"it is contrapose\.similarity\.gather_rows now"):
        recipes.recipe_for(file, 8, 1)
