from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from bertfast.config import PretrainConfig
from bertfast.errors import DataError
from bertfast.text import instances as module
from bertfast.text import tokenizer as tokenization
from bertfast.text.batch import IGNORE_INDEX
from bertfast.text.corpus import Corpus
from bertfast.text.instances import Instance, InstanceSource, split_documents, truncate_pair
from bertfast.text.tokenizer import SPECIAL_TOKENS

IS_NEXT, NOT_NEXT = 0, 1  # as in the reference and in transformers
IN_ORDER, SWAPPED = 0, 1
CONFIG = PretrainConfig(max_length=48, short_seq_prob=0.1)
SUBSETS = {
    "all": range(40),
    "every third": range(0, 40, 3),
    "the two ends": (0, 39),
    "the first ones": range(5),
    "scattered": (3, 4, 17, 38, 39),
}


def numbered_corpus(sentences: list[list[int]], inner_every: int = 0) -> Corpus:
    """Documents of sentences of these many tokens, where every token's id is its place among all tokens, plus 5.

    Args:
        inner_every: each token whose place is not a multiple of it is an inner piece of a word; 0: none is.
    """
    lengths = np.concatenate([np.array(document) for document in sentences])
    offsets = np.append(0, lengths.cumsum())
    pieces = [f"##t{i}" if inner_every and i % inner_every else f"t{i}" for i in range(offsets[-1])]
    starts = offsets[: len(offsets) // 2 : 3].tolist()
    return Corpus(
        path=Path("numbered"),
        sha256="",
        tokenizer=tokenization.from_vocab([*SPECIAL_TOKENS, *pieces], normalizers.BertNormalizer()),
        shards=np.split(np.arange(5, offsets[-1] + 5).astype(np.uint16), starts[1:]),
        shard_starts=starts,
        sentence_offsets=offsets,
        document_offsets=np.append(0, np.cumsum([len(document) for document in sentences])),
    )


@pytest.fixture(scope="module")
def numbered() -> Corpus:
    rng = np.random.default_rng(8)
    return numbered_corpus([rng.integers(1, 16, rng.integers(3, 25)).tolist() for _ in range(40)])


def places(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """Where in a numbered corpus the tokens of both segments stand."""
    a, b = segments(instance)
    return np.array(a) - 5, np.array(b) - 5


def document_of(corpus: Corpus, token_places: np.ndarray) -> int:
    """The one document in which these tokens stand, side by side."""
    assert np.all(np.diff(token_places) == 1)
    token_ends = corpus.sentence_offsets[corpus.document_offsets[1:]]
    first, last = token_ends.searchsorted(token_places[[0, -1]], side="right").tolist()
    assert first == last
    return int(first)


@pytest.fixture(scope="module")
def source(corpus: Corpus) -> InstanceSource:
    return InstanceSource(corpus, np.arange(corpus.num_documents), CONFIG)


@pytest.fixture(scope="module")
def instances(source: InstanceSource) -> list[Instance]:
    return [source.instance(epoch, index) for epoch in range(25) for index in range(len(source))]


def original(instance: Instance) -> np.ndarray:
    ids = instance.input_ids.copy()
    ids[instance.masked_positions] = instance.masked_labels
    return ids


def segments(instance: Instance) -> tuple[list[int], list[int]]:
    ids, types = original(instance), instance.token_type_ids
    return ids[types == 0][1:-1].tolist(), ids[types == 1][:-1].tolist()


def test_an_instance_is_a_pure_function_of_seed_epoch_and_index(corpus: Corpus, source: InstanceSource) -> None:
    fresh = InstanceSource(corpus, np.arange(corpus.num_documents), CONFIG)
    for epoch, index in ((3, 5), (0, 0), (3, 4)):
        one, other = source.instance(epoch, index), fresh.instance(epoch, index)
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.masked_positions, other.masked_positions)
        assert one.next_sentence_label == other.next_sentence_label
    assert not np.array_equal(source.instance(0, 1).input_ids, source.instance(1, 1).input_ids)


def test_the_form_is_cls_a_sep_b_sep(source: InstanceSource, instances: list[Instance]) -> None:
    tokenizer = source.corpus.tokenizer
    for instance in instances[:300]:
        ids, types = original(instance), instance.token_type_ids
        assert ids[0] == tokenizer.cls_id
        assert np.flatnonzero(ids == tokenizer.sep_id).tolist() == [int((types == 0).sum()) - 1, len(ids) - 1]
        assert np.array_equal(types, np.sort(types))
        assert len(ids) <= CONFIG.max_length
        assert all(segments(instance))


def test_next_and_not_next_are_balanced(instances: list[Instance]) -> None:
    share = np.mean([instance.next_sentence_label == IS_NEXT for instance in instances])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(instances))


