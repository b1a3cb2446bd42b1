"""MLM + NSP instances as pure functions of (seed, epoch, index).

An epoch walks through every document once, in stretches of whole sentences, about as many as fill a sequence. With
each stretch a pair begins; it goes on past the stretch's end until it is full. Where the stretches begin moves from
epoch to epoch, and so does their number, by one or so a document. An epoch has as many instances as the first one had:
a later one leaves out the few stretches that it has more, or repeats as many as it has fewer. Nothing is remembered
between instances, so a run that resumes, or one that is spread over workers, needs to know one integer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bertfast.config import PretrainConfig
from bertfast.errors import DataError
from bertfast.text.batch import IGNORE_INDEX, Batch, Int64, TrainingBatch
from bertfast.text.corpus import Corpus
from bertfast.text.masking import mask_tokens, masking_of

IS_NEXT, NOT_NEXT = 0, 1
IN_ORDER, SWAPPED = 0, 1
LEAST_IS_NEXT = 0.4  # share of the pairs below which next-sentence prediction is hardly worth its name
TokenRange = tuple[int, int]  # tokens of the corpus, the last not included
Pair = tuple[TokenRange, TokenRange, int]  # both segments and the label
_PLAN, _ORDER, _INSTANCE, _SPLIT = range(4)
_SENTENCES_AT_ONCE = 1 << 20
_DRAWS = 16  # of a document that is long enough for a random segment, before a shorter one is taken


@dataclass(frozen=True)
class Instance:
    """One training sequence.

    Attributes:
        input_ids: int64 [S], masked.
        token_type_ids: int64 [S].
        masked_positions: int64 [M], ascending.
        masked_labels: int64 [M], the original ids there.
        next_sentence_label: IS_NEXT (0) or NOT_NEXT (1), as in the reference; of a sentence-order pair IN_ORDER (0)
            or SWAPPED (1).
    """

    input_ids: Int64
    token_type_ids: Int64
    masked_positions: Int64
    masked_labels: Int64
    next_sentence_label: int


@dataclass(frozen=True)
class EpochPlan:
    """Where the instances of one epoch start and end, and the order in which they are learnt.

    A stretch ends where the next one begins, or with its document: neither end nor document is stored, since a plan
    may hold tens of millions.

    Attributes:
        begins: int32 or int64 [stretches], ascending, the first sentence of each stretch.
        order: int32 or int64 [N], the stretch of each instance.
        share_next: the probability that a stretch becomes IsNext where its document goes on after the first of its
            sentences. It is above 0.5 to balance the others, which can only be NotNext.
    """

    begins: npt.NDArray[np.signedinteger]
    order: npt.NDArray[np.signedinteger]
    share_next: float

    def __len__(self) -> int:
        return len(self.order)

    def stretch(self, index: int, corpus: Corpus) -> tuple[int, int, int]:
        """(first sentence, sentence after the last, document) of an instance's stretch."""
        place = self.order.item(index)
        first = self.begins.item(place)
        document = int(corpus.document_offsets.searchsorted(first, "right")) - 1
        end = corpus.document_offsets.item(document + 1)
        if place + 1 < len(self.begins):
            end = min(end, self.begins.item(place + 1))
        return first, end, document


