"""MLM + NSP instances as pure functions of (seed, epoch, index).

An epoch walks through every document once, in stretches of whole sentences that fill a sequence. Where the
stretches begin moves from epoch to epoch. Nothing is remembered between instances, so a run that resumes, or
one that is spread over workers, needs to know one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bertfast.config import PretrainConfig
from bertfast.errors import DataError
from bertfast.text.batch import IGNORE_INDEX, Batch, Int64, TrainingBatch
from bertfast.text.corpus import Corpus
from bertfast.text.tokenizer import Tokenizer

IS_NEXT, NOT_NEXT = 0, 1
_PLAN, _ORDER, _INSTANCE, _SPLIT = range(4)


@dataclass(frozen=True)
class Instance:
    """One training sequence.

    Attributes:
        input_ids: int64 [S], masked.
        token_type_ids: int64 [S].
        masked_positions: int64 [M], ascending.
        masked_labels: int64 [M], the original ids there.
        next_sentence_label: IS_NEXT (0) or NOT_NEXT (1), as in the reference.
    """

    input_ids: Int64
    token_type_ids: Int64
    masked_positions: Int64
    masked_labels: Int64
    next_sentence_label: int


@dataclass(frozen=True)
class EpochPlan:
    """Where the instances of one epoch start and end, in the order in which they are learnt.

    Attributes:
        first, last: int64 [N], the sentences of an instance's stretch, last not included.
        document: int64 [N].
        share_next: the probability that a stretch of two or more sentences becomes IsNext. It is above 0.5 where
            stretches of one sentence, which can only be NotNext, have to be balanced.
    """

    first: Int64
    last: Int64
    document: Int64
    share_next: float

    def __len__(self) -> int:
        return len(self.first)


class InstanceSource:
    """The instances of some documents of a corpus: `source.instance(epoch, index)` is a pure function."""

    def __init__(self, corpus: Corpus, documents: Int64, config: PretrainConfig) -> None:
        if len(documents) < 2:
            raise DataError(f"{corpus.path}: {len(documents)} document(s) to learn from, and pairs need at least 2.")
        self.corpus = corpus
        self.documents = documents
        self.config = config
        self.max_predictions = max(1, round(config.max_length * config.masked_lm_prob))
        self.plan = lru_cache(maxsize=2)(self._plan)

    def __reduce__(self) -> tuple[type[InstanceSource], tuple[Corpus, Int64, PretrainConfig]]:
        return InstanceSource, (self.corpus, self.documents, self.config)

    def instance(self, epoch: int, index: int) -> Instance:
        """Make instance `index` of `epoch` (Devlin et al. 2019, 3.1 and A.2)."""
        config, corpus, plan = self.config, self.corpus, self.plan(epoch)
        rng = np.random.default_rng([config.seed, _INSTANCE, epoch, index])
        room = config.max_length - 3
        target = int(rng.integers(2, room + 1)) if rng.random() < config.short_seq_prob else room
        first, last = int(plan.first[index]), int(plan.last[index])
        middle = first + 1 if last - first < 2 else int(rng.integers(first + 1, last))
        segment_a = corpus.tokens(first, middle)
        if last - first >= 2 and rng.random() < plan.share_next:
            segment_b, label = corpus.tokens(middle, last), IS_NEXT
        else:
            segment_b, label = self._random_segment(int(plan.document[index]), target - len(segment_a), rng), NOT_NEXT
        segment_a, segment_b = truncate_pair(segment_a, segment_b, target, rng)
        return _assemble(segment_a, segment_b, label, corpus.tokenizer, self, rng)

    def at(self, place: int) -> Instance:
        """The instance at this place of the endless sequence of epochs."""
        epoch, index = divmod(place, len(self))
        return self.instance(epoch, index)

    def batch(self, positions: range | Int64) -> TrainingBatch:
        """The instances at these places of the endless sequence of epochs, padded to one static shape.

        Targets: `masked_positions` [B * P] (into the flattened batch), `masked_labels` [B * P] (IGNORE_INDEX where
        a sequence has fewer than P masked tokens), `next_sentence_labels` [B].
        """
        return self.collate([self.at(int(place)) for place in positions])

    def collate(self, instances: Sequence[Instance]) -> TrainingBatch:
        """Instances as `batch` lays them out."""
        return collate(instances, self.corpus.tokenizer.pad_id, self.config.max_length, self.max_predictions)

    def __len__(self) -> int:
        """Instances of an epoch; epochs differ by a few, and the first one's count stands for all."""
        return len(self.plan(0))

    def _random_segment(self, document: int, room: int, rng: np.random.Generator) -> Int64:
        """Sentences from a random place of another document, as many as fill `room` tokens, at least one."""
        place = int(rng.integers(len(self.documents) - 1))
        other = int(self.documents[place])
        if other >= document:
            other = int(self.documents[place + 1])
        start, end = self.corpus.document_offsets[other : other + 2]
        first = int(rng.integers(start, end))
        enough = self.corpus.sentence_offsets[first] + max(1, room)
        last = int(np.searchsorted(self.corpus.sentence_offsets[first + 1 : end + 1], enough)) + first + 1
        return self.corpus.tokens(first, min(last, int(end)))

    def _plan(self, epoch: int) -> EpochPlan:
        first, last, document = self._stretches(epoch)
        pairs = int((last - first >= 2).sum())
        share_next = min(1.0, 0.5 * len(first) / pairs) if pairs else 0.0
        size = len(first) if epoch == 0 else len(self)
        order = np.random.default_rng([self.config.seed, _ORDER, epoch]).permutation(len(first))
        order = np.resize(order, size)
        return EpochPlan(first[order], last[order], document[order], share_next)

    def _stretches(self, epoch: int) -> tuple[Int64, Int64, Int64]:
        """Cut every document into stretches of about `max_length` tokens, with a random phase for each document."""
        offsets = self.corpus.sentence_offsets
        starts, ends = self.corpus.document_offsets[self.documents], self.corpus.document_offsets[self.documents + 1]
        counts = ends - starts
        document = np.repeat(self.documents, counts)
        sentence = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        rng = np.random.default_rng([self.config.seed, _PLAN, epoch])
        room = self.config.max_length - 3
        phase = np.repeat(rng.integers(0, room, len(starts)), counts)
        stretch = (offsets[sentence] - offsets[np.repeat(starts, counts)] + phase) // room
        begins = np.ones(len(sentence), bool)
        begins[1:] = (np.diff(stretch) > 0) | (np.diff(document) > 0)
        first_index = np.flatnonzero(begins)
        last_index = np.append(first_index[1:], len(sentence)) - 1
        return sentence[first_index], sentence[last_index] + 1, document[first_index]


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


