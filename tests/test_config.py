from __future__ import annotations

from pathlib import Path

import pytest

from bertfast.config import ModelConfig, PretrainConfig, ShapeProfile, TrainConfig, read_settings
from bertfast.errors import ConfigError


def test_defaults_are_those_of_bert_base() -> None:
    config = ModelConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.vocab_size, config.intermediate_size, config.layer_norm_eps) == (30522, 3072, 1e-12)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'learning_rat' is not a setting.*Did you mean 'learning_rate'"):
        TrainConfig.parse({"learning_rat": 1e-4}, "settings")


def test_a_bad_value_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"settings: masked_lm_prob = 1.5: .*less than 1"):
        PretrainConfig.parse({"masked_lm_prob": 1.5}, "settings")


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ConfigError, match="100 is not a multiple of num_attention_heads 12"):
        ModelConfig(hidden_size=100)


def test_overrides_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('learning_rate = 1e-4\nprecision = "fp32"\n[model]\nhidden_size = 64\n')
    settings = read_settings(file, ["learning_rate=2e-5", "model.num_hidden_layers=3", "compile=auto"])
    assert settings == {
        "learning_rate": 2e-5,
        "precision": "fp32",
        "compile": "auto",
        "model": {"hidden_size": 64, "num_hidden_layers": 3},
    }


@pytest.mark.parametrize("override", ["learning_rate", "learning_rate.x.y=1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        read_settings(None, ["learning_rate=1", override])


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().seed = 3  # type: ignore[misc]


def test_a_profile_rises_and_says_what_it_holds() -> None:
    profile = ShapeProfile(batch=(2, 8, 32), length=(16, 64, 512))
    assert str(profile) == "2..32 x 16..512"
    assert [profile.holds(*shape) for shape in ((2, 16), (32, 512))] == [True, True]
    assert [profile.holds(*shape) for shape in ((1, 16), (33, 16), (2, 15), (2, 513))] == [False] * 4
    with pytest.raises(ConfigError, match=r"length = \[1, 64, 32\] is not least <= best <= most"):
        ShapeProfile(batch=(1, 1, 1), length=(1, 64, 32))
    with pytest.raises(ConfigError, match=r"batch.0 = 0: .* greater than 0"):
        ShapeProfile.parse({"batch": [0, 1, 1], "length": [1, 1, 1]}, "profile")
