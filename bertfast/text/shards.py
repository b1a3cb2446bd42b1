"""The files of a corpus while they grow: parts are appended in order, and from time to time it is noted what is whole.

A build that was cut off is cut back to its last note and goes on with the next chunk: its position is one integer.
"""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from pydantic import ValidationError

from bertfast.config import Config
from bertfast.errors import ArtifactError
from bertfast.text.build import Part

SENTENCES, DOCUMENTS, HASHES = "sentences.bin", "documents.bin", "hashes.bin"
_NOTE = "progress.json"
_OFFSET_BYTES = _HASH_BYTES = 8


class Progress(Config):
    """What the files hold.

    Attributes:
        identity: what must be the same for a build to go on.
        pieces: how many pieces of the inputs went in; `documents`, `sentences` and `tokens` count what came of them.
        files: how many files these pieces are from; the last of them may have more.
        text_in_last_file: whether there was text in those of the last file.
        open: whether the document that was read last is among `documents`, so that what continues it joins it there.
        shard_starts: where each shard starts among all tokens.
    """

    identity: dict[str, Any] = {}
    pieces: int = 0
    files: int = 0
    text_in_last_file: bool = False
    open: bool = False
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    shard_starts: tuple[int, ...] = ()


def shard_path(root: Path, number: int) -> Path:
    return root / f"tokens-{number:05d}.bin"


