"""`OUT.build`, where the corpus of a build that is under way lies, and what a later start takes from it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from bertfast import artifact
from bertfast.errors import ArtifactError, DataError
from bertfast.text import chunks, shards
from bertfast.text import tokenizer as tokenization
from bertfast.text.documents import TextFormat, files_of, open_binary, read_documents
from bertfast.text.shards import Progress
from bertfast.text.tokenizer import Tokenizer

_LOCK = "lock"


@dataclass(frozen=True)
class NewVocabulary:
    """A vocabulary to be trained on the inputs of a corpus."""

    size: int
    lowercase: bool = True


@contextmanager
def working_place(out: Path) -> Iterator[Path]:
    """`OUT.build`, for one build at a time; it goes when the corpus is there, or when its inputs cannot become one."""
    place = out.with_name(out.name + ".build")
    artifact.make_own_directory(place)
    with (place / _LOCK).open("w") as lock:
        _lock(lock, place)
        try:
            yield place
        except DataError:
            _remove(place)
            raise
        _remove(place)


def identity_of(
    inputs: Sequence[Path], text_format: TextFormat, tokenizer: Tokenizer | NewVocabulary
) -> dict[str, Any]:
    """What decides which documents there are, how they are cut and what becomes of them.

    Files are known by size and time of change.

    Raises:
        DataError: one is missing.
    """
    listing = []
    for path in files_of(inputs):
        open_binary(path).close()
        stat = path.stat()
        listing.append(f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}")
    return {
        "inputs": _hash("\0".join(listing)),
        **asdict(text_format),
        "vocabulary": asdict(tokenizer) if isinstance(tokenizer, NewVocabulary) else _hash(tokenizer.backend.to_str()),
        "chunk_bytes": chunks.CHUNK_BYTES,
        "bertfast": artifact.version(),
        "tokenizers": artifact.libraries()["tokenizers"],
    }


def begin(place: Path, identity: dict[str, Any], *, overwrite: bool) -> Progress:
    """Find where an earlier start of the same build stands, or begin a new one.

    Raises:
        ArtifactError: another build lies there unfinished, and `overwrite` was not asked for.
    """
    earlier = shards.read_progress(place)
    if earlier is not None:
        changed = [key for key in identity if earlier.identity.get(key) != identity[key]]
        if not changed:
            return earlier
        if not overwrite:
            raise ArtifactError(
                f"{place} holds an unfinished build of which {', '.join(changed)} differ. Start again with the same "
                "inputs and settings to go on with it, or with --overwrite to begin anew."
            )
    _empty(place)
    progress = Progress(identity=identity)
    shards.write_progress(place, progress)
    return progress


def train(wanted: NewVocabulary, inputs: Sequence[Path], text_format: TextFormat, place: Path) -> Tokenizer:
    """Train the vocabulary, or take the one that an earlier start of the same build has trained."""
    file = place / "vocabulary.json"
    if not file.exists():
        texts = partial(read_documents, inputs, boundary=text_format.boundary, text_column=text_format.text_column)
        draft = file.with_suffix(".new")
        draft.write_text(
            tokenization.train(texts, wanted.size, lowercase=wanted.lowercase).backend.to_str(), encoding="utf-8"
        )
        draft.replace(file)
    tokenizer = tokenization.load(file)
    if tokenizer.vocab_size != wanted.size:
        warnings.warn(f"the text yields {tokenizer.vocab_size} tokens, and {wanted.size} were asked for.", stacklevel=3)
    return tokenizer


def _lock(file: IO[str], place: Path) -> None:
    with suppress(ModuleNotFoundError):  # Windows has no fcntl; there, nothing hinders two builds at one place
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"another build is writing to {place}. Wait for it, or choose another --out.") from None


def _empty(place: Path) -> None:
    """Unlink what a build wrote, and do not cut it: a corpus that is whole may hold the same file as its own."""
    for path in (*place.glob("*.bin"), *place.glob("*.json"), *place.glob("*.new")):
        path.unlink()


def _remove(place: Path) -> None:
    _empty(place)  # what marks the place as ours goes last, or a kill in between would leave it to nobody
    artifact.remove_own_directory(place)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
