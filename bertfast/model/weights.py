"""Checkpoints in and out: a directory that is an artefact of ours and an ordinary Hugging Face one at the same time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast import artifact
from bertfast.config import ModelConfig
from bertfast.errors import ArtifactError
from bertfast.model.sentence_transformers import foreign_task, trained_length
from bertfast.model.tensors import WEIGHTS_FILE, read_weights, save_tensors, sha256_of_weights, weights_source
from bertfast.text import tokenizer as tokenization
from bertfast.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG_FILE = "config.json"
GOOGLE_CONFIG_FILE = "bert_config.json"
CLASSIFIER = "BertForSequenceClassification"
ENCODER = "BertModel"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory says of itself; its weights are read by `load_weights`.

    Attributes:
        task: the task that our manifest names, or a folder of sentence-transformers; None where neither does.
        architecture: the class that config.json names, if it names one.
        labels: class names in the order of the logits; empty for a bare encoder.
        max_length: tokens of a sequence that it was trained with, or has positions for where nothing says.
        problem: what the logits of a sequence classifier mean (`problem_type`); None for other architectures.
        task_settings: the task's own settings, from where its name comes.
        sha256: identity of the artefact, or of the weights of a foreign directory.
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    task: str | None
    architecture: str | None
    max_length: int
    problem: str | None
    labels: tuple[str, ...]
    task_settings: Mapping[str, Any]
    sha256: str


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint of ours or a foreign BERT directory is, Hugging Face's or Google's, without its weights.

    Raises:
        ArtifactError: it is not a checkpoint, not a BERT, not whole, or its vocabulary and weights do not fit.
    """
    manifest = artifact.open_manifest(path, "checkpoint") if (path / artifact.MANIFEST).is_file() else None
    checkpoint = describe(path, manifest)
    weights = weights_source(path)
    return replace(checkpoint, sha256=manifest.sha256 if manifest else sha256_of_weights(weights))


def describe(path: Path, manifest: artifact.Manifest | None = None) -> Checkpoint:
    """What a directory says of a model beside its weights, which may be of any form; `sha256` is left empty.

    Raises:
        ArtifactError: it describes no BERT, or the vocabulary does not fit.
    """
    file = config_file(path)
    settings = _read_config(file)
    config = model_config(settings, file)
    positions = config.max_position_embeddings
    tokenizer = tokenization.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ArtifactError(
            f"{path}: the tokenizer has ids up to {tokenizer.vocab_size - 1} and the weights hold {config.vocab_size} "
            "embeddings. Put the tokenizer there that the model was trained with."
        )
    architectures = settings.get("architectures") or [None]
    labels = manifest.labels if manifest else _foreign_labels(settings, file)
    if manifest:
        task, own, limit = manifest.task, manifest.settings.get("task", {}), manifest.settings.get("max_length")
    else:
        task, own, limit = *foreign_task(path, settings, lowercased=tokenizer.lowercased), trained_length(path)
    return Checkpoint(
        path=path,
        config=config,
        tokenizer=tokenizer,
        task=task,
        architecture=architectures[0],
        max_length=min(limit or positions, positions),
        problem=_problem(settings, labels) if architectures[0] == CLASSIFIER else None,
        labels=labels,
        task_settings=own,
        sha256="",
    )


def load_weights(model: nn.Module, path: Path, *, encoder_only: bool = False, complete: bool = False) -> list[str]:
    """Fill `model` from a checkpoint directory; returns the names of the parameters that keep their initial values.

    Args:
        encoder_only: leave the head as it is, because the checkpoint's head serves another task or other labels.
        complete: accept no parameter that keeps its initial, random values.
    Raises:
        ArtifactError: a file is cut short, a needed weight is missing, or a shape differs.
    """
    source = weights_source(path)
    stored = read_weights(source)
    wanted = model.state_dict()
    if encoder_only:
        stored = {name: tensor for name, tensor in stored.items() if name.startswith("bert.")}
    missing = [name for name in wanted if name not in stored]
    lost = [name for name in missing if name.startswith("bert.") and not name.startswith("bert.pooler.")]
    if lost:
        raise ArtifactError(
            f"{source} lacks {lost[0]} ({len(lost)} encoder weights in all). It is not the model that "
            f"{config_file(path).name} describes."
        )
    if complete and missing:
        raise ArtifactError(
            f"{source} lacks {missing[0]} ({len(missing)} weights in all), so its answers would be random. "
            "Fine-tune it."
        )
    if not encoder_only:
        _refuse_untied_decoder(source, stored)
    for name, target in wanted.items():
        if name in stored and stored[name].shape != target.shape:
            raise ArtifactError(
                f"{source}: {name} has shape {tuple(stored[name].shape)}, and {config_file(path).name} asks for "
                f"{tuple(target.shape)}. Vocabulary, configuration and weights must be of one model."
            )
    model.load_state_dict({name: stored[name] for name in wanted if name in stored}, strict=False)
    return missing