class InstanceSource:
    """The instances of some documents of a corpus: `source.instance(epoch, index)` is a pure function."""

    def __init__(self, corpus: Corpus, documents: Int64, config: PretrainConfig) -> None:
        """Take these documents of a corpus, and warn where they leave next-sentence prediction little to learn.

        Args:
            documents: int64, ascending.
        Raises:
            DataError: fewer than two documents, or nothing in them that makes a pair.
        """
        if len(documents) < 2:
            raise DataError(f"{corpus.path}: {len(documents)} document(s) to learn from, and pairs need at least 2.")
        self.corpus = corpus
        self.documents = documents
        self.config = config
        self.masking = masking_of(config, corpus.tokenizer)
        self.max_predictions = self.masking.max_predictions
        self._cls_id, self._sep_id = corpus.tokenizer.cls_id, corpus.tokenizer.sep_id
        seed_words = [config.seed >> shift & 0xFFFFFFFF for shift in range(0, max(1, config.seed.bit_length()), 32)]
        self._entropy = np.array([*seed_words, _INSTANCE, 0, 0], np.uint32)
        self.plan = lru_cache(maxsize=2)(self._plan)
        self._size = len(self.plan(0))

    def __reduce__(self) -> tuple[type[InstanceSource], tuple[Corpus, Int64, PretrainConfig]]:
        return InstanceSource, (self.corpus, self.documents, self.config)

    def instance(self, epoch: int, index: int) -> Instance:
        """Make instance `index` of `epoch` (Devlin et al. 2019, 3.1 and A.2; with `sop`, Lan et al. 2020, 3.1)."""
        rng = self._rng(epoch, index)
        room = self.config.max_length - 3
        target = int(rng.integers(2, room + 1)) if rng.random() < self.config.short_seq_prob else room
        if self.config.sentence_pairs == "sop":
            a, b, label = self._sentence_order(epoch, index, target, rng)
        else:
            a, b, label = self._next_sentence(epoch, index, target, rng)
        a, b = truncate_pair(a, b, target, rng)
        ids, types = self._assemble(a, b)
        inputs, positions = mask_tokens(ids, self.masking, rng)
        return Instance(inputs, types, positions, ids[positions], label)

    def at(self, place: int) -> Instance:
        """The instance at this place of the endless sequence of epochs."""
        epoch, index = divmod(place, len(self))
        return self.instance(epoch, index)

    def batch(self, positions: range | Int64) -> TrainingBatch:
        """The instances at these places of the endless sequence of epochs, padded to one static shape.

        Targets: `masked_positions` [B * P] (into the flattened batch), `masked_labels` [B * P] (IGNORE_INDEX where
        a sequence has fewer than P masked tokens), `next_sentence_labels` [B].
        """
        return self.collate([self.at(int(place)) for place in positions], len(positions))

    def collate(self, instances: Sequence[Instance], rows: int) -> TrainingBatch:
        """Instances as `batch` lays them out, and empty rows after them."""
        return collate(instances, rows, self.corpus.tokenizer.pad_id, self.config.max_length, self.max_predictions)

    def __len__(self) -> int:
        """Instances of an epoch: the first one's count stands for all, see the module."""
        return self._size

    def _rng(self, epoch: int, index: int) -> np.random.Generator:
        """What default_rng([seed, _INSTANCE, epoch, index]) makes, in two thirds of the time."""
        entropy = self._entropy.copy()
        entropy[-2], entropy[-1] = epoch, index
        return np.random.default_rng(entropy)

    def _next_sentence(self, epoch: int, index: int, target: int, rng: np.random.Generator) -> Pair:
        """Two segments that fill `target` tokens; the second follows the first or is from another document."""
        plan, offsets = self.plan(epoch), self.corpus.sentence_offsets
        first, last, document = plan.stretch(index, self.corpus)
        middle = first + 1 if last - first < 2 else int(rng.integers(first + 1, last))
        a = (offsets.item(first), offsets.item(middle))
        room = max(1, target - (a[1] - a[0]))
        end = self.corpus.document_offsets.item(document + 1)
        if middle < end and rng.random() < plan.share_next:
            return a, (a[1], offsets.item(self._reach(middle, end, room))), IS_NEXT
        return a, self._random_segment(document, room, offsets.item(end) - a[1] or room, rng), NOT_NEXT

    def _random_segment(self, document: int, room: int, left: int, rng: np.random.Generator) -> TokenRange:
        """Sentences of another document, as many as fill `room` tokens, at least one.

        They stand where as much text follows as after the true first segment: `left` tokens, or at least `room`.
        Were the place drawn from the whole document, the end of it would cut random segments short more often than
        true ones, and the length of a pair would tell its label.
        """
        offsets, document_offsets = self.corpus.sentence_offsets, self.corpus.document_offsets
        for _ in range(_DRAWS):
            place = int(rng.integers(len(self.documents) - 1))
            other = self.documents.item(place)
            if other >= document:
                other = self.documents.item(place + 1)
            start, end = document_offsets.item(other), document_offsets.item(other + 1)
            if offsets.item(end) - offsets.item(start) >= min(left, room):
                break
        wanted = offsets.item(end) - min(left, room)
        first = start + max(0, int(offsets[start:end].searchsorted(wanted, "right")) - 1)
        if left >= room:
            first = int(rng.integers(start, first + 1))
        elif first + 1 < end and offsets.item(first + 1) - wanted < wanted - offsets.item(first):
            first += 1
        return offsets.item(first), offsets.item(self._reach(first, end, room))

    def _reach(self, first: int, end: int, room: int) -> int:
        """The sentence after the last of those from `first` on that fill `room` tokens, `end` at the most."""
        offsets = self.corpus.sentence_offsets
        enough = offsets.item(first) + room
        return min(end, first + 1 + int(offsets[first + 1 : end + 1].searchsorted(enough)))

    def _sentence_order(self, epoch: int, index: int, target: int, rng: np.random.Generator) -> Pair:
        """Two segments that follow one another and fill `target` tokens, half of the time the later one first."""
        offsets = self.corpus.sentence_offsets
        first, _, document = self.plan(epoch).stretch(index, self.corpus)
        end = self.corpus.document_offsets.item(document + 1)
        last = min(end, max(first + 2, self._reach(first, end, target)))
        a, c = offsets.item(first), offsets.item(last)
        b = offsets.item(int(rng.integers(first + 1, last))) if last - first >= 2 else self._cut(a, c, rng)
        return ((a, b), (b, c), IN_ORDER) if rng.random() < 0.5 else ((b, c), (a, b), SWAPPED)

    def _cut(self, start: int, end: int, rng: np.random.Generator) -> int:
        """A place inside of one sentence, between two of its words: a segment that began with `##` would tell."""
        ids = np.empty(end - start - 1, np.int64)
        self.corpus.copy_tokens(start + 1, ids)
        heads = np.flatnonzero(~self.masking.inner[ids])
        return start + 1 + (heads.item(rng.integers(len(heads))) if len(heads) else int(rng.integers(len(ids))))

    def _assemble(self, a: TokenRange, b: TokenRange) -> tuple[Int64, Int64]:
        """(ids [S], token types [S]) of `[CLS] a [SEP] b [SEP]`."""
        separator = a[1] - a[0] + 1
        ids = np.empty(separator + b[1] - b[0] + 2, np.int64)
        ids[0], ids[separator], ids[-1] = self._cls_id, self._sep_id, self._sep_id
        self.corpus.copy_tokens(a[0], ids[1:separator])
        self.corpus.copy_tokens(b[0], ids[separator + 1 : -1])
        types = np.zeros(len(ids), np.int64)
        types[separator + 1 :] = 1
        return ids, types

    def _plan(self, epoch: int) -> EpochPlan:
        corpus, parts = self.corpus, []
        for first, last in self._stretches(epoch):
            if self.config.sentence_pairs == "sop":  # one token makes no pair: it joins the stretch before it
                first = first[corpus.sentence_offsets[last] - corpus.sentence_offsets[first] >= 2]
            parts.append(first.astype(_index_type(corpus.num_sentences)))
        begins = np.concatenate(parts)
        final = (corpus.document_offsets[self.documents + 1] - 1).astype(begins.dtype)
        followed = len(begins) - int((begins.searchsorted(final, "right") > begins.searchsorted(final)).sum())
        if epoch == 0:
            self._check_pairs(followed, len(begins))
        share_next = min(1.0, 0.5 * len(begins) / max(1, followed))
        order = np.arange(len(begins), dtype=_index_type(len(begins)))
        np.random.default_rng([self.config.seed, _ORDER, epoch]).shuffle(order)
        return EpochPlan(begins, order if epoch == 0 else np.resize(order, len(self)), share_next)

    def _check_pairs(self, followed: int, stretches: int) -> None:
        if not stretches:
            raise DataError(f"{self.corpus.path}: every document is one token, and a pair needs two.")
        if self.config.sentence_pairs == "nsp" and followed < LEAST_IS_NEXT * stretches:
            warnings.warn(
                f"{self.corpus.path}: at most {followed / stretches:.0%} of the pairs can be IsNext (50% are wanted): "
                f"of {stretches} stretches of text, {followed} have a sentence after them in their document. "
                "Next-sentence prediction learns little from that. Build the corpus from longer documents, or set "
                "sentence_pairs=sop.",
                stacklevel=4,
            )

    def _stretches(self, epoch: int) -> Iterator[tuple[Int64, Int64]]:
        """Cut every document into stretches of about `max_length` tokens, with a random phase for each document.

        Yields (first sentence, sentence after the last) of the stretches, in order, those of many documents at once.
        """
        offsets, room = self.corpus.sentence_offsets, self.config.max_length - 3
        starts, ends = self.corpus.document_offsets[self.documents], self.corpus.document_offsets[self.documents + 1]
        phases = np.random.default_rng([self.config.seed, _PLAN, epoch]).integers(0, room, len(starts))
        blocks = np.cumsum(ends - starts) // _SENTENCES_AT_ONCE
        cuts = np.flatnonzero(np.diff(blocks)) + 1
        for start, end, phase in zip(*(np.split(part, cuts) for part in (starts, ends, phases)), strict=True):
            counts = end - start
            begin = np.cumsum(counts) - counts
            sentence = np.arange(counts.sum()) + np.repeat(start - begin, counts)
            stretch = (offsets[sentence] + np.repeat(phase - offsets[start], counts)) // room
            begins = np.append(True, np.diff(stretch) > 0)
            begins[begin] = True
            first = np.flatnonzero(begins)
            yield sentence[first], sentence[np.append(first[1:], len(sentence)) - 1] + 1


