from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bertfast.cli.build import _RECIPES
from bertfast.config import Precision, ShapeProfile
from bertfast.engine.recipe import Recipe, read_recipe, recipe_names
from bertfast.errors import ConfigError, ProfileError

ROOT = Path(__file__).parents[2]
SHORT = ShapeProfile(batch=(1, 8, 32), length=(1, 64, 128))
LONG = ShapeProfile(batch=(1, 1, 4), length=(129, 256, 512))


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"library": "tensorrt", "profiles": [SHORT, LONG]} | changes)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_whole_and_fits_short_models_too(name: str) -> None:
    found = read_recipe(Path(name))
    assert max(profile.length[2] for profile in found.fit(512)) == 512
    assert {profile.length[2] for profile in found.fit(32)} == {32}
    if name.startswith("datacenter"):
        assert found.precision is Precision(name.removeprefix("datacenter-"))
    assert (found.library == "tensorrt-rtx") == name.startswith("rtx") == bool(found.targets)


def test_the_package_carries_the_recipes_of_the_folder_and_help_names_them() -> None:
    files = {file.stem: file.read_text() for file in (ROOT / "engines").glob("*.toml")}
    carried = {name: (ROOT / "bertfast" / "recipes" / f"build-{name}.toml").read_text() for name in recipe_names()}
    assert files == carried
    assert set(_RECIPES.split(", ")) == set(files)
    assert all(f"`{name}`" in (ROOT / "engines" / "README.md").read_text() or "datacenter" in name for name in files)


def test_profiles_beyond_the_model_are_refused_unless_they_are_to_be_cut() -> None:
    assert recipe().fit(512) == (SHORT, LONG)
    with pytest.raises(ProfileError, match=r"1..4 x 129..512 takes sequences of 512 tokens, and the model takes 300"):
        recipe().fit(300)
    cut = recipe(cut_to_model=True)
    assert cut.fit(300) == (SHORT, ShapeProfile(batch=(1, 1, 4), length=(129, 256, 300)))
    assert cut.fit(128) == (SHORT,)
    assert cut.fit(32) == (ShapeProfile(batch=(1, 8, 32), length=(1, 32, 32)),)
    with pytest.raises(ProfileError, match=r"129..512 takes sequences of 512 tokens, and the model takes 64"):
        recipe(profiles=[LONG], cut_to_model=True).fit(64)


def test_profiles_that_become_equal_are_one() -> None:
    longer = ShapeProfile(batch=SHORT.batch, length=(1, 64, 256))
    assert recipe(profiles=[SHORT, longer], cut_to_model=True).fit(128) == (SHORT,)


RTX = {"library": "tensorrt-rtx", "targets": ["SM89"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["SM89"]}, r"targets = \['SM89'\] are of TensorRT for RTX: .*set library = \"tensorrt-rtx\""),
        (RTX | {"version_compatible": True}, "version_compatible makes a plan with host code .* Take it out"),
        (
            {"version_compatible": True},
            "which runs when it is loaded: our runtimes refuse that. Take it out",
        ),
        (RTX | {"hardware_compatibility": "ampere_plus"}, "hardware_compatibility is not of TensorRT for RTX: name"),
        (RTX | {"timing_cache": True}, "timing_cache is not of TensorRT for RTX: it times nothing"),
        (RTX | {"targets": []}, "builds for named GPUs. Give targets, .*SM75, SM80, SM86, SM89, SM120, SM121"),
        (RTX | {"targets": ["SM90"]}, r"SM90 \(H100, H200\) is none of TensorRT for RTX's targets. Build with"),
        (RTX | {"targets": ["SM12"]}, "target SM12 is not one of SM75, .* Did you mean 'SM12[01]'"),
        (RTX | {"targets": ["SM86", "SM86"]}, "names one twice"),
        (
            {"optimisation_level": 3},
            "'optimisation_level' is not a setting of Recipe. Did you mean 'optimization_level'",
        ),
    ],
)
def test_what_a_library_does_not_have_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimization_level=6"], "latency: optimization_level = 6: .*less than or equal to 5"),
        (["workspace_bytes=0"], "latency: workspace_bytes = 0: .*greater than 0"),
        (["precision=fp64"], "latency: precision = 'fp64'"),
        (["library=tensorflow"], "latency: library = 'tensorflow'"),
        (["profiles=[]"], r"latency: profiles = \(?\[\]"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_recipe(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(Path("latency"), settings)


def test_targets_that_are_given_take_the_place_of_the_recipe_s() -> None:
    assert read_recipe(Path("rtx-ahead-of-time"), (), ["SM75"]).targets == ("SM75",)
    with pytest.raises(ConfigError, match="ltency does not exist. Did you mean 'latency'"):
        read_recipe(Path("ltency"))
