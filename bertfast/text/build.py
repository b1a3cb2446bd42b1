"""From chunks to tokens: what a worker does, and the pool of processes that does it on this machine."""

from __future__ import annotations

import importlib.util
import os
from array import array
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache, partial

import tokenizers

from bertfast import artifact
from bertfast.errors import ConfigError, DataError, WorkerError
from bertfast.text.chunks import Chunk
from bertfast.text.documents import Continuation, TextFormat
from bertfast.text.duplicates import sentence_hash
from bertfast.text.sentences import Newlines, split_document
from bertfast.text.tokenizer import Tokenizer
from bertfast.text.word_cache import WordCache, token_dtype
from bertfast.workers import in_order, worker_pool


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know beside the chunk.

    Attributes:
        tokenizer: its JSON.
        newlines: see `sentences.split_document`.
    """

    tokenizer: str
    text_format: TextFormat = field(default_factory=TextFormat)
    newlines: Newlines = "auto"


@dataclass(frozen=True)
class Part:
    """What a chunk became. Sentences without a token are left out.

    Attributes:
        tokens: the ids of all sentences, as the bytes of an array of `token_dtype`.
        sentence_lengths: tokens of each sentence.
        document_lengths: sentences of each document, which may be none.
        goes_on: whether the first of them is the rest of the last one of the part before.
        sentence_hashes: eight bytes a sentence, see `duplicates.sentence_hash`.
        files_with_text: numbers of the files of which there was text in the chunk.
        files, pieces, size: how many files are begun, and the pieces and the size of the chunk.
    """

    tokens: bytes
    sentence_lengths: array[int]
    document_lengths: array[int]
    goes_on: bool
    sentence_hashes: bytes
    files_with_text: frozenset[int]
    files: int
    pieces: int
    size: int


Workforce = Callable[[Iterable[Chunk], Job], Generator[Part, None, None]]


def workforce_of(name: str, workers: int | None) -> Workforce:
    """`local` or `ray`; without a number of workers, all the cores that there are.

    Raises:
        ConfigError: Ray is not installed.
    """
    if name == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--engine ray needs Ray: pip install 'bertfast[ray]', here and on the cluster's nodes.")
        from bertfast.text.ray_build import in_ray

        return partial(in_ray, workers=workers)
    return partial(in_processes, workers=workers or artifact.hardware()["cores"])


def tokenize_chunk(job: Job, chunk: Chunk) -> Part:
    """Read, segment and tokenise one chunk: a pure function of the two and of the files that the chunk names.

    Raises:
        DataError: a file is not what it should be, or a text holds half of a surrogate pair.
    """
    words, itemsize = _words(job.tokenizer)
    tokens, hashes = bytearray(), bytearray()
    sentence_lengths, document_lengths = array("i"), array("i")
    goes_on, with_text = False, set()
    for file, text in chunk.texts(job.text_format):
        with_text.add(file)
        if not isinstance(text, Continuation):
            document_lengths.append(0)
        elif not document_lengths:
            goes_on = True
            document_lengths.append(0)
        for sentence in split_document(text, job.newlines):
            encoded = _encode(sentence)
            if ids := words.ids(sentence):
                tokens += ids
                hashes += sentence_hash(encoded)
                sentence_lengths.append(len(ids) // itemsize)
                document_lengths[-1] += 1
    return Part(
        tokens=bytes(tokens),
        sentence_lengths=sentence_lengths,
        document_lengths=document_lengths,
        goes_on=goes_on,
        sentence_hashes=bytes(hashes),
        files_with_text=frozenset(with_text),
        files=chunk.pieces[-1][0] + 1,
        pieces=len(chunk.pieces),
        size=chunk.size,
    )


def in_this_process(chunks: Iterable[Chunk], job: Job) -> Generator[Part, None, None]:
    """The workforce of callers that bring their own texts, and of those that must not start processes."""
    try:
        for chunk in chunks:
            yield tokenize_chunk(job, chunk)
    finally:
        _words.cache_clear()


def in_processes(chunks: Iterable[Chunk], job: Job, *, workers: int) -> Generator[Part, None, None]:
    """Work on chunks in `workers` processes; the parts come in the order of the chunks.

    At most two chunks a worker are under way, so memory does not grow with the text.

    Raises:
        WorkerError: a worker was killed.
    """
    pool = worker_pool(workers, _one_core)
    try:
        yield from in_order(pool, partial(tokenize_chunk, job), chunks, ahead=2 * workers - 1)
    except BrokenProcessPool:
        raise WorkerError(
            f"one of {workers} worker processes ended. Where memory ran out, start again with fewer --workers: the "
            'build goes on from what is done. A script that builds does so under `if __name__ == "__main__":`, for '
            "the processes that it starts read it as well."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_core() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@lru_cache(maxsize=1)
def _words(tokenizer: str) -> tuple[WordCache, int]:
    """The cache of this process, so that one chunk's words are known to the next, and the bytes of an id."""
    loaded = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer))
    return WordCache(loaded), token_dtype(loaded).itemsize


def _encode(sentence: str) -> bytes:
    try:
        return sentence.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text {sentence[:40]!r} holds half of a surrogate pair at character {error.start}. Remove it, or "
            "decode the text anew."
        ) from None
