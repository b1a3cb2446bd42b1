"""Every setting of bertfast: frozen pydantic models, validated once, saved with each artefact."""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from bertfast.errors import ConfigError, did_you_mean


class Precision(enum.StrEnum):
    """The number format in which the matrix products run."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class Config(BaseModel):
    """Base of all settings: frozen, and unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    raise ConfigError(
                        f"'{key}' is not a setting of {cls.__name__}.{did_you_mean(str(key), cls.model_fields)}"
                        f" The settings are: {known}."
                    )
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Build from plain values, so that a bad one is reported with its key and where it came from.

        Raises:
            ConfigError: a key is unknown, or a value is of the wrong type or out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = (
                f"{'.'.join(map(str, item['loc'])) or cls.__name__} = {item['input']!r}: {item['msg']}"
                for item in error.errors()
            )
            raise ConfigError(f"{source}: " + "; ".join(lines)) from None


class ModelConfig(Config):
    """A BERT encoder's shape, in Hugging Face's names. Defaults are BERT-base's (Devlin et al. 2019, 3)."""

    vocab_size: int = Field(30522, gt=0)
    hidden_size: int = Field(768, gt=0)
    num_hidden_layers: int = Field(12, gt=0)
    num_attention_heads: int = Field(12, gt=0)
    intermediate_size: int = Field(3072, gt=0)
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"] = "gelu"
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1)
    max_position_embeddings: int = Field(512, gt=0)
    type_vocab_size: int = Field(2, ge=2)
    initializer_range: float = Field(0.02, gt=0)
    layer_norm_eps: float = Field(1e-12, gt=0)
    pad_token_id: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}. Choose a head count that divides it."
            )
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class TrainConfig(Config):
    """The training loop, whatever the task. A step is one optimiser step."""

    seed: int = Field(0, ge=0)
    learning_rate: float = Field(5e-5, gt=0)
    epochs: float = Field(3.0, gt=0, description="passes over the data; ignored where max_steps is given")
    max_steps: int | None = Field(None, gt=0)
    global_batch_size: int = Field(32, gt=0, description="sequences that one step learns from")
    micro_batch_tokens: int = Field(16384, gt=0, description="tokens, padding included, that go through at once")
    max_length: int = Field(128, ge=8, description="tokens of a sequence, [CLS] and [SEP] included")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    lr_decay: Literal["linear", "sqrt", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after the warm-up; linear and sqrt: polynomial, power 1, 0.5"
    )
    lr_final_fraction: float = Field(0.0, ge=0, le=1, description="what is left of the learning rate at the end")
    layer_lr_decay: float = Field(
        1.0, gt=0, le=1, description="the rate of each layer as a share of the rate of the one above it; 1: all alike"
    )
    optimizer: Literal["adamw", "lamb"] = Field("adamw", description="lamb: for batches of many thousand sequences")
    weight_decay: float = Field(0.01, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-6, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal[Precision.FP32, Precision.BF16, "auto"] = Field(
        "auto", description="bf16 autocast where the device has it"
    )
    compile: bool | Literal["auto"] = Field("auto", description="torch.compile where it can pay for itself")
    deterministic: bool | Literal["auto"] = Field(
        "auto", description="the same run gives the same weights, bit for bit; auto: on the CPU, where it is free"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep only what enters each layer and compute the rest again for the gradient: less memory"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; all physical cores when not given")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp", description="over many processes: whole weights in each (ddp), or cut over them (fsdp)"
    )
    workers: NonNegativeInt | Literal["auto"] = Field(
        "auto", description="processes that make batches; 0: a thread; auto: a few beside a GPU"
    )
    checkpoint_every_steps: int = Field(500, gt=0)
    keep_states: int = Field(2, gt=0, description="saved states that are kept while a run is under way")
    evaluate_every_steps: int | None = Field(None, gt=0, description="after each epoch when not given")
    log_every_steps: int = Field(10, gt=0)


