from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from bertfast.errors import ArtifactError, ConfigError
from bertfast.text import tokenizer as tokenization
from bertfast.text.tokenizer import SPECIAL_TOKENS, Encoded, Tokenizer

TEXTS = [
    "The river crosses the bridge.",
    "na\u00efve \u6771\u4eac \U0001f600",
    "",
    "x" * 300,
    "[MASK] of the [SEP] lantern",
]


def test_a_saved_tokenizer_is_read_alike_by_us_and_by_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for file in ("tokenizer.json", "vocab.txt"):
        ours = tokenization.load(tmp_path / file)
        for text in TEXTS:
            pair = theirs(text, "second text", truncation=True, max_length=20)
            (encoded,) = ours.encode([(text, "second text")], 20)
            assert (encoded.input_ids, encoded.token_type_ids) == (pair["input_ids"], pair["token_type_ids"])


def test_truncation_is_said(tokenizer: Tokenizer) -> None:
    short, long = tokenizer.encode([("river", None), ("river bridge " * 30, None)], 16)
    assert (short.truncated, long.truncated, len(long)) == (False, True, 16)


LONG_PAIR = """
import resource, sys
from pathlib import Path
from bertfast.text import tokenizer

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

ours, text = tokenizer.load(Path(sys.argv[1])), "river " * 8000
before = peak_mib()
(encoded,) = ours.encode([(text, text)], 64)
print(len(encoded), peak_mib() - before)
"""


def test_the_memory_of_a_pair_grows_with_its_length_and_not_with_its_square(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    done = subprocess.run([sys.executable, "-c", LONG_PAIR, tmp_path], capture_output=True, text=True, check=True)
    length, grown_mib = done.stdout.split()
    assert (int(length), float(grown_mib) < 100) == (64, True)


@given(
    words=st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(0, 60)), min_size=1, max_size=5),
    max_length=st.integers(3, 64),
)
def test_texts_are_cut_as_tokenizers_cuts_them(
    tokenizer: Tokenizer, words: list[tuple[int, int | None]], max_length: int
) -> None:
    texts = [("bridge " * a, None if b is None else "of river " * b) for a, b in words]
    theirs = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    theirs.enable_truncation(max_length, strategy="longest_first")
    expected = theirs.encode_batch([text if pair is None else (text, pair) for text, pair in texts])
    assert tokenizer.encode(texts, max_length) == [
        Encoded(item.ids, item.type_ids, bool(item.overflowing)) for item in expected
    ]


def test_a_vocabulary_that_lacks_ids_is_written_with_a_line_for_each(tmp_path: Path) -> None:
    """Such as of ConvBERT, whose vocab.txt has lines that come again: only the last place of each counts."""
    lines = [*SPECIAL_TOKENS, "the", "river", "", "the", "bridge", "", "##s"]
    ours = tokenization.from_vocab(lines, normalizers.BertNormalizer())
    ours.save(tmp_path)
    written = (tmp_path / "vocab.txt").read_text().splitlines()
    assert written == [*SPECIAL_TOKENS, "[missing5]", "river", "[missing7]", "the", "bridge", "", "##s"]
    texts = ["the rivers, the bridge [missing5]"]
    for file in ("vocab.txt", "tokenizer.json"):
        again = tokenization.load(tmp_path / file)
        assert (again.vocab_size, again.ids_of_texts(texts)) == (len(lines), ours.ids_of_texts(texts))


def test_training_is_reproducible(documents: list[str], tokenizer: Tokenizer) -> None:
    again = tokenization.train(lambda: iter(documents), 200)
    assert again.backend.get_vocab() == tokenizer.backend.get_vocab()


def test_a_cased_vocabulary_keeps_case(documents: list[str], tmp_path: Path) -> None:
    cased = tokenization.train(lambda: documents, 200, lowercase=False)
    cased.save(tmp_path)
    for loaded in (tokenization.load(tmp_path / "vocab.txt"), tokenization.load(tmp_path / "tokenizer.json")):
        assert loaded.tokens(loaded.ids_of_texts(["The"])[0]) == ["The"]


