"""Files of tensors: safetensors in and out, and the layouts of others in.

A foreign checkpoint holds its weights in one file or in shards that an index names, as safetensors, as a pickle of
PyTorch or as an archive of numpy, under Hugging Face's names or Google's. All that ends here: who reads weights gets
one dict under our names.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast import artifact
from bertfast.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
_INDEX = ".index.json"
SAFETENSORS = (WEIGHTS_FILE, WEIGHTS_FILE + _INDEX, "bert_model.safetensors")
PICKLES_AND_ARRAYS = ("pytorch_model.bin", "pytorch_model.bin" + _INDEX, "bert_model.npz")
SOURCES = SAFETENSORS + PICKLES_AND_ARRAYS
_TENSORFLOW_CHECKPOINT = "bert_model.ckpt.index"
_HEADLESS = ("embeddings.", "encoder.", "pooler.")
# The last part of a name, where TensorFlow's differs from ours.
_TENSORFLOW_NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "output_weights": "weight",
    "output_bias": "bias",
    "word_embeddings": "word_embeddings.weight",
    "position_embeddings": "position_embeddings.weight",
    "token_type_embeddings": "token_type_embeddings.weight",
}
_OPTIMIZER_SLOTS = ("adam_m", "adam_v", "global_step")


def weights_source(directory: Path) -> Path:
    """The file that a checkpoint's weights are read from: the first of SOURCES that is there, a file or an index.

    Raises:
        ArtifactError: there is none.
    """
    found = next((directory / name for name in SOURCES if (directory / name).is_file()), None)
    if found is not None:
        return found
    if (directory / _TENSORFLOW_CHECKPOINT).is_file():
        raise ArtifactError(
            f"{directory} holds a checkpoint that only TensorFlow reads. Where that is installed, write its variables "
            "out: r = tf.train.load_checkpoint('bert_model.ckpt'); "
            "np.savez('bert_model.npz', **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})"
        )
    if any(directory.glob("*.onnx")):
        raise ArtifactError(
            f"{directory} holds a graph without its checkpoint. As it is, it becomes an artefact by bertfast adopt "
            f"{directory} --out DIR; everything else, such as another precision, wants the checkpoint."
        )
    raise ArtifactError(
        f"{directory} has no weights: none of {', '.join(SOURCES)}. Save the model with `save_pretrained` of "
        "transformers, or give the file one of these names."
    )


def weight_files(source: Path) -> list[Path]:
    """The file itself, or an index and the shards that it names.

    Raises:
        ArtifactError: the index is damaged, or a shard is absent.
    """
    if not source.name.endswith(_INDEX):
        return [source]
    shards = [source.with_name(name) for name in sorted(set(_read_index(source).values()))]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise ArtifactError(
            f"{source} names {len(shards)} files, and {absent[0]} is not there ({len(absent)} missing). Copy them all."
        )
    return [source, *shards]


def sha256_of_weights(source: Path) -> str:
    """Identity of foreign weights: of their one file, or of an index with all its shards."""
    return artifact.sha256_of_all(weight_files(source))


def read_weights(source: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint under our names, in the shapes of ours; an optimiser's state is left out.

    Args:
        source: what `weights_source` found.
    Raises:
        ArtifactError: a file is damaged or holds more than tensors, a shard lacks a tensor, or the names are not a
            BERT's.
    """
    stored = _read_shards(source) if source.name.endswith(_INDEX) else read_tensors(source)
    plain = {name.removesuffix(":0"): tensor for name, tensor in stored.items()}
    weights = {
        our_name(name): tensor.T if name.endswith("/kernel") else tensor  # TensorFlow's are [in, out], ours [out, in]
        for name, tensor in plain.items()
        if not name.endswith(_OPTIMIZER_SLOTS)
    }
    if not any(name.startswith("bert.") for name in weights):
        raise ArtifactError(
            f"{source} holds {', '.join(sorted(plain)[:3]) or 'nothing'}: not the names of a BERT. They begin with "
            f"bert., {', '.join(_HEADLESS)} (Hugging Face) or bert/ (Google). Rename the tensors."
        )
    return weights


def our_name(name: str) -> str:
    """The name that Hugging Face gives to a parameter today, with the encoder's prefix.

    Args:
        name: Hugging Face's, bare or prefixed, with `gamma` and `beta` as TensorFlow has them or without, or Google's
            (google-research/bert, modeling.py and run_pretraining.py), without the `:0` of a variable.
    """
    *path, last = name.replace("/layer_", "/layer.").replace("/", ".").split(".")
    name = ".".join([*path, _TENSORFLOW_NAMES.get(last, last)])
    return f"bert.{name}" if name.startswith(_HEADLESS) else name


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file by name: safetensors, or `.bin` and `.npz` by those suffixes.

    Raises:
        ArtifactError: it is cut short, not of that format, or holds more than tensors.
    """
    return {".bin": _read_pickle, ".npz": _read_arrays}.get(file.suffix, _read_safetensors)(file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors, on the CPU and contiguous."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, file, {"format": "pt"})
    except SafetensorError as error:
        raise ArtifactError(f"{file} could not be written ({error}). Free space or choose another place.") from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ArtifactError(
            f"{file} is not a whole safetensors file ({error}). Copy it again or make it anew."
        ) from None


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """A state dict as `torch.save` writes it. A pickle can run code; nothing but tensors is let in."""
    import torch

    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition(" was not")[0] or str(error)
        raise _more_than_tensors(file, reason.splitlines()[0]) from None
    except Exception as error:  # what a damaged pickle raises is up to its bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ArtifactError(f"{file} is not a whole file of torch.save ({reason}). Copy it again.") from None
    if not isinstance(held, Mapping):
        raise _more_than_tensors(file, f"a {type(held).__name__}")
    for name, value in held.items():
        if not isinstance(name, str):
            raise _more_than_tensors(file, f"a tensor by {name!r}, which is no name")
        if not isinstance(value, torch.Tensor):
            raise _more_than_tensors(file, f"'{name}', a {type(value).__name__}")
    return dict(held)


def _more_than_tensors(file: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{file} holds {what}, and only tensors by name are read from a pickle, which could run code. Take the "
        f"model's {WEIGHTS_FILE}, or, if you trust the file, load it with transformers and `save_pretrained` it."
    )


def _read_arrays(file: Path) -> dict[str, Tensor]:
    import numpy as np
    import torch

    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except Exception as error:  # as with a pickle: of zipfile, of zlib, of numpy's header or of torch
        raise ArtifactError(f"{file} is not a whole archive of numeric arrays ({error}). Write it anew.") from None


def _read_shards(index: Path) -> dict[str, Tensor]:
    shard_of = _read_index(index)
    tensors: dict[str, Tensor] = {}
    for shard in weight_files(index)[1:]:
        held = read_tensors(shard)
        wanted = [name for name, file in shard_of.items() if file == shard.name]
        lacking = [name for name in wanted if name not in held]
        if lacking:
            raise ArtifactError(f"{shard} lacks {lacking[0]}, which {index.name} says it holds. Copy both again.")
        tensors |= {name: held[name] for name in wanted}
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    """The file of each tensor; all lie beside the index."""
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        outside = [name for name in shard_of.values() if Path(name).name != name]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{index} is damaged ({error}). Copy it again.") from None
    if outside:
        raise ArtifactError(f"{index} names '{outside[0]}', and shards lie beside their index. Correct it.")
    return dict(shard_of)
