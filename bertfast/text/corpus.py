"""A corpus: tokens, sentence offsets and document offsets as flat files, read through memory maps.

tokens-00000.bin, ...  uint16 or uint32, the token ids of all sentences, cut into shards between sentences
sentences.bin          int64 [num_sentences + 1], where each sentence starts among all tokens
documents.bin          int64 [num_documents + 1], where each document starts among all sentences
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bertfast import artifact
from bertfast.errors import ArtifactError, DataError
from bertfast.text import sentences as segmentation
from bertfast.text import tokenizer as tokenization
from bertfast.text.batch import Int64
from bertfast.text.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 27
_DOCUMENTS_AT_ONCE = 256
_COUNTED_AT_ONCE = 1 << 22


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
    newlines: segmentation.Newlines = "auto",
    overwrite: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    on_documents: Callable[[int], object] | None = None,
) -> None:
    """Segment, tokenise and write documents as a corpus; memory does not grow with the text.

    Args:
        documents: texts, read once as a stream.
        newlines: see `sentences.split_document`.
        shard_tokens: tokens after which a new token file is begun.
        on_documents: called with the number of documents done since the last call.
    Raises:
        DataError: fewer than two documents, of which next-sentence prediction could take none.
        ArtifactError: `out` is in the way.
    """
    with artifact.create(out, "corpus", overwrite=overwrite) as draft:
        dtype = _token_dtype(tokenizer)
        tokenized = _tokenized(documents, tokenizer, newlines)
        shard_starts, counts = _write_tokens(tokenized, draft.path, dtype, shard_tokens, on_documents)
        if counts["documents"] < 2:
            raise DataError(
                f"the inputs hold {counts['documents']} document(s), and next-sentence prediction needs at least 2. "
                "Separate documents by a blank line, or pass --documents file where each file is one."
            )
        tokenizer.save(draft.path)
        draft.settings = {"token_dtype": dtype.name, "shard_starts": shard_starts, **counts}


def open_corpus(path: Path) -> Corpus:
    """Open a corpus; sizes are checked, hashes are not (a corpus may hold many gigabytes).

    Raises:
        ArtifactError: it is not a corpus, or not whole.
    """
    manifest = artifact.open_manifest(path, "corpus", verify_hashes=False)
    try:
        dtype = np.dtype(manifest.settings["token_dtype"])
        shard_starts = manifest.settings["shard_starts"]
    except KeyError as error:
        raise ArtifactError(f"{path}: the manifest lacks {error}. Build the corpus again.") from None
    return Corpus(
        path=path,
        sha256=manifest.sha256,
        tokenizer=tokenization.load(path / "tokenizer.json"),
        shards=[_mapped(_shard_path(path, i), dtype) for i in range(len(shard_starts))],
        shard_starts=shard_starts,
        sentence_offsets=_mapped(path / "sentences.bin", np.dtype(np.int64)),
        document_offsets=_mapped(path / "documents.bin", np.dtype(np.int64)),
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A memory map as a plain array: np.memmap itself takes microseconds for each slice."""
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _shard_path(root: Path, number: int) -> Path:
    return root / f"tokens-{number:05d}.bin"


def _token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _tokenized(
    documents: Iterable[str], tokenizer: Tokenizer, newlines: segmentation.Newlines
) -> Iterator[list[list[int]]]:
    """Each document as a list of sentences, each a list of token ids; none is empty. Tokenised many at a time."""
    stream = iter(documents)
    while group := list(itertools.islice(stream, _DOCUMENTS_AT_ONCE)):
        split = [list(segmentation.split_document(text, newlines)) for text in group]
        ids = iter(tokenizer.ids_of_texts([sentence for document in split for sentence in document]))
        for document in split:
            sentences = [sentence for sentence in itertools.islice(ids, len(document)) if sentence]
            if sentences:
                yield sentences


def _write_tokens(
    documents: Iterable[list[list[int]]],
    root: Path,
    dtype: np.dtype[np.unsignedinteger],
    shard_tokens: int,
    on_documents: Callable[[int], object] | None,
) -> tuple[list[int], dict[str, int]]:
    """Write tokenised documents; returns where the shards start and what there is of each."""
    num_documents = num_sentences = num_tokens = 0
    shard_starts: list[int] = []
    with ExitStack() as stack:
        sentence_file = stack.enter_context((root / "sentences.bin").open("wb"))
        document_file = stack.enter_context((root / "documents.bin").open("wb"))
        token_file = None
        sentence_file.write(np.int64(0).tobytes())
        document_file.write(np.int64(0).tobytes())
        for sentences in documents:
            if token_file is None or num_tokens - shard_starts[-1] >= shard_tokens:
                token_file = stack.enter_context(_shard_path(root, len(shard_starts)).open("wb"))
                shard_starts.append(num_tokens)
            token_file.write(np.fromiter(itertools.chain.from_iterable(sentences), dtype).tobytes())
            ends = num_tokens + np.cumsum([len(sentence) for sentence in sentences], dtype=np.int64)
            sentence_file.write(ends.tobytes())
            num_documents, num_sentences, num_tokens = num_documents + 1, num_sentences + len(sentences), int(ends[-1])
            document_file.write(np.int64(num_sentences).tobytes())
            if on_documents:
                on_documents(1)
    return shard_starts, {"documents": num_documents, "sentences": num_sentences, "tokens": num_tokens}
