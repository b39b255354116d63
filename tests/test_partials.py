"""Functions with their arguments as data: there and back, and nothing foreign is ever called."""

import dataclasses
import types
from functools import partial

import pytest

from contrapose.partials import assign, describe, parse, revive
from contrapose.recipes import names, recipe_for
from contrapose.training.recipe import recipe_from


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("size, channels", [(8, 1), (32, 3), (224, 3)])
def test_a_recipe_survives_the_way_through_json(name, size, channels):
    recipe = recipe_for(name, size, channels)
    assert describe(recipe_from(describe(recipe))) == describe(recipe)
    assert recipe.name == name


def test_set_reaches_an_argument_and_a_field():
    recipe = assign(recipe_for("simclr", 32, 3), "loss.temperature", "0.07")
    recipe = assign(recipe, "batch_size", "64")
    assert describe(recipe.loss) == {"call": describe(recipe.loss)["call"], "temperature": 0.07}
    assert recipe.batch_size == 64


def test_set_exchanges_a_function_and_keeps_the_arguments_both_have():
    recipe = assign(recipe_for("simclr", 32, 3), "loss", "dcl")
    assert recipe.loss.func.__name__ == "dcl" and recipe.loss.keywords == {"temperature": 0.5}


@pytest.mark.parametrize(
    "path, text, says",
    [
        ("los.temperature", "1", "did you mean 'loss'"),
        ("loss.temprature", "1", "did you mean 'temperature'"),
        ("loss.temperature", "warm", "'warm' is not of type float"),
        ("loss.temperature", "nan", "'nan' is not of type float"),
        ("loss.temperature", "-1", "use a positive number"),
        ("loss", "nt_xnet", "did you mean 'nt_xent'"),
        ("batch_size", "1", "use at least 2"),
        ("batch_size", "2.5", "'2.5' is not of type int"),
        ("batch_size.x", "1", "is a value"),
        ("positives", "color", "no 'color'.*Available: class, feature:NAME, image, shared"),
    ],
)
def test_a_wrong_setting_is_an_error_that_helps(path, text, says):
    with pytest.raises(ValueError, match=says):
        assign(recipe_for("simclr", 32, 3), path, text)


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "contrapose.encoders._ResNet", "contrapose.api.train"]
)
def test_only_public_functions_of_the_library_are_revived(name):
    with pytest.raises(ValueError, match="not a function of this library"):
        revive({"call": name, "command": "touch /tmp/owned"})


def loss_of_another_module(z):
    return z.sum()


def test_a_recipe_file_lends_the_functions_of_its_recipe_wherever_they_come_from():
    own = types.ModuleType("own")
    mine = partial(loss_of_another_module)
    own.recipe = dataclasses.replace(recipe_for("simclr", 32, 3), loss=mine)
    assert revive(describe(mine), own).func is loss_of_another_module
    for name in (
        "os.system",
        f"{__name__}.{test_none_booleans_and_tuples_are_read_by_type.__name__}",
    ):
        with pytest.raises(ValueError, match="not a function of this library"):
            revive({"call": name}, own)


def test_none_booleans_and_tuples_are_read_by_type():
    assert parse("none", float | None, "") is None
    assert parse("true", bool, "") is True
    assert parse("0.2,1", tuple[float, float], "") == (0.2, 1.0)


def test_a_partial_of_a_partial_describes_all_its_arguments():
    @dataclasses.dataclass
    class Box:
        function: object

    inner = partial(partial(parse, request="r"), annotation=int)
    assert set(describe(Box(inner))["function"]) == {"call", "request", "annotation"}