@pytest.mark.parametrize("documents", SUBSETS.values(), ids=SUBSETS)
def test_random_sentences_are_never_from_the_same_document(numbered: Corpus, documents: range) -> None:
    """In a numbered corpus every token tells where it is from, so that this is exact."""
    source = InstanceSource(numbered, np.array(documents), PretrainConfig(max_length=64, short_seq_prob=0))
    instances = [source.instance(epoch, index) for epoch in range(4000 // len(source)) for index in range(len(source))]
    pairs = set()
    for instance in instances:
        a, b = places(instance)
        home, other = document_of(numbered, a), document_of(numbered, b)
        if instance.next_sentence_label == NOT_NEXT:
            pairs.add((home, other))
        else:
            assert home == other
            assert len(instance.input_ids) == 64 or a[-1] + 1 == b[0]
            assert np.any((numbered.sentence_offsets > a[-1]) & (numbered.sentence_offsets <= b[0]))
    assert all(home != other for home, other in pairs)
    assert {home for home, _ in pairs} == {other for _, other in pairs} == set(documents)
    share = np.mean([instance.next_sentence_label == IS_NEXT for instance in instances])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(instances))


@pytest.mark.parametrize("max_length", [48, 160])
def test_the_length_of_a_pair_does_not_tell_its_label(max_length: int) -> None:
    """No threshold on the length guesses better than chance by much, be the documents longer or shorter than it."""
    rng = np.random.default_rng(8)
    corpus = numbered_corpus([rng.integers(1, 16, rng.integers(3, 25)).tolist() for _ in range(300)])
    source = InstanceSource(corpus, np.arange(300), PretrainConfig(max_length=max_length))
    instances = [source.instance(epoch, index) for epoch in range(10000 // len(source)) for index in range(len(source))]
    lengths = np.array([len(instance.input_ids) for instance in instances])
    labels = np.array([instance.next_sentence_label for instance in instances])
    right = [np.mean((lengths >= threshold) == labels) for threshold in range(max_length + 2)]
    assert 0.46 < min(right) < max(right) < 0.54


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
def test_every_token_is_masked_over_the_epochs(masking: str) -> None:
    corpus = numbered_corpus([[9, 15, 4, 3], [1, 2, 3, 4, 5, 6], [17, 1, 1, 5, 9, 9]], inner_every=3)
    config = PretrainConfig.parse({"max_length": 32, "masking": masking}, "test")
    source = InstanceSource(corpus, np.arange(3), config)
    masked = [source.instance(epoch, index).masked_labels for epoch in range(300) for index in range(len(source))]
    assert set(np.concatenate(masked).tolist()) == set(range(5, corpus.num_tokens + 5))


def test_every_position_is_as_likely_as_another(numbered: Corpus) -> None:
    source = InstanceSource(numbered, np.arange(40), PretrainConfig(max_length=32, short_seq_prob=0))
    instances = [source.instance(epoch, index) for epoch in range(40) for index in range(len(source))]
    full = [instance for instance in instances if len(instance.input_ids) == 32]
    masked, eligible = np.zeros(32), np.zeros(32)
    for instance in full:
        masked[instance.masked_positions] += 1
        eligible += original(instance) != source.corpus.tokenizer.sep_id
    assert masked[[0, 31]].tolist() == [0, 0]
    expected = eligible[1:31] * 5 / 29  # five of 32 tokens, and 29 may be chosen
    assert len(full) > 2000
    assert np.all(np.abs(masked[1:31] - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize(("inner_every", "short"), [(0, 0.3), (4, 0.0)])
def test_sentence_order_pairs_are_neighbours_half_of_them_swapped(inner_every: int, short: float) -> None:
    rng = np.random.default_rng(9)
    corpus = numbered_corpus(
        [rng.integers(5, 30, rng.integers(1, 20)).tolist() for _ in range(30)] + [[40], [2], [1]], inner_every
    )
    config = PretrainConfig(max_length=32, sentence_pairs="sop", short_seq_prob=short)
    source = InstanceSource(corpus, np.arange(33), config)
    instances = [source.instance(epoch, index) for epoch in range(4000 // len(source)) for index in range(len(source))]
    homes = set()
    for instance in instances:
        pair = places(instance)
        before, after = pair if instance.next_sentence_label == IN_ORDER else pair[::-1]
        homes.add(document_of(corpus, before))
        assert document_of(corpus, before) == document_of(corpus, after)
        assert before[-1] < after[0]
        assert before[-1] + 1 == after[0] or short or len(instance.input_ids) == 32
        last, first = corpus.sentence_offsets.searchsorted([before[-1], after[0]], side="right")
        assert last < first or last in corpus.document_offsets  # only a document's last sentence is cut inside
        if before[-1] + 1 == after[0] and last == first and inner_every:
            assert after[0] % inner_every == 0 or last == corpus.num_sentences - 1  # the sentence of two pieces
    assert homes == set(range(32))  # one token makes no pair
    share = np.mean([instance.next_sentence_label == IN_ORDER for instance in instances])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(instances))


def test_documents_of_one_sentence_are_said_to_teach_no_next_sentence() -> None:
    corpus = numbered_corpus([[20]] * 10 + [[8, 8, 8]])
    with pytest.warns(UserWarning, match="at most 8% of the pairs can be IsNext .* longer documents, or set sentence_"):
        source = InstanceSource(corpus, np.arange(11), CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = [source.instance(epoch, index).next_sentence_label for epoch in range(20) for index in range(11)]
        order = InstanceSource(corpus, np.arange(11), CONFIG.model_copy(update={"sentence_pairs": "sop"}))
        assert {order.instance(0, index).next_sentence_label for index in range(11)} == {IN_ORDER, SWAPPED}
        InstanceSource(numbered_corpus([[9], [9], [9], [9, 9], [9, 9]]), np.arange(5), CONFIG)  # 40% is enough
    assert labels.count(NOT_NEXT) >= 180  # all but those of the last document


def test_documents_of_one_token_make_no_sentence_order_pair() -> None:
    with pytest.raises(DataError, match="every document is one token"):
        InstanceSource(numbered_corpus([[1]] * 4), np.arange(4), CONFIG.model_copy(update={"sentence_pairs": "sop"}))


@pytest.mark.parametrize("documents", SUBSETS.values(), ids=SUBSETS)
def test_an_epoch_passes_over_every_sentence_once(
    numbered: Corpus, documents: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = InstanceSource(numbered, np.array(documents), CONFIG)
    stretches = [source.plan(0).stretch(index, numbered) for index in range(len(source))]
    covered = [(place, document) for first, last, document in sorted(stretches) for place in range(first, last)]
    begins, offsets = numbered.document_offsets, numbered.sentence_offsets
    assert covered == [(place, i) for i in documents for place in range(begins[i], begins[i + 1])]
    assert max(offsets[last - 1] - offsets[first] for first, last, _ in stretches) < CONFIG.max_length - 3
    for at_once in (1, 60):  # the plan is made in blocks, and they leave no trace
        monkeypatch.setattr(module, "_SENTENCES_AT_ONCE", at_once)
        plan = InstanceSource(numbered, np.array(documents), CONFIG).plan(0)
        assert [plan.stretch(index, numbered) for index in range(len(plan))] == stretches


def test_a_later_epoch_leaves_out_or_repeats_a_few_stretches(numbered: Corpus) -> None:
    """Its stretches differ from the first one's by up to one a document; nothing else is left out or comes twice."""
    source = InstanceSource(numbered, np.arange(40), CONFIG)
    differed = set()
    for epoch in range(1, 30):
        plan = source.plan(epoch)
        assert len(plan) == len(source)
        more = len(plan.begins) - len(source)
        times = np.bincount(plan.order, minlength=len(plan.begins))
        assert times.sum() == len(source)
        assert (times == 0).sum() == max(0, more)
        assert (times - 1).clip(0).sum() == max(0, -more)
        assert abs(more) <= 40
        differed.add(int(np.sign(more)))
    assert {-1, 1} <= differed


def test_the_instances_of_a_version_are_those_of_the_last(numbered: Corpus) -> None:
    """A run that is resumed after an upgrade goes on with the same data; who changes this says so in CHANGELOG."""
    digest = hashlib.sha256()
    for seed in (0, 1 << 40):
        source = InstanceSource(numbered, np.arange(1, 39, 2), PretrainConfig(max_length=64, seed=seed))
        for epoch, index in ((epoch, index) for epoch in (0, 3) for index in range(len(source))):
            instance = source.instance(epoch, index)
            for array in (instance.input_ids, instance.token_type_ids, instance.masked_positions):
                digest.update(array.tobytes())
            digest.update(bytes([instance.next_sentence_label]))
    assert digest.hexdigest()[:16] == "2c26a8afa07940b1"


def test_a_batch_has_static_shapes_and_marks_its_empty_slots(source: InstanceSource) -> None:
    batch = source.batch(range(5))
    labels, positions = batch.targets["masked_labels"], batch.targets["masked_positions"]
    assert batch.batch.input_ids.shape == (5, 48)
    assert labels.shape == positions.shape == (5 * source.max_predictions,)
    instances = [source.instance(0, index) for index in range(5)]
    assert (labels != IGNORE_INDEX).sum() == sum(len(instance.masked_positions) for instance in instances)
    restored = batch.batch.input_ids.ravel().copy()
    restored[positions[labels != IGNORE_INDEX]] = labels[labels != IGNORE_INDEX]
    for row, instance in zip(restored.reshape(5, 48), instances, strict=True):
        assert np.array_equal(row[: len(instance.input_ids)], original(instance))
    assert batch.targets["next_sentence_labels"].tolist() == [i.next_sentence_label for i in instances]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40), st.integers(0, 100))
def test_truncation_keeps_as_much_of_both_as_the_reference_rule(a: int, b: int, room: int, seed: int) -> None:
    long_a, long_b = a, b
    while long_a + long_b > room:
        if long_a > long_b:
            long_a -= 1
        else:
            long_b -= 1
    (start_a, end_a), (start_b, end_b) = truncate_pair((7, 7 + a), (90, 90 + b), room, np.random.default_rng(seed))
    assert (end_a - start_a, end_b - start_b) == (long_a, long_b)
    assert 7 <= start_a < end_a <= 7 + a
    assert 90 <= start_b < end_b <= 90 + b


def test_held_out_documents_are_apart(corpus: Corpus) -> None:
    training, heldout = split_documents(corpus, 0.1, seed=0)
    assert len(heldout) == 6
    assert np.array_equal(np.sort(np.concatenate([training, heldout])), np.arange(corpus.num_documents))
    with pytest.raises(DataError, match="leaves fewer than 2"):
        split_documents(corpus, 0.99, seed=0)