def read_progress(root: Path) -> Progress | None:
    """What was noted last, or None where nothing was.

    Raises:
        ArtifactError: the note is damaged, or of another version of bertfast.
    """
    try:
        return Progress.model_validate_json((root / _NOTE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise ArtifactError(
            f"{root / _NOTE} cannot be read, so nobody knows what is whole in this unfinished build. Go on with the "
            f"version of bertfast that wrote it, or start with --overwrite or remove {root} to begin anew."
        ) from None


def remove_progress(root: Path) -> None:
    (root / _NOTE).unlink(missing_ok=True)


def write_progress(root: Path, progress: Progress) -> None:
    """Note what is whole; the note itself is the old one or the new one, and never half of it."""
    draft = root / f"{_NOTE}.new"
    with draft.open("w", encoding="utf-8") as file:
        file.write(progress.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(root / _NOTE)


def _sizes(root: Path, progress: Progress, itemsize: int) -> dict[Path, int]:
    bounds = (*progress.shard_starts, progress.tokens)
    shards = {
        shard_path(root, i): itemsize * (end - start) for i, (start, end) in enumerate(itertools.pairwise(bounds))
    }
    return shards | {
        root / SENTENCES: _OFFSET_BYTES * (progress.sentences + 1),
        root / DOCUMENTS: _OFFSET_BYTES * (progress.documents + 1),
        root / HASHES: _HASH_BYTES * progress.sentences,
    }


def _check(sizes: dict[Path, int], root: Path) -> None:
    """What was noted must be there: in the files that still grow perhaps with more behind it."""
    growing = list(sizes)[-4:]  # the last shard and the three that are not cut into shards
    for path, size in sizes.items():
        found = path.stat().st_size if path.is_file() else 0
        if found < size or (found > size and path not in growing):
            raise ArtifactError(
                f"{path} holds {found:,} bytes, and {size:,} were noted: it was damaged. Start with --overwrite or "
                f"remove {root} to begin anew."
            )


class ShardWriter:
    """Appends parts to the files in `root`, from where `progress` stands.

    A new shard begins with the first document at which the last one holds `shard_tokens` or more, wherever chunks end.
    """

    def __init__(self, root: Path, itemsize: int, shard_tokens: int, progress: Progress) -> None:
        self.root = root
        self.progress = progress
        self._itemsize = itemsize
        self._shard_tokens = shard_tokens
        self._stack = ExitStack()
        self._shard: IO[bytes] | None = None

    def __enter__(self) -> Self:
        sizes = _sizes(self.root, self.progress, self._itemsize)
        if self.progress.pieces:
            _check(sizes, self.root)
        with self._stack:  # closes what is open already, should the next one be damaged
            self._sentences, self._documents, self._hashes = (
                self._open(self.root / name, sizes[self.root / name]) for name in (SENTENCES, DOCUMENTS, HASHES)
            )
            self._rewrite_last_end(self.progress.sentences)  # a document may have grown after the note
            if self.progress.shard_starts:
                last = shard_path(self.root, len(self.progress.shard_starts) - 1)
                self._shard = self._open(last, sizes[last])
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, part: Part) -> None:
        """Add what the next chunk became."""
        now = self.progress
        lengths = np.array(part.document_lengths, np.int64)
        joins = part.goes_on and now.open
        places = np.cumsum(np.append(0, part.sentence_lengths), dtype=np.int64) + now.tokens
        ends = np.cumsum(lengths)
        new = ends[(lengths > 0) & ~(joins & (np.arange(len(lengths)) == 0))]
        self._sentences.write(places[1:].tobytes())
        if joins:
            self._rewrite_last_end(now.sentences + ends.item(0))
        self._documents.write((now.sentences + new).tobytes())
        self._hashes.write(part.sentence_hashes)
        self._write_tokens(part.tokens, places[np.concatenate([[0], ends[: int(joins)], new])], joins=joins)
        self.progress = self.progress.model_copy(
            update={
                "pieces": now.pieces + part.pieces,
                "files": part.files,
                "text_in_last_file": part.files - 1 in part.files_with_text
                or (part.files == now.files and now.text_in_last_file),
                "open": bool(lengths[-1] > 0 or (joins and len(lengths) == 1)) if len(lengths) else now.open,
                "documents": now.documents + len(new),
                "sentences": now.sentences + len(part.sentence_lengths),
                "tokens": now.tokens + len(part.tokens) // self._itemsize,
            }
        )

    def note(self) -> None:
        """Make durable what was appended, then write down that it is."""
        for stream in (self._sentences, self._documents, self._hashes, self._shard):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())
        write_progress(self.root, self.progress)

    def _rewrite_last_end(self, sentences: int) -> None:
        self._documents.seek(-_OFFSET_BYTES, os.SEEK_END)
        self._documents.write(np.int64(sentences).tobytes())

    def _write_tokens(self, tokens: bytes, bounds: np.ndarray[Any, np.dtype[np.int64]], *, joins: bool) -> None:
        """Write documents that lie between these places among all tokens; one that joins stays in its shard."""
        first, last = 0, len(bounds) - 1
        while first < last:
            within = joins and first == 0
            if self._shard is None or (
                not within and bounds[first] - self.progress.shard_starts[-1] >= self._shard_tokens
            ):
                self._begin_shard(int(bounds[first]))
            full = self.progress.shard_starts[-1] + self._shard_tokens
            next_shard = max(first + 1, min(last, int(np.searchsorted(bounds, full))))
            start, end = ((bounds[i] - bounds[0]) * self._itemsize for i in (first, next_shard))
            assert self._shard is not None
            self._shard.write(tokens[start:end])
            first = next_shard

    def _begin_shard(self, start: int) -> None:
        if self._shard is not None:
            self._shard.flush()
            os.fsync(self._shard.fileno())
            self._shard.close()
        starts = (*self.progress.shard_starts, start)
        self._shard = self._open(shard_path(self.root, len(starts) - 1), 0)
        self.progress = self.progress.model_copy(update={"shard_starts": starts})

    def _open(self, path: Path, size: int) -> IO[bytes]:
        """Open at the end of the first `size` bytes, which are all that is to be kept."""
        if self.progress.pieces == 0 or size == 0:
            path.write_bytes(bytes(size))  # offsets begin with a zero
        stream = self._stack.enter_context(path.open("r+b"))
        stream.truncate(size)
        stream.seek(size)
        return stream