def test_what_is_no_bert_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks \[PAD\], \[CLS\]"):
        tokenization.from_vocab(["[UNK]", "[SEP]", "[MASK]", "a"], normalizers.BertNormalizer())
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(ConfigError, match=r"lacks \[MASK\]: it is not a BERT vocabulary"):
        tokenization.load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        tokenization.load(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        tokenization.load(tmp_path / "vocab.txt")


def test_the_case_of_a_bare_vocabulary_is_that_of_its_tokens(documents: list[str], tmp_path: Path) -> None:
    for lowercase in (True, False):
        tokenization.train(lambda: documents, 200, lowercase=lowercase).save(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
        bare = tokenization.load(tmp_path / "vocab.txt")
        assert (bare.tokens(bare.ids_of_texts(["The"])[0]) == ["the"]) is lowercase


@pytest.mark.parametrize("settings", [{"strip_accents": False}, {"lowercase": False}, {"handle_chinese_chars": False}])
def test_every_rule_of_normalisation_survives_being_saved(
    documents: list[str], tmp_path: Path, settings: dict[str, bool]
) -> None:
    vocabulary = tokenization.train(lambda: [*documents, "Caf\u00e9 \u6771\u4eac The"], 250, lowercase=False)
    ordered = vocabulary.tokens(range(vocabulary.vocab_size))
    ours = tokenization.from_vocab(ordered, normalizers.BertNormalizer(**settings))
    ours.save(tmp_path)
    expected = ours.ids_of_texts(["Caf\u00e9 \u6771\u4eac The"])[0]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Caf\u00e9 \u6771\u4eac The", add_special_tokens=False)["input_ids"] == expected
    (tmp_path / "tokenizer.json").unlink()
    assert tokenization.load(tmp_path).ids_of_texts(["Caf\u00e9 \u6771\u4eac The"])[0] == expected


def test_another_normaliser_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    backend = tokenization.load(tmp_path).backend
    backend.normalizer = normalizers.Sequence([normalizers.NFC()])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactError, match="normalises text by Sequence"):
        tokenization.load(tmp_path)


def test_threads_may_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    def lengths(limit: int) -> set[int]:
        return {len(tokenizer.encode([("river bridge " * 200, None)], limit)[0]) for _ in range(40)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lengths, (8, 16, 32, 64))) == [{8}, {16}, {32}, {64}]


def test_offsets_point_into_the_text_as_it_was_given(tokenizer: Tokenizer) -> None:
    text = "The  RIVE\u0301R\u0301, \U0001f600\u6771\u4eac"
    ((ids, offsets),) = tokenizer.ids_and_offsets([text])
    assert ids == tokenizer.ids_of_texts([text])[0]
    words = [(0, 3), (5, 12), (12, 13), (14, 15), (15, 16), (16, 17)]
    starts, ends = {start for start, _ in offsets}, {end for _, end in offsets}
    assert {start for start, _ in words} <= starts
    assert {end for _, end in words} <= ends
    assert all(first[1] <= second[0] for first, second in pairwise(offsets))


def test_an_accent_that_is_kept_has_its_own_place(documents: list[str]) -> None:
    cased = tokenization.train(lambda: [*documents, "e\u0301 " * 9], 200, lowercase=False)
    ((_, offsets),) = cased.ids_and_offsets(["The e\u0301"])
    assert offsets[-1][1] == 6
    assert all(first[1] <= second[0] for first, second in pairwise(offsets))


def test_words_have_the_tokens_that_transformers_gives_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    words = ["The", "bridge's", "caf\u00e9", "\u6771\u4eac", "zqz", "\U0001f600", "[SEP]", "x" * 200]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs(words, is_split_into_words=True, add_special_tokens=False)
    found: list[list[int]] = [[] for _ in words]
    for token, word in zip(expected["input_ids"], expected.word_ids(), strict=True):
        found[word].append(token)
    assert tokenizer.ids_of_words([words, [], words[:1]]) == [found, [], found[:1]]


@pytest.mark.parametrize("word", ["\u200b", "\x00\x07", "\u0301", " "])
def test_a_word_of_which_nothing_is_left_is_unknown(tokenizer: Tokenizer, word: str) -> None:
    before, nothing, behind = tokenizer.ids_of_words([["The", word, "bridge"]])[0]
    assert nothing == [tokenizer.special_ids["[UNK]"]]
    assert [before, behind] == tokenizer.ids_of_words([["The", "bridge"]])[0]
