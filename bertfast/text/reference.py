"""The training instances of Google's reference code, one for one (google-research/bert, create_pretraining_data.py).

For comparison: pretraining itself makes its instances as it goes (`instances.py`). One `random.Random` drives
everything, so that each draw must come in the reference's order, even where another order would read better. Like
the reference, this holds the text and all instances in memory.
"""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from bertfast.config import Config
from bertfast.errors import DataError
from bertfast.text.reference_tokenizer import ReferenceTokenizer, read_lines

Sentence = list[str]
Document = list[Sentence]
_DRAWS_OF_A_DOCUMENT = 10


class ReferenceConfig(Config):
    """The reference's settings, with its names and defaults. Below 5 tokens no pair fits beside [CLS] and two [SEP]."""

    seed: int = 12345
    max_seq_length: int = Field(128, ge=5)
    max_predictions_per_seq: int = Field(20, ge=0)
    masked_lm_prob: float = Field(0.15, ge=0, le=1)
    dupe_factor: int = Field(10, ge=1, description="passes over the documents, each with other draws")
    short_seq_prob: float = Field(0.1, ge=0, le=1)
    whole_word_mask: bool = False


@dataclass(frozen=True)
class ReferenceInstance:
    """One training sequence, [CLS] A [SEP] B [SEP], in tokens.

    Attributes:
        tokens: masked.
        token_type_ids: 0 up to the first [SEP], 1 after it.
        is_random_next: whether B is from a random place rather than what follows A.
        masked_lm_positions: ascending.
        masked_lm_labels: the original tokens there.
    """

    tokens: list[str]
    token_type_ids: list[int]
    is_random_next: bool
    masked_lm_positions: list[int]
    masked_lm_labels: list[str]


def read_documents(
    inputs: Iterable[Path], tokenizer: ReferenceTokenizer, on_sentences: Callable[[int], object] | None = None
) -> list[Document]:
    """Read and tokenise files with one sentence a line and a blank line between documents.

    The end of a file ends no document: without a blank line, the next file goes on with it.

    Args:
        on_sentences: called with the number of sentences done since the last call.
    Raises:
        DataError: a file cannot be read, or there is no token in all of them.
    """
    paths = list(inputs)
    documents: list[Document] = [[]]
    for path in paths:
        for line in read_lines(path):
            if not line.strip():
                documents.append([])
            elif sentence := tokenizer.tokenize(line):
                documents[-1].append(sentence)
                if on_sentences:
                    on_sentences(1)
    documents = [document for document in documents if document]
    if not documents:
        raise DataError(f"{', '.join(map(str, paths))}: no text. Give one sentence a line, in UTF-8.")
    return documents


def make_instances(
    documents: Sequence[Document],
    vocabulary: Sequence[str],
    config: ReferenceConfig,
    on_instances: Callable[[int], object] | None = None,
) -> list[ReferenceInstance]:
    """Make the instances that the reference makes of these documents, in its order.

    A single document is taken, with a warning: its random segments then come from itself.

    Args:
        documents: at least one, none empty, none with an empty sentence.
        vocabulary: the tokens that a masked one may be replaced by.
        on_instances: called with the number of instances made since the last call.
    """
    if len(documents) == 1:
        warnings.warn(
            "the text is one document, and random segments come from that same document, as in the reference. "
            "Put a blank line between documents.",
            stacklevel=2,
        )
    rng = random.Random(config.seed)
    shuffled = list(documents)
    rng.shuffle(shuffled)
    instances: list[ReferenceInstance] = []
    for _ in range(config.dupe_factor):
        for index in range(len(shuffled)):
            made = list(_instances_of(shuffled, index, vocabulary, config, rng))
            instances += made
            if on_instances:
                on_instances(len(made))
    rng.shuffle(instances)
    return instances