def split_documents(corpus: Corpus, heldout_fraction: float, seed: int) -> tuple[Int64, Int64]:
    """(training documents, held-out documents), both ascending; at least two held out where any are."""
    count = round(corpus.num_documents * heldout_fraction)
    count = max(2, count) if heldout_fraction else 0
    if count > corpus.num_documents - 2:
        raise DataError(
            f"{corpus.path}: holding out {count} of {corpus.num_documents} documents leaves fewer than 2 to learn from."
            " Set heldout_fraction=0, or build the corpus from more documents."
        )
    heldout = np.random.default_rng([seed, _SPLIT]).permutation(corpus.num_documents)[:count]
    return np.setdiff1d(np.arange(corpus.num_documents), heldout), np.sort(heldout)


def truncate_pair(a: TokenRange, b: TokenRange, room: int, rng: np.random.Generator) -> tuple[TokenRange, TokenRange]:
    """Cut the longer side, a token at a time and from a random end, until both fit (reference, truncate_seq_pair)."""
    len_a, len_b = a[1] - a[0], b[1] - b[0]
    if len_a + len_b <= room:
        return a, b
    keep_a = min(len_a, max((room + 1) // 2, room - len_b))
    keep_b = min(len_b, room - keep_a)
    start_a = a[0] + int(rng.binomial(len_a - keep_a, 0.5))
    start_b = b[0] + int(rng.binomial(len_b - keep_b, 0.5))
    return (start_a, start_a + keep_a), (start_b, start_b + keep_b)


def collate(instances: Sequence[Instance], rows: int, pad_id: int, length: int, max_predictions: int) -> TrainingBatch:
    """Pad to `rows` sequences, `length` tokens and `max_predictions` masked ones: batches are of the same shapes."""
    shape = (rows, length)
    input_ids, attention_mask, token_type_ids = np.full(shape, pad_id), np.zeros(shape, int), np.zeros(shape, int)
    positions = np.zeros((rows, max_predictions), np.int64)
    labels = np.full((rows, max_predictions), IGNORE_INDEX, np.int64)
    next_sentence = np.full(rows, IGNORE_INDEX, np.int64)
    for row, instance in enumerate(instances):
        size, masked = len(instance.input_ids), len(instance.masked_positions)
        input_ids[row, :size] = instance.input_ids
        attention_mask[row, :size] = 1
        token_type_ids[row, :size] = instance.token_type_ids
        positions[row, :masked] = instance.masked_positions
        labels[row, :masked] = instance.masked_labels
        next_sentence[row] = instance.next_sentence_label
    positions += np.arange(rows)[:, None] * length
    return TrainingBatch(
        Batch(input_ids, attention_mask, token_type_ids),
        {
            "masked_positions": positions.ravel(),
            "masked_labels": labels.ravel(),
            "next_sentence_labels": next_sentence,
        },
    )


def _index_type(size: int) -> npt.DTypeLike:
    return np.int32 if size < 1 << 31 else np.int64
