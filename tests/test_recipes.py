"""The presets that the wheel carries: every one is whole, and says what it says it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bertfast.config import ModelConfig, PretrainConfig, presets, read_settings
from bertfast.errors import ConfigError
from bertfast.model.encoder import BertModel
from bertfast.model.heads import BertForPreTraining
from bertfast.train.optimizer import learning_rate

NAMES = list(presets("pretrain"))


def preset(name: str) -> tuple[PretrainConfig, dict[str, Any]]:
    values = read_settings(Path(name), [], "pretrain")
    shape = values.pop("model", {})
    return PretrainConfig.parse(values, name), shape


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_valid(name: str) -> None:
    config, shape = preset(name)
    assert config.max_steps
    if name.endswith("-512"):
        assert (shape, config.max_length) == ({}, 512)  # it goes on from a checkpoint, whose shape it keeps
    else:
        model = ModelConfig.parse(shape, name)
        assert (model.head_size, model.intermediate_size) == (64, 4 * model.hidden_size)
        assert config.max_length == 128
    assert config.optimizer == ("lamb" if "lamb" in name else "adamw")


@pytest.mark.parametrize(
    ("name", "encoder", "with_heads"),
    [
        ("tiny", 4_385_920, None),
        ("mini", 11_170_560, None),
        ("small", 28_763_648, None),
        ("medium", 41_373_184, None),
        ("base", 109_482_240, 110_106_428),
        ("large", 335_141_888, 336_226_108),
        ("large-lamb", 335_141_888, 336_226_108),
    ],
)
def test_the_shapes_have_the_published_number_of_parameters(name: str, encoder: int, with_heads: int | None) -> None:
    shape = ModelConfig.parse(preset(name)[1], name)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in BertModel(shape).parameters()) == encoder
        if with_heads:
            assert sum(parameter.numel() for parameter in BertForPreTraining(shape).parameters()) == with_heads


@pytest.mark.parametrize("name", ["tiny", "mini", "small", "medium", "base", "large"])
def test_the_two_phases_are_one_schedule_of_a_million_steps(name: str) -> None:
    first, second = preset(name)[0], preset("base-512")[0]
    steps, more = first.max_steps or 0, second.max_steps or 0
    assert (steps, more) == (900_000, 100_000)
    assert learning_rate(9_999, steps, first) == pytest.approx(1e-4)
    for step in (10_000, 300_000, 899_999):
        assert learning_rate(step, steps, first) == pytest.approx(1e-4 * (1_000_000 - step) / 990_000, rel=1e-4)
    for step in (1_000, 50_000, 99_999):
        assert learning_rate(step, more, second) == pytest.approx(1e-4 * (100_000 - step) / 990_000, rel=0.02)


def test_a_file_goes_before_a_preset_and_a_directory_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()  # as '--out base' leaves it
    assert read_settings(Path("base"), ["max_steps=7"], "pretrain")["max_steps"] == 7
    (tmp_path / "tiny").write_text("seed = 3\n")
    assert read_settings(Path("tiny"), [], "pretrain") == {"seed": 3}


def test_a_name_that_is_neither_names_the_nearest_preset() -> None:
    with pytest.raises(ConfigError, match=r"lrge does not exist. Did you mean 'large'\? .* one of base, base-512, "):
        read_settings(Path("lrge"), [], "pretrain")
    with pytest.raises(ConfigError, match=r"base does not exist. Give a TOML file.$"):
        read_settings(Path("base"), [], "classify")


def test_help_names_every_preset() -> None:
    command = [sys.executable, "-m", "bertfast", "train", "pretrain", "--help"]
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1"}
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    words = set(printed.replace(",", " ").replace(".", " ").split())
    assert set(NAMES) <= words