def _instances_of(
    documents: Sequence[Document], index: int, vocabulary: Sequence[str], config: ReferenceConfig, rng: random.Random
) -> Iterator[ReferenceInstance]:
    """One pass over a document, in stretches of sentences that reach the target length."""
    document = documents[index]
    room = config.max_seq_length - 3
    target = rng.randint(2, room) if rng.random() < config.short_seq_prob else room
    first = 0
    while first < len(document):
        last = _end_of_stretch(document, first, target)
        middle = first + (rng.randint(1, last - first - 1) if last - first >= 2 else 1)
        segment_a = _joined(document[first:middle])
        is_random_next = last - first == 1 or rng.random() < 0.5
        if is_random_next:
            segment_b = _random_segment(documents, index, target - len(segment_a), rng)
            first = middle  # what B has not used is the next stretch's
        else:
            segment_b = _joined(document[middle:last])
            first = last
        segment_a, segment_b = _truncated(segment_a, segment_b, room, rng)
        tokens = ["[CLS]", *segment_a, "[SEP]", *segment_b, "[SEP]"]
        types = [0] * (len(segment_a) + 2) + [1] * (len(segment_b) + 1)
        masked, positions = _masked(tokens, vocabulary, config, rng)
        labels = [tokens[position] for position in positions]
        yield ReferenceInstance(masked, types, is_random_next, positions, labels)


def _end_of_stretch(document: Document, first: int, target: int) -> int:
    """Where a stretch from sentence `first` ends: after `target` tokens, or with the document."""
    length = 0
    for place in range(first, len(document)):
        length += len(document[place])
        if length >= target:
            return place + 1
    return len(document)


def _joined(sentences: Iterable[Sentence]) -> list[str]:
    return [token for sentence in sentences for token in sentence]


def _random_segment(documents: Sequence[Document], index: int, length: int, rng: random.Random) -> list[str]:
    """Sentences from a random place of another document; after ten draws it may be the same one after all."""
    other = index
    for _ in range(_DRAWS_OF_A_DOCUMENT):
        other = rng.randint(0, len(documents) - 1)
        if other != index:
            break
    document = documents[other]
    start = rng.randint(0, len(document) - 1)
    return _joined(document[start : _end_of_stretch(document, start, length)])


def _truncated(
    segment_a: Sequence[str], segment_b: Sequence[str], room: int, rng: random.Random
) -> tuple[list[str], list[str]]:
    """Cut the longer segment, B of two alike, at a random end until both fit."""
    a, b = deque(segment_a), deque(segment_b)
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            longer.popleft()
        else:
            longer.pop()
    return list(a), list(b)


def _masked(
    tokens: Sequence[str], vocabulary: Sequence[str], config: ReferenceConfig, rng: random.Random
) -> tuple[list[str], list[int]]:
    """The tokens with some masked, and where. A word that would bring more than may be masked is passed over."""
    words = _maskable(tokens, config.whole_word_mask)
    rng.shuffle(words)
    most = min(config.max_predictions_per_seq, max(1, round(len(tokens) * config.masked_lm_prob)))
    masked = list(tokens)
    positions: list[int] = []
    for word in words:
        if len(positions) + len(word) <= most:
            positions += word
            for position in word:
                masked[position] = _replacement(tokens[position], vocabulary, rng)
    return masked, sorted(positions)


def _maskable(tokens: Sequence[str], whole_words: bool) -> list[list[int]]:
    """The positions that are masked together: single tokens, or a word's pieces.

    Where truncation has left B with the tail of a word, the reference counts it to the last word of A.
    """
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in ("[CLS]", "[SEP]"):
            continue
        if whole_words and words and token.startswith("##"):
            words[-1].append(position)
        else:
            words.append([position])
    return words


def _replacement(token: str, vocabulary: Sequence[str], rng: random.Random) -> str:
    if rng.random() < 0.8:
        return "[MASK]"
    if rng.random() < 0.5:
        return token
    return vocabulary[rng.randint(0, len(vocabulary) - 1)]
