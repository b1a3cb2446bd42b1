from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from bertfast.errors import ConfigError, DataError
from bertfast.text import reference_tokenizer
from bertfast.text.reference import Document, ReferenceConfig, ReferenceInstance, make_instances, read_documents
from bertfast.text.reference_tokenizer import ReferenceTokenizer
from tests.conftest import Golden

SPECIAL = ("[CLS]", "[SEP]")
VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(50)), "##x", "##y"]


def random_documents(seed: int, count: int) -> list[Document]:
    """Documents of 1 to 9 sentences of 1 to 29 tokens, every third a piece of the word before it."""
    rng = random.Random(seed)

    def sentence() -> list[str]:
        return [
            rng.choice(("##x", "##y")) if n % 3 == 2 else f"w{rng.randrange(50)}" for n in range(rng.randint(1, 29))
        ]

    return [[sentence() for _ in range(rng.randint(1, 9))] for _ in range(count)]


def original(instance: ReferenceInstance) -> list[str]:
    tokens = list(instance.tokens)
    for position, label in zip(instance.masked_lm_positions, instance.masked_lm_labels, strict=True):
        tokens[position] = label
    return tokens


def segments(instance: ReferenceInstance) -> tuple[list[str], list[str]]:
    tokens, middle = original(instance), instance.token_type_ids.index(1)
    return tokens[1 : middle - 1], tokens[middle:-1]


def joined(tokens: list[str]) -> str:
    return f" {' '.join(tokens)} "


def test_the_reference_s_instances_one_for_one(golden: Golden, minilm: Path) -> None:
    tokenizer = reference_tokenizer.load(minilm / "vocab.txt")
    names = {"random_seed": "seed"}
    kept = {names.get(name, name): value for name, value in golden.settings.items()}
    config = ReferenceConfig(**{name: kept[name] for name in ReferenceConfig.model_fields})
    instances = make_instances(read_documents([golden.text], tokenizer), tokenizer.vocabulary, config)
    assert [vars(instance) for instance in instances] == [json.loads(line) for line in golden.lines]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("length", [5, 6, 12, 64, 512])
def test_every_instance_is_a_pair_from_the_text_with_some_of_it_masked(seed: int, length: int) -> None:
    documents = random_documents(seed, 12)
    texts = [joined([token for sentence in document for token in sentence]) for document in documents]
    config = ReferenceConfig(
        seed=seed,
        max_seq_length=length,
        max_predictions_per_seq=7,
        dupe_factor=2,
        short_seq_prob=0.5,
        whole_word_mask=seed % 2 == 0,
    )
    made: list[int] = []
    instances = make_instances(documents, VOCABULARY, config, made.append)
    assert sum(made) == len(instances) >= 2 * len(documents)
    assert instances == make_instances(documents, VOCABULARY, config)
    for instance in instances:
        a, b = segments(instance)
        assert original(instance) == ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
        assert instance.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert a
        assert b
        assert len(instance.tokens) <= length
        assert any(joined(a) in text for text in texts)
        assert any(joined(b) in text for text in texts)
        if not instance.is_random_next and len(instance.tokens) < length:  # nothing was cut between A and B
            assert any(joined(a + b) in text for text in texts)
        positions = instance.masked_lm_positions
        assert positions == sorted(set(positions))
        assert len(positions) <= min(7, max(1, round(0.15 * len(instance.tokens))))
        assert not set(instance.masked_lm_labels) & set(SPECIAL)


def test_masked_words_are_whole() -> None:
    config = ReferenceConfig(max_seq_length=64, whole_word_mask=True)
    labels: Counter[str] = Counter()
    for instance in make_instances(random_documents(3, 20), VOCABULARY, config):
        tokens, masked = original(instance), set(instance.masked_lm_positions)
        labels.update(instance.masked_lm_labels)
        for position in range(2, len(tokens)):
            if tokens[position].startswith("##") and tokens[position - 1] not in SPECIAL:
                assert (position in masked) == (position - 1 in masked)
    assert min(labels["##x"], labels["##y"]) > 50


def test_where_nothing_is_cut_every_pass_uses_every_sentence_once() -> None:
    documents = random_documents(5, 30)
    instances = make_instances(documents, VOCABULARY, ReferenceConfig(max_seq_length=2000, dupe_factor=3))
    used: Counter[str] = Counter()
    for instance in instances:
        a, b = segments(instance)
        used.update(a if instance.is_random_next else a + b)
    once = Counter(token for document in documents for sentence in document for token in sentence)
    assert used == Counter({token: 3 * count for token, count in once.items()})


@pytest.mark.parametrize(("probability", "masked"), [(0.0, 1), (1.0, 60)])
def test_the_share_that_is_masked_goes_from_one_token_to_all(probability: float, masked: int) -> None:
    documents = [[[f"w{n}" for n in range(30)], [f"w{n}" for n in range(30)]]]
    config = ReferenceConfig(masked_lm_prob=probability, max_predictions_per_seq=1000, short_seq_prob=0)
    with pytest.warns(UserWarning, match="one document"):
        instances = make_instances(documents, VOCABULARY, config)
    whole = [instance for instance in instances if len(instance.tokens) == 63]
    assert whole
    assert all(len(instance.masked_lm_positions) == masked for instance in whole)


def test_the_only_document_is_paired_with_itself_and_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="blank line between documents"):
        instances = make_instances([[["w1", "w2"], ["w3"]]], VOCABULARY, ReferenceConfig(dupe_factor=20))
    assert {True, False} == {instance.is_random_next for instance in instances}
    seconds = {tuple(segments(instance)[1]) for instance in instances if instance.is_random_next}
    assert seconds <= {("w1", "w2"), ("w1", "w2", "w3"), ("w3",)}
    assert len(seconds) > 1


def test_a_blank_line_ends_a_document_and_the_end_of_a_file_does_not(tmp_path: Path) -> None:
    tokenizer = ReferenceTokenizer([*VOCABULARY, "a", "b", "c", "d", "e"])
    files = [tmp_path / name for name in ("1.txt", "2.txt", "3.txt")]
    files[0].write_bytes("\n\na a\n\u0301\n\u3000\x1c\nb\r\n \u200b\nc\n".encode())
    files[1].write_bytes(b"d\0d\n\r\n\n")
    files[2].write_bytes("\ufeffe\n".encode())
    read: list[int] = []
    documents = read_documents(files, tokenizer, read.append)
    assert documents == [[["a", "a"]], [["b"], ["c"], ["[UNK]"]], [["e"]]]
    assert sum(read) == 5


def test_a_text_without_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \u0301\n\u200b\n\n")
    with pytest.raises(DataError, match=r"a.txt: no text"):
        read_documents([tmp_path / "a.txt"], ReferenceTokenizer(VOCABULARY))


@pytest.mark.parametrize(
    "setting",
    [
        {"max_seq_length": 4},
        {"max_predictions_per_seq": -1},
        {"dupe_factor": 0},
        {"masked_lm_prob": float("nan")},
        {"short_seq_prob": -0.1},
    ],
    ids=str,
)
def test_settings_on_which_the_reference_would_break_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ReferenceConfig.parse(setting, "test")