def _refuse_untied_decoder(file: Path, stored: Mapping[str, Tensor]) -> None:
    decoder = stored.get("cls.predictions.decoder.weight")
    if decoder is not None and not decoder.equal(stored["bert.embeddings.word_embeddings.weight"]):
        raise ArtifactError(f"{file} has an MLM decoder that is not tied to the word embeddings; bertfast ties them.")


def save_checkpoint(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    architecture: str,
    labels: tuple[str, ...],
    problem: str | None = None,
) -> None:
    """Write weights, configuration and tokenizer into a draft, in Hugging Face's layout."""
    if architecture == ENCODER:  # the only layout that does not name the encoder before its parameters
        weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    save_tensors(weights, directory / WEIGHTS_FILE)
    write_config(directory, config, architecture, labels, problem)
    tokenizer.save(directory, config.max_position_embeddings)


def write_config(
    directory: Path, config: ModelConfig, architecture: str, labels: tuple[str, ...], problem: str | None
) -> None:
    """Write config.json, by which transformers and optimum open a model."""
    settings: dict[str, Any] = {"model_type": "bert", "architectures": [architecture], **config.model_dump()}
    settings |= {"position_embedding_type": "absolute", "dtype": "float32", "tie_word_embeddings": True}
    if problem:
        settings["problem_type"] = problem
    if labels:
        settings["id2label"] = {str(index): label for index, label in enumerate(labels)}
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    (directory / CONFIG_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def model_config(settings: Mapping[str, Any], source: Path) -> ModelConfig:
    """The encoder's shape from a Hugging Face config.json.

    Raises:
        ArtifactError: another model type, or a variant of BERT that changes the arithmetic.
    """
    model_type = settings.get("model_type")
    if model_type != "bert":
        raise ArtifactError(f"{source} has model_type '{model_type}'. bertfast runs 'bert'.")
    if settings.get("position_embedding_type") not in (None, "absolute"):
        raise ArtifactError(
            f"{source} has position_embedding_type '{settings['position_embedding_type']}'; 'absolute' is needed."
        )
    if settings.get("is_decoder"):
        raise ArtifactError(f"{source} is a decoder (is_decoder), and bertfast runs encoders.")
    return ModelConfig.parse({key: settings[key] for key in ModelConfig.model_fields if key in settings}, str(source))


def _foreign_labels(settings: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Class names in the order of the logits; transformers writes none where there are two with their default names."""
    named = settings.get("id2label") or {}
    if not named:
        classifiers = {"BertForSequenceClassification", "BertForTokenClassification"}
        return ("LABEL_0", "LABEL_1") if classifiers & set(settings.get("architectures") or []) else ()
    try:
        return tuple(str(label) for _, label in sorted(named.items(), key=lambda item: int(item[0])))
    except (AttributeError, ValueError):
        raise ArtifactError(f"{file}: id2label is not an object from class numbers to names. Correct it.") from None


def _problem(settings: Mapping[str, Any], labels: Sequence[str]) -> str:
    """What the logits mean; where nothing says, transformers takes an only one for a number."""
    return str(settings.get("problem_type") or ("regression" if len(labels) == 1 else "single_label_classification"))


def config_file(path: Path) -> Path:
    """Where a checkpoint directory says what it is: Hugging Face's file, or Google's where only that is there."""
    google = path / GOOGLE_CONFIG_FILE
    return google if google.is_file() and not (path / CONFIG_FILE).is_file() else path / CONFIG_FILE


def _read_config(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not file.parent.exists():
            raise ArtifactError(f"{file.parent} does not exist. Give a checkpoint directory.") from None
        raise ArtifactError(f"{file.parent} has no {CONFIG_FILE}: it is not a checkpoint directory.") from None
    except NotADirectoryError:
        raise ArtifactError(f"{file.parent} is a file, and a checkpoint is a directory.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} is damaged: {error}. Copy the checkpoint again.") from None
    if not isinstance(settings, dict):
        raise ArtifactError(f"{file} does not hold an object. Copy the checkpoint again.")
    if file.name == GOOGLE_CONFIG_FILE:  # it is of one model, and so does not say of which
        return {"model_type": "bert", "architectures": ["BertForPreTraining"], **settings}
    return settings
