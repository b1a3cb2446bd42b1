"""The files by which sentence-transformers tells what stands on an encoder: read from its folders, written into ours.

A folder of a sentence encoder holds modules.json: a Transformer, a Pooling and perhaps a Normalize, in this order. A
folder of a cross-encoder (a pair scored by one logit) is marked in config_sentence_transformers.json since version 6
and in config.json before. We write the forms that every version since 2 reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertfast.errors import ArtifactError

MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
OPTIONS_FILE = "config_sentence_transformers.json"
_POOLINGS = ("mean", "cls")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_REMEDY = f"To fine-tune its encoder without them, copy the folder without {MODULES_FILE}."
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "identity"}


def foreign_task(path: Path, config: Mapping[str, Any], *, lowercased: bool) -> tuple[str | None, dict[str, Any]]:
    """The task that a folder's files name, and its settings: embed, rerank, or (None, {}) where they name none.

    Args:
        config: what its config.json holds.
        lowercased: whether its tokenizer makes letters small.
    Raises:
        ArtifactError: it is one of theirs, with something that bertfast does not have.
    """
    if (encoder := _sentence_encoder(path)) is not None:
        _refuse_prompt(path)
        if not lowercased:
            _refuse_lowercasing(path)
        return "embed", encoder
    if len(config.get("id2label") or {}) == 1 and (activation := _activation(path, config)) is not None:
        return "rerank", {"activation": activation}
    return None, {}


def trained_length(path: Path) -> int | None:
    """Tokens to which sentence-transformers cuts a text, by its own file or by the tokenizer's; None: not said."""
    for name, key in ((LENGTH_FILE, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        length = _options(path / name).get(key)
        if isinstance(length, int | float):
            return int(length)
        if length is not None:
            raise ArtifactError(f"{path / name} has {key} {length!r}, and a number of tokens is needed. Correct it.")
    return None


def write_sentence_encoder(path: Path, hidden_size: int, max_length: int, pooling: str, normalize: bool) -> None:
    """Make a checkpoint's directory a sentence encoder's folder."""
    types = ["Transformer", "Pooling", "Normalize"] if normalize else ["Transformer", "Pooling"]
    folders = [f"{number}_{kind}" if number else "" for number, kind in enumerate(types)]
    modules = [
        {"idx": number, "name": str(number), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, folder) in enumerate(zip(types, folders, strict=True))
    ]
    flags = {flag: mode == pooling for flag, mode in _POOLING_FLAGS.items()}
    _write(path / MODULES_FILE, modules)
    _write(path / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **flags})
    if normalize:
        _write(path / "2_Normalize" / "config.json", {})
    _write(path / LENGTH_FILE, {"max_seq_length": max_length, "do_lower_case": False})
    _write(path / OPTIONS_FILE, {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def cross_encoder_config(activation: str) -> dict[str, Any]:
    """What config.json holds so that the directory is a cross-encoder's."""
    name = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[activation]
    module = "linear" if name == "Identity" else "activation"
    return {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{module}.{name}"}}


def _sentence_encoder(path: Path) -> dict[str, Any] | None:
    """`{"pooling", "normalize"}` of a sentence encoder's folder; None where the folder is none."""
    if not (path / MODULES_FILE).is_file() or _options(path / OPTIONS_FILE).get("model_type") == "CrossEncoder":
        return None
    kinds, folders = _modules(path / MODULES_FILE)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ArtifactError(
            f"{path / MODULES_FILE} has the modules {', '.join(kinds)}. bertfast runs Transformer, Pooling and, if "
            f"there is one, Normalize. {_REMEDY}"
        )
    if folders[0]:
        raise ArtifactError(
            f"{path / MODULES_FILE} keeps the encoder in {folders[0]}, and bertfast reads it from the folder "
            "itself. Load and save the model with sentence-transformers 2 or newer."
        )
    return {"pooling": _pooling(path / folders[1] / "config.json"), "normalize": len(kinds) == 3}


def _modules(file: Path) -> tuple[list[str], list[str]]:
    """The classes that a modules.json names, without their packages, and the folder of each."""
    try:
        entries = [(str(module["type"]), str(module["path"])) for module in _read(file)]
    except KeyError as error:
        raise ArtifactError(f"{file} is damaged: a module has no {error}. Copy the folder again.") from None
    except TypeError:
        raise ArtifactError(f"{file} is damaged: it is no list of modules. Copy the folder again.") from None
    return [kind.rpartition(".")[2] for kind, _ in entries], [folder for _, folder in entries]


def _activation(path: Path, config: Mapping[str, Any]) -> str | None:
    """How a cross-encoder's folder makes a score of the logit; None where the folder is none."""
    if _options(path / OPTIONS_FILE).get("model_type") == "CrossEncoder":
        named = _options(path / OPTIONS_FILE).get("activation_fn")
    elif "sentence_transformers" in config:
        named = config["sentence_transformers"].get("activation_fn")
    elif "sbert_ce_default_activation_function" in config:
        named = config["sbert_ce_default_activation_function"]
    else:
        return None
    name = str(named or "Sigmoid").rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ArtifactError(f"{path} makes its score of the logit by {named}; bertfast has {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _pooling(file: Path) -> str:
    """The one pooling that a 1_Pooling/config.json names: one flag a mode, and a name or a list since version 6."""
    config = _object(file)
    flagged = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    named = config.get("pooling_mode", flagged)
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ArtifactError(
            f"{file} pools by {' and '.join(modes)}, and bertfast by one of {', '.join(_POOLINGS)}. {_REMEDY}"
        )
    return str(modes[0])


def _refuse_prompt(path: Path) -> None:
    options = _options(path / OPTIONS_FILE)
    name = options.get("default_prompt_name")
    prompt = (options.get("prompts") or {}).get(name)
    if prompt:
        raise ArtifactError(
            f"{path / OPTIONS_FILE} puts the prompt '{name}' ({prompt!r}) before every text, and bertfast does not. "
            "Write it before your texts, and set default_prompt_name to null."
        )


def _refuse_lowercasing(path: Path) -> None:
    if _options(path / LENGTH_FILE).get("do_lower_case"):
        raise ArtifactError(
            f"{path / LENGTH_FILE} makes every text lower case (do_lower_case true) before a tokenizer that keeps "
            "capitals, and bertfast does not. Lower your texts, and set do_lower_case to false."
        )


def _options(file: Path) -> dict[str, Any]:
    """The settings of a file; none where there is no such file."""
    return _object(file) if file.is_file() else {}


def _object(file: Path) -> dict[str, Any]:
    values = _read(file)
    if not isinstance(values, dict):
        raise ArtifactError(f"{file} is damaged: it holds no object. Copy the folder again.")
    return values


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing. Copy the folder again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} is damaged: {error}. Copy the folder again.") from None


def _write(file: Path, values: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
