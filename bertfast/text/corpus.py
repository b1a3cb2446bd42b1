"""A corpus: tokens, sentence offsets and document offsets as flat files, read through memory maps.

tokens-00000.bin, ...  uint16 or uint32, the token ids of all sentences, cut into shards between sentences
sentences.bin          int64 [num_sentences + 1], where each sentence starts among all tokens
documents.bin          int64 [num_documents + 1], where each document starts among all sentences
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bertfast import artifact
from bertfast.errors import ArtifactError, BertfastError, DataError
from bertfast.text import chunks, shards, workplace
from bertfast.text import tokenizer as tokenization
from bertfast.text.batch import Int64
from bertfast.text.build import Job, Part, Workforce, in_this_process, workforce_of
from bertfast.text.documents import TextFormat, in_pieces, no_text
from bertfast.text.duplicates import duplicate_share
from bertfast.text.sentences import Newlines
from bertfast.text.shards import Progress, ShardWriter
from bertfast.text.tokenizer import Tokenizer
from bertfast.text.word_cache import token_dtype
from bertfast.text.workplace import NewVocabulary

SHARD_TOKENS = 1 << 27
MUCH_REPEATED = 0.1
_COUNTED_AT_ONCE = 1 << 22
_NOTE_EVERY_S = 2.0
OnProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class Corpus:
    """An opened corpus.

    Attributes:
        path: the artefact.
        sha256: its identity, for the manifests of what is made from it.
        tokenizer: the tokenizer whose ids it holds.
        shards: token arrays, in order.
        shard_starts: where each shard starts among all tokens.
        sentence_offsets: int64 [num_sentences + 1].
        document_offsets: int64 [num_documents + 1].
    """

    path: Path
    sha256: str
    tokenizer: Tokenizer
    shards: Sequence[npt.NDArray[np.unsignedinteger]]
    shard_starts: Sequence[int]
    sentence_offsets: Int64
    document_offsets: Int64

    def __reduce__(self) -> tuple[Callable[[Path], Corpus], tuple[Path]]:
        """Another process opens the files itself."""
        return open_corpus, (self.path,)

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    @property
    def num_sentences(self) -> int:
        return len(self.sentence_offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.sentence_offsets[-1])

    def tokens(self, first_sentence: int, last_sentence: int) -> Int64:
        """int64 token ids of the sentences `first_sentence` up to, not including, `last_sentence`."""
        start, end = self.sentence_offsets.item(first_sentence), self.sentence_offsets.item(last_sentence)
        out = np.empty(end - start, np.int64)
        self.copy_tokens(start, out)
        return out

    def copy_tokens(self, start: int, out: Int64) -> None:
        """Fill `out` with the token ids from place `start` among all tokens on."""
        done = 0
        while done < len(out):
            shard = bisect_right(self.shard_starts, start + done) - 1
            offset = start + done - self.shard_starts[shard]
            part = self.shards[shard][offset : offset + len(out) - done]
            if not len(part):
                raise ArtifactError(f"{self.path} has no token {start + done:,}: it is damaged. Build it again.")
            out[done : done + len(part)] = part
            done += len(part)

    def token_counts(self) -> Int64:
        """int64 [vocab_size]: how often each token occurs."""
        size = self.tokenizer.vocab_size
        pieces = (
            shard[start : start + _COUNTED_AT_ONCE]
            for shard in self.shards
            for start in range(0, len(shard), _COUNTED_AT_ONCE)
        )
        return sum((np.bincount(piece, minlength=size) for piece in pieces), np.zeros(size, np.int64))


def build_corpus(
    documents: Iterable[str],
    out: Path,
    tokenizer: Tokenizer,
    *,
    newlines: Newlines = "auto",
    overwrite: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: OnProgress | None = None,
) -> None:
    """Segment, tokenise and write texts as a corpus, in this process; memory does not grow with the text.

    The same documents in files make the same bytes by `build_corpus_of_files`.

    Args:
        documents: texts, read once as a stream.
        newlines: see `sentences.split_document`.
        shard_tokens: tokens after which a new token file is begun.
        on_progress: called with the numbers of documents and of characters done since the last call.
    Raises:
        DataError: fewer than two documents, of which next-sentence prediction could take none.
        ArtifactError: `out` is in the way.
    """
    job = Job(tokenizer.backend.to_str(), newlines=newlines)
    pieces = ((0, text) for text in in_pieces(documents))
    with artifact.create(out, "corpus", overwrite=overwrite) as draft:
        parts = in_this_process(chunks.chunks_of(pieces), job)
        with ShardWriter(draft.path, token_dtype(tokenizer).itemsize, shard_tokens, Progress()) as writer:
            _append_all(writer, parts, on_progress)
        _finish(draft, writer.progress, draft.path, tokenizer)
        (draft.path / shards.HASHES).unlink()
    _warn_of(draft.settings)


def build_corpus_of_files(
    inputs: Sequence[Path],
    out: Path,
    tokenizer: Tokenizer | NewVocabulary,
    *,
    text_format: TextFormat | None = None,
    newlines: Newlines = "auto",
    workforce: Workforce | None = None,
    overwrite: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: OnProgress | None = None,
) -> None:
    """Build a corpus from files by many workers; what it becomes does not depend on their number or their kind.

    A build that was cut off lies in `OUT.build`. Started again with the same settings and with the inputs that it has
    read, it goes on from there, with any number of workers; those that it has not read yet may have changed. Otherwise
    it is refused, for hours of work may lie there, unless `overwrite` is asked for.

    Args:
        inputs: files and directories, see `documents.read_documents`.
        tokenizer: one that is there, or what to train on the inputs.
        workforce: who works on the chunks; by default a process for each core.
        newlines, shard_tokens, on_progress: see `build_corpus`; a file's bytes are counted for characters.
    Raises:
        DataError: an input cannot be read, or holds fewer than two documents.
        ConfigError: `out` lies in an input.
        ArtifactError: `out` is in the way, or another build is, be it unfinished or under way.
        WorkerError: a worker was killed.
    """
    text_format = text_format or TextFormat()
    workforce = workforce or workforce_of("local", None)
    artifact.refuse_existing(out, "corpus", overwrite)
    files = workplace.files_to_read(inputs, out, text_format)
    identity = workplace.identity_of(text_format, tokenizer) | {
        "newlines": newlines,
        "shard_tokens": shard_tokens,
    }
    with workplace.working_place(out) as place:
        progress = workplace.begin(place, identity, files, overwrite=overwrite)
        if isinstance(tokenizer, NewVocabulary):
            tokenizer = workplace.train(tokenizer, files, text_format, place)
        if on_progress:
            on_progress(progress.documents, 0)
        rest = chunks.chunks_of(itertools.islice(chunks.pieces_of(files, text_format), progress.pieces, None))
        parts = workforce(rest, Job(tokenizer.backend.to_str(), text_format, newlines))
        with ShardWriter(place, token_dtype(tokenizer).itemsize, shard_tokens, progress) as writer:
            _append_all(writer, parts, on_progress, files)
        if writer.progress.documents < 2:
            shards.remove_progress(place)  # other settings are needed, so there is nothing to go on from
        with artifact.create(out, "corpus", overwrite=overwrite) as draft:
            _finish(draft, writer.progress, place, tokenizer)
    _warn_of(draft.settings)


def open_corpus(path: Path) -> Corpus:
    """Open a corpus; sizes are checked, hashes are not (a corpus may hold many gigabytes).

    Raises:
        ArtifactError: it is not a corpus, or not whole.
    """
    manifest = artifact.open_manifest(path, "corpus", verify_hashes=False)
    try:
        dtype = np.dtype(manifest.settings["token_dtype"])
        starts = manifest.settings["shard_starts"]
    except KeyError as error:
        raise ArtifactError(f"{path}: the manifest lacks {error}. Build the corpus again.") from None
    corpus = Corpus(
        path=path,
        sha256=manifest.sha256,
        tokenizer=tokenization.load(path / "tokenizer.json"),
        shards=[_mapped(shards.shard_path(path, i), dtype) for i in range(len(starts))],
        shard_starts=starts,
        sentence_offsets=_mapped(path / shards.SENTENCES, np.dtype(np.int64)),
        document_offsets=_mapped(path / shards.DOCUMENTS, np.dtype(np.int64)),
    )
    sizes = itertools.accumulate(map(len, corpus.shards), initial=0)
    if [*sizes] != [*starts, corpus.num_tokens] or corpus.document_offsets[-1] != corpus.num_sentences:
        raise ArtifactError(
            f"{path}: its offsets do not end where its tokens do. Copy the corpus again or build it anew."
        )
    return corpus


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A memory map as a plain array: np.memmap itself takes microseconds for each slice."""
    return np.asarray(np.memmap(path, dtype, mode="r"))