def truncate_pair(a: Int64, b: Int64, room: int, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Cut the longer side, a token at a time and from a random end, until both fit (reference, truncate_seq_pair)."""
    keep_a, keep_b = len(a), len(b)
    if keep_a + keep_b > room:
        keep_a = min(keep_a, max((room + 1) // 2, room - keep_b))
        keep_b = min(keep_b, room - keep_a)
    front_a = int(rng.binomial(len(a) - keep_a, 0.5))
    front_b = int(rng.binomial(len(b) - keep_b, 0.5))
    return a[front_a : front_a + keep_a], b[front_b : front_b + keep_b]


def mask_tokens(
    ids_S: Int64,
    special_S: npt.NDArray[np.bool_],
    *,
    probability: float,
    max_predictions: int,
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> tuple[Int64, Int64]:
    """Corrupt tokens for masked-language modelling (Devlin et al. 2019, 3.1): of the chosen ones, 80% become
    [MASK], 10% a uniformly random token, and 10% stay.

    Args:
        ids_S: int64 token ids.
        special_S: True where a token is never chosen.
        probability: share of all tokens that is chosen, special ones counted as the reference counts them.
    Returns:
        (corrupted ids [S], chosen positions [M] in ascending order).
    """
    candidates = np.flatnonzero(~special_S)
    count = min(max_predictions, max(1, round(len(ids_S) * probability)), len(candidates))
    chosen = np.sort(rng.permutation(candidates)[:count])
    draw = rng.random(count)
    inputs = ids_S.copy()
    inputs[chosen[draw < 0.8]] = mask_id
    random_positions = chosen[draw >= 0.9]
    inputs[random_positions] = rng.integers(0, vocab_size, len(random_positions))
    return inputs, chosen


def collate(instances: Sequence[Instance], pad_id: int, length: int, max_predictions: int) -> TrainingBatch:
    """Pad instances to `length` and to `max_predictions` masked positions each: every batch has the same shapes."""
    shape = (len(instances), length)
    input_ids, attention_mask, token_type_ids = np.full(shape, pad_id), np.zeros(shape, int), np.zeros(shape, int)
    positions = np.zeros((len(instances), max_predictions), np.int64)
    labels = np.full((len(instances), max_predictions), IGNORE_INDEX, np.int64)
    for row, instance in enumerate(instances):
        size, masked = len(instance.input_ids), len(instance.masked_positions)
        input_ids[row, :size] = instance.input_ids
        attention_mask[row, :size] = 1
        token_type_ids[row, :size] = instance.token_type_ids
        positions[row, :masked] = instance.masked_positions
        labels[row, :masked] = instance.masked_labels
    positions += np.arange(len(instances))[:, None] * length
    next_sentence = np.array([instance.next_sentence_label for instance in instances], np.int64)
    return TrainingBatch(
        Batch(input_ids, attention_mask, token_type_ids),
        {
            "masked_positions": positions.ravel(),
            "masked_labels": labels.ravel(),
            "next_sentence_labels": next_sentence,
        },
    )


def _assemble(
    a: Int64, b: Int64, label: int, tokenizer: Tokenizer, source: InstanceSource, rng: np.random.Generator
) -> Instance:
    ids = np.concatenate([[tokenizer.cls_id], a, [tokenizer.sep_id], b, [tokenizer.sep_id]])
    types = np.zeros(len(ids), np.int64)
    types[len(a) + 2 :] = 1
    special = np.zeros(len(ids), bool)
    special[[0, len(a) + 1, len(ids) - 1]] = True
    inputs, positions = mask_tokens(
        ids,
        special,
        probability=source.config.masked_lm_prob,
        max_predictions=source.max_predictions,
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        rng=rng,
    )
    return Instance(inputs, types, positions, ids[positions], label)
