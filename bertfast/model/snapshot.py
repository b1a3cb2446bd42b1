"""Models of the Hugging Face hub as local directories; the library `huggingface_hub` fetches them and keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bertfast.errors import ArtifactError
from bertfast.model.tensors import PICKLES_AND_ARRAYS, SAFETENSORS
from bertfast.text.hub import PREFIX, REPOSITORY

_REFERENCE = re.compile(rf"{PREFIX}({REPOSITORY})(?:@(.+))?")
_CACHED = "models--"  # as `huggingface_hub` names its folders: models--OWNER--NAME/snapshots/COMMIT
# All that a checkpoint is read from beside its weights; no code is among it.
_DESCRIPTION = (
    "config.json",
    "bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def local_model(path: Path) -> Path:
    """The directory to read: `path` itself or, for `hub:OWNER/NAME[@REVISION]`, its copy in the cache of
    `huggingface_hub`.

    Pickles are fetched only where there are no safetensors.

    Raises:
        ArtifactError: the reference is malformed, or the hub cannot be reached or lacks what it names.
    """
    reference = path.as_posix()
    if not reference.startswith(PREFIX):
        return path
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise _malformed(reference)
    name, revision = parts.groups()
    directory = _fetch(reference, name, revision, [*_DESCRIPTION, *SAFETENSORS, "model-?????-of-?????.safetensors"])
    if any((directory / file).is_file() for file in SAFETENSORS):
        return directory
    return _fetch(reference, name, revision, [*PICKLES_AND_ARRAYS, "pytorch_model-?????-of-?????.bin"])


def model_name(path: Path) -> str:
    """What a model is called: OWNER/NAME where its directory is a snapshot in the cache, else the directory's name."""
    home = path.parent.parent
    if path.parent.name == "snapshots" and home.name.startswith(_CACHED):
        return home.name.removeprefix(_CACHED).replace("--", "/")
    return path.name


def _malformed(reference: str) -> ArtifactError:
    return ArtifactError(f"{reference} is not of the form hub:OWNER/NAME[@REVISION]. Correct it.")


def _fetch(reference: str, name: str, revision: str | None, files: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError:
        raise _malformed(reference) from None
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ArtifactError(
            f"{reference}: the hub cannot be reached ({str(error).splitlines()[0]}), and the model is not in its "
            "cache. Give a local path."
        ) from None
    except HfHubHTTPError as error:
        raise ArtifactError(
            f"{reference}: the hub refuses it ({' '.join(str(error).split())}). Check the name and the revision; "
            "'hf auth login' opens what is private."
        ) from None