class PretrainConfig(TrainConfig):
    """Masked language modelling and next-sentence prediction (Devlin et al. 2019, 3.1 and A.2)."""

    learning_rate: float = Field(1e-4, gt=0)
    epochs: float = Field(1.0, gt=0)
    global_batch_size: int = Field(256, gt=0)
    masking: Literal["token", "whole-word", "span"] = Field(
        "token", description="what is chosen at a time: a token, a word with all its pieces, or a span of words"
    )
    masked_lm_prob: float = Field(0.15, gt=0, lt=1, description="share of the tokens that is chosen")
    mask_token_prob: float = Field(0.8, ge=0, le=1, description="share of the chosen that becomes [MASK]")
    random_token_prob: float = Field(0.1, ge=0, le=1, description="share of the chosen that becomes a random token")
    max_predictions_per_seq: int | None = Field(
        None, gt=0, description="the most tokens chosen in a sequence; max_length * masked_lm_prob when not given"
    )
    max_span_words: int = Field(
        3, gt=0, description="masking=span: the longest span; n words are drawn with p(n) proportional to 1/n"
    )
    sentence_pairs: Literal["nsp", "sop"] = Field(
        "nsp", description="what the pair is about: next-sentence prediction or sentence order (Lan et al. 2020, 3.1)"
    )
    short_seq_prob: float = Field(0.1, ge=0, le=1)
    packing: bool = Field(True, description="several sequences a row, so that padding is not computed")
    row_tokens: int | None = Field(
        None, gt=0, description="tokens of a packed row; max_length when not given (a mask's cost grows with it)"
    )
    heldout_fraction: float = Field(0.01, ge=0, lt=1, description="share of the documents kept for evaluation")
    heldout_instances: int = Field(1024, gt=0, description="how many held-out instances an evaluation uses")

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.mask_token_prob + self.random_token_prob > 1:
            raise ConfigError(
                f"mask_token_prob {self.mask_token_prob} and random_token_prob {self.random_token_prob} are together "
                "more than 1. Lower one of them; what they leave stays as it is."
            )
        return self

    @model_validator(mode="after")
    def _rows_hold_sequences(self) -> Self:
        if self.row_tokens is not None and self.row_tokens < self.max_length:
            raise ConfigError(
                f"row_tokens {self.row_tokens} is less than max_length {self.max_length}, and a row holds whole "
                "sequences. Raise the one or lower the other."
            )
        return self


class FinetuneConfig(TrainConfig):
    """Fine-tuning from a checkpoint (Devlin et al. 2019, A.3)."""

    bucket_batches: int = Field(
        16, gt=0, description="batches that are drawn at random together and then sorted by length; 1: no sorting"
    )
    keep: Literal["last", "best", "auto"] = Field(
        "auto",
        description="which weights are published: the last, or those that did best on dev by the task's metric; "
        "auto: the best with patience, else the last",
    )
    patience: int | None = Field(
        None,
        gt=0,
        description="stop after so many evaluations on end without a better one, and publish the best (see keep); "
        "never when not given",
    )
    freeze_layers: int | None = Field(
        None, ge=0, description="the embeddings and so many of the lowest layers are not trained; 0: the embeddings"
    )
    layers: int | None = Field(
        None, gt=0, description="take so many layers of the start checkpoint, evenly spread; all when not given"
    )
    distill_weight: float = Field(
        0.5, gt=0, le=1, description="with a teacher: its share of the loss; what is left is the labels'"
    )
    distill_temperature: float = Field(
        2.0, gt=0, description="with a teacher: what logits are divided by, so that unlikely answers count too"
    )


class ShapeProfile(Config):
    """The shapes of batches that an engine takes, each as (least, best, most): an optimisation profile of TensorRT.

    Attributes:
        batch: sequences.
        length: tokens of a sequence, padding included.
    """

    batch: tuple[PositiveInt, PositiveInt, PositiveInt]
    length: tuple[PositiveInt, PositiveInt, PositiveInt]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for name, values in (("batch", self.batch), ("length", self.length)):
            if list(values) != sorted(values):
                raise ConfigError(
                    f"{name} = {list(values)} is not least <= best <= most. Write such as {name} = [1, 8, 32]."
                )
        return self

    def holds(self, batch: int, length: int) -> bool:
        """Whether a batch of so many sequences of so many tokens is within it."""
        return self.batch[0] <= batch <= self.batch[2] and self.length[0] <= length <= self.length[2]

    def __str__(self) -> str:
        return f"{self.batch[0]}..{self.batch[2]} x {self.length[0]}..{self.length[2]}"


def presets(verb: str) -> dict[str, Traversable]:
    """The settings files that the package carries for a verb, by the name that --config or --recipe takes."""
    prefix, suffix = f"{verb}-", ".toml"
    files = (resources.files("bertfast") / "recipes").iterdir()
    found = {file.name[len(prefix) : -len(suffix)]: file for file in files if file.name.startswith(prefix)}
    return dict(sorted(found.items()))


def read_settings(file: Path | None, overrides: Sequence[str], verb: str | None = None) -> dict[str, Any]:
    """The settings of a TOML file with `key=value` overrides on top; dotted keys reach into tables.

    Values are read as TOML, and as plain text where they are not TOML.

    Args:
        file: a TOML file, or the name of one of the verb's presets.
        overrides: what --set gave.
        verb: whose presets there are; none when not given.
    Raises:
        ConfigError: the file is missing or malformed, or an override has no `=`.
    """
    settings = {} if file is None else _read_toml(file, presets(verb) if verb else {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override} has no '='. Write --set key=value, such as --set learning_rate=3e-5.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        table = settings
        *path, name = key.strip().split(".")
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {override}: '{part}' is a value, not a table.")
        table[name] = value
    return settings


def _read_toml(file: Path, known: Mapping[str, Traversable]) -> dict[str, Any]:
    name = str(file)
    source = known[name] if name in known and not file.is_file() else file
    remedy = "Give a TOML file" + (f" or one of {', '.join(known)}." if known else ".")
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist.{did_you_mean(name, known)} {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}. {remedy}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
