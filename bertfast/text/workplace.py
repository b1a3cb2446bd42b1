"""`OUT.build`, where the corpus of a build that is under way lies, and what a later start takes from it."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bertfast import artifact
from bertfast.errors import ArtifactError, ConfigError, DataError
from bertfast.text import chunks, shards
from bertfast.text import tokenizer as tokenization
from bertfast.text.documents import TextFormat, read_documents
from bertfast.text.files import files_of, format_of, open_binary
from bertfast.text.shards import Progress
from bertfast.text.tokenizer import Tokenizer

_INPUTS, _VOCABULARY = "inputs.json", "vocabulary.json"


@dataclass(frozen=True)
class NewVocabulary:
    """A vocabulary to be trained on the inputs of a corpus."""

    size: int
    lowercase: bool = True


@contextmanager
def working_place(out: Path) -> Iterator[Path]:
    """`OUT.build`, for one build at a time; it goes when the corpus is there, or when there is nothing to keep."""
    place = out.with_name(out.name + ".build")
    artifact.make_own_directory(place)
    with artifact.hold(place, "building"):
        try:
            yield place
        except DataError as error:
            if not _is_worth_keeping(place):
                _remove(place)
                raise
            raise DataError(
                f"{error} What was built of the inputs before it is kept in {place}: mend or remove the file, and the "
                "same command goes on from there; or begin anew with --overwrite."
            ) from error
        _remove(place)


def files_to_read(inputs: Sequence[Path], out: Path, text_format: TextFormat) -> list[Path]:
    """The files of the inputs, listed once for all that is done with them.

    Raises:
        DataError: one cannot be read.
        ConfigError: `out` would be among them, or the format says something that is true of none.
    """
    for path in inputs:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"--out {out} lies in the input {path}, which would grow. Choose an --out beside it.")
    files = list(files_of(inputs))
    for path in files:
        open_binary(path).close()
    if text_format.text_column and not any(format_of(path) in ("jsonl", "parquet") for path in files):
        raise ConfigError("--text-column is given, and no input is JSON lines or Parquet. Leave it out.")
    return files


def identity_of(text_format: TextFormat, tokenizer: Tokenizer | NewVocabulary) -> dict[str, Any]:
    """What decides, beside the files, which documents there are, how they are cut and what becomes of them."""
    return {
        **asdict(text_format),
        "vocabulary": asdict(tokenizer) if isinstance(tokenizer, NewVocabulary) else _hash(tokenizer.backend.to_str()),
        "chunk_bytes": chunks.CHUNK_BYTES,
        "bertfast": artifact.version(),
        "tokenizers": artifact.libraries()["tokenizers"],
    }


def begin(place: Path, identity: dict[str, Any], files: Sequence[Path], *, overwrite: bool) -> Progress:
    """Find where an earlier start of the same build stands, or begin a new one.

    The files that have been read must be as they were; those that come after them need not.

    Raises:
        ArtifactError: another build lies there unfinished, or a damaged one, and `overwrite` was not asked for.
    """
    listing = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    progress = None
    try:
        progress = _earlier(place, identity, listing)
    except ArtifactError:
        if not overwrite:
            raise
    if progress is None:
        _empty(place)
        progress = Progress(identity=identity)
    draft = place / f"{_INPUTS}.new"
    draft.write_text(json.dumps(listing), encoding="utf-8")
    draft.replace(place / _INPUTS)
    shards.write_progress(place, progress)
    return progress


def _earlier(place: Path, identity: dict[str, Any], listing: list[list[object]]) -> Progress | None:
    progress = shards.read_progress(place)
    if progress is None:
        return None
    changed = [key for key in identity if progress.identity.get(key) != identity[key]]
    try:
        before = json.loads((place / _INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ArtifactError(
            f"{place / _INPUTS} cannot be read: this unfinished build was damaged. Start with --overwrite or remove "
            f"{place} to begin anew."
        ) from None
    read = None if (place / _VOCABULARY).exists() else progress.files  # a vocabulary is that of all files
    pairs = itertools.zip_longest(before[:read], listing[:read])
    different = next(((one or other)[0] for one, other in pairs if one != other), None)
    if changed or different:
        names = ", ".join([*changed, *([f"inputs ({different})"] if different else [])])
        raise ArtifactError(
            f"{place} holds an unfinished build of which {names} differ. Start again with the settings and the inputs "
            "that it has read so far to go on with it, or with --overwrite to begin anew."
        )
    return progress


def train(wanted: NewVocabulary, files: Sequence[Path], text_format: TextFormat, place: Path) -> Tokenizer:
    """Train the vocabulary, or take the one that an earlier start of the same build has trained."""
    file = place / _VOCABULARY
    if not file.exists():
        texts = partial(read_documents, files, text_format)
        draft = file.with_suffix(".new")
        draft.write_text(
            tokenization.train(texts, wanted.size, lowercase=wanted.lowercase).backend.to_str(), encoding="utf-8"
        )
        draft.replace(file)
    tokenizer = tokenization.load(file)
    if tokenizer.vocab_size != wanted.size:
        warnings.warn(f"the text yields {tokenizer.vocab_size} tokens, and {wanted.size} were asked for.", stacklevel=3)
    return tokenizer


def _is_worth_keeping(place: Path) -> bool:
    progress = shards.read_progress(place)
    return progress is not None and ((place / _VOCABULARY).exists() or progress.documents > 0)


def _empty(place: Path) -> None:
    """Unlink what a build wrote, the note of what is whole first of all, so that it never stands over missing files.

    Nothing is cut: a corpus that is whole may hold the same file as its own.
    """
    shards.remove_progress(place)
    for path in (*place.glob("*.bin"), *place.glob("*.json"), *place.glob("*.new")):
        path.unlink()


def _remove(place: Path) -> None:
    _empty(place)
    artifact.remove_own_directory(place)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