def verify_corpus(path: Path, *, at_most_bytes: int | None = None) -> artifact.Manifest:
    """Check the hash of every file, which finds what sizes do not show.

    Args:
        at_most_bytes: leave a larger corpus unread: where the check must not take long.
    Raises:
        ArtifactError: a file was changed after the corpus was built.
    """
    manifest = artifact.open_manifest(path, "corpus", verify_hashes=False)
    if at_most_bytes is None or sum(record.bytes for record in manifest.files.values()) <= at_most_bytes:
        manifest = artifact.open_manifest(path, "corpus")
    return manifest


def _append_all(
    writer: ShardWriter,
    parts: Generator[Part, None, None],
    on_progress: OnProgress | None,
    files: Sequence[Path] | None = None,
) -> None:
    """Write the parts down; those of files are noted from time to time, and whenever no more can be had."""
    noted_s = time.monotonic()
    try:
        with closing(parts):
            for part in parts:
                before = writer.progress
                if files:
                    _refuse_without_text(files[: part.files - 1], before, part.files_with_text)
                writer.append(part)
                if files and time.monotonic() - noted_s >= _NOTE_EVERY_S:
                    writer.note()
                    noted_s = time.monotonic()
                if on_progress:
                    on_progress(writer.progress.documents - before.documents, part.size)
        if files:
            _refuse_without_text(files, writer.progress, frozenset())
    except BertfastError:
        if files:
            writer.note()
        raise
    if files:
        writer.note()


