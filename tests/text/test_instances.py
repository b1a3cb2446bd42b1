from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.config import PretrainConfig
from bertfast.errors import DataError
from bertfast.text.batch import IGNORE_INDEX
from bertfast.text.corpus import Corpus
from bertfast.text.instances import Instance, InstanceSource, mask_tokens, split_documents, truncate_pair

IS_NEXT, NOT_NEXT = 0, 1  # as in the reference and in transformers
CONFIG = PretrainConfig(max_length=48, short_seq_prob=0.1)


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


def text_of(ids: object) -> str:
    return " " + " ".join(map(str, ids)) + " "  # type: ignore[call-overload]


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


def test_is_next_follows_and_not_next_comes_from_another_document(corpus: Corpus, instances: list[Instance]) -> None:
    documents = [
        text_of(corpus.tokens(corpus.document_offsets[i], corpus.document_offsets[i + 1]))
        for i in range(corpus.num_documents)
    ]
    for instance in instances[:600]:
        a, b = segments(instance)
        if instance.next_sentence_label == IS_NEXT:
            assert any(text_of(a) in text and text_of(b) in text[text.index(text_of(a)) :] for text in documents)
    for instance in instances[:600]:
        if instance.next_sentence_label == NOT_NEXT:
            a, b = segments(instance)
            homes = [{i for i, text in enumerate(documents) if text_of(part) in text} for part in (a, b)]
            if len(homes[0]) == len(homes[1]) == 1:  # where the text tells which document it is from
                assert homes[0] != homes[1]


def test_next_and_not_next_are_balanced(instances: list[Instance]) -> None:
    share = np.mean([instance.next_sentence_label == IS_NEXT for instance in instances])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(instances))


def test_fifteen_percent_are_masked_and_no_special_token_ever(
    source: InstanceSource, instances: list[Instance]
) -> None:
    tokenizer = source.corpus.tokenizer
    special = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    for instance in instances:
        assert not special & set(instance.masked_labels.tolist())
        expected = min(source.max_predictions, max(1, round(len(instance.input_ids) * 0.15)))
        assert len(instance.masked_positions) == expected


def test_eighty_ten_ten(source: InstanceSource, instances: list[Instance]) -> None:
    now = np.concatenate([instance.input_ids[instance.masked_positions] for instance in instances])
    before = np.concatenate([instance.masked_labels for instance in instances])
    masked, kept = (now == source.corpus.tokenizer.mask_id).mean(), (now == before).mean()
    slack = 4 * 0.5 / np.sqrt(len(now))
    assert abs(masked - 0.8) < slack
    assert abs(kept - 0.1) < slack
    assert abs(1 - masked - kept - 0.1) < slack


def test_an_epoch_passes_over_every_sentence_once(source: InstanceSource) -> None:
    plan = source.plan(0)
    order = np.argsort(plan.first)
    covered = np.concatenate([np.arange(a, b) for a, b in zip(plan.first[order], plan.last[order], strict=True)])
    assert np.array_equal(covered, np.arange(source.corpus.num_sentences))


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


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40))
def test_truncation_keeps_as_much_of_both_as_the_reference_rule(a: int, b: int, room: int) -> None:
    long_a, long_b = a, b
    while long_a + long_b > room:
        if long_a > long_b:
            long_a -= 1
        else:
            long_b -= 1
    cut = truncate_pair(np.arange(a), np.arange(b), room, np.random.default_rng(0))
    assert (len(cut[0]), len(cut[1])) == (long_a, long_b)
    assert all(np.array_equal(np.diff(part), np.ones(len(part) - 1)) for part in cut if len(part))


@given(st.integers(0, 1000))
def test_masking_leaves_the_rest_alone(seed: int) -> None:
    ids = np.arange(10, 50)
    special = np.zeros(40, bool)
    special[[0, 20, 39]] = True
    rng = np.random.default_rng(seed)
    inputs, chosen = mask_tokens(ids, special, probability=0.15, max_predictions=20, mask_id=4, vocab_size=100, rng=rng)
    untouched = np.setdiff1d(np.arange(40), chosen)
    assert np.array_equal(inputs[untouched], ids[untouched])
    assert len(chosen) == 6
    assert not special[chosen].any()


def test_held_out_documents_are_apart(corpus: Corpus) -> None:
    training, heldout = split_documents(corpus, 0.1, seed=0)
    assert len(heldout) == 6
    assert np.array_equal(np.sort(np.concatenate([training, heldout])), np.arange(corpus.num_documents))
    with pytest.raises(DataError, match="leaves fewer than 2"):
        split_documents(corpus, 0.99, seed=0)