def _refuse_without_text(files: Sequence[Path], before: Progress, with_text: Set[int]) -> None:
    """Refuse the first of these files, all of them read to the end, that held no text."""
    first = before.files if before.text_in_last_file else max(0, before.files - 1)
    for number in range(first, len(files)):
        if number not in with_text:
            raise no_text(files[number])


def _finish(draft: artifact.Draft, progress: Progress, place: Path, tokenizer: Tokenizer) -> None:
    """Complete the draft of a corpus of which `place` holds all tokens."""
    if progress.documents < 2:
        raise DataError(
            f"the inputs hold {progress.documents} document(s), and next-sentence prediction needs at least 2. "
            "Give more of them: a blank line stands between documents, or, with --documents file, each file is one."
        )
    names = [shards.shard_path(place, i).name for i in range(len(progress.shard_starts))]
    if place != draft.path:
        for name in (*names, shards.SENTENCES, shards.DOCUMENTS):
            _link(place / name, draft.path / name)
    tokenizer.save(draft.path)
    draft.settings = {
        "vocab_size": tokenizer.vocab_size,
        "token_dtype": token_dtype(tokenizer).name,
        "shard_starts": list(progress.shard_starts),
        "documents": progress.documents,
        "sentences": progress.sentences,
        "tokens": progress.tokens,
        "duplicate_sentence_share": duplicate_share(place / shards.HASHES),
    }


def _link(source: Path, target: Path) -> None:
    """Give a finished file its second name; the first one keeps it from being lost while the artefact is completed."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _warn_of(settings: dict[str, Any]) -> None:
    share = settings["duplicate_sentence_share"]
    if share > MUCH_REPEATED:
        warnings.warn(
            f"{share:.0%} of the sentences repeat an earlier one. Boilerplate makes masked language modelling look "
            "better than it is: remove repeated lines and documents.",
            stacklevel=3,
        )
    if settings["sentences"] == settings["documents"]:
        warnings.warn(
            "every document is one sentence, so next-sentence prediction has no true pair to learn from. Check that "
            "blank lines stand between documents only, or pass --documents file.",
            stacklevel=3,
        )
