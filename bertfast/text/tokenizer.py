"""WordPiece by Hugging Face `tokenizers`: train one, load one, encode texts and pairs."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertfast.errors import ArtifactError, ConfigError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000
_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@dataclass(frozen=True)
class Encoded:
    """One text or pair as the model reads it.

    Attributes:
        input_ids: token ids, [CLS] and [SEP] included.
        token_type_ids: 0 in the first segment, 1 in the second.
        truncated: whether tokens were cut to fit the length.
        offsets: where a task points into a text, the characters [start, end) of each token in it, and (0, 0) for
            tokens that are not of that text.
        word_starts: for tasks that judge words, the places of the first token of each word that is judged here.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool = False
    offsets: list[tuple[int, int]] | None = None
    word_starts: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


class Tokenizer:
    """A BERT WordPiece tokenizer with its special ids."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise ConfigError(f"the vocabulary lacks {', '.join(missing)}: it is not a BERT vocabulary.")
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
        self.backend = backend

    @cached_property
    def special_ids(self) -> dict[str, int]:
        vocab = self.backend.get_vocab()
        return {token: vocab[token] for token in SPECIAL_TOKENS}

    @property
    def pad_id(self) -> int:
        return self.special_ids["[PAD]"]

    @property
    def cls_id(self) -> int:
        return self.special_ids["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self.special_ids["[SEP]"]

    @property
    def mask_id(self) -> int:
        return self.special_ids["[MASK]"]

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id, so that an embedding of this many rows holds every token."""
        return max(self.backend.get_vocab().values()) + 1

    @property
    def lowercased(self) -> bool:
        """Whether capitals are made small before a text is cut."""
        return bool(self.backend.normalizer.lowercase)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.backend.id_to_token(index) or "[UNK]" for index in ids]

    def ids_of_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens and without a limit, one list a text."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def ids_and_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids and the characters [start, end) of each token, without special tokens and without a limit.

        Accents that were stripped belong to the token before them, so that a text is never cut between the two.
        """
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [(item.ids, _with_accents(text, item.offsets)) for text, item in zip(texts, encodings, strict=True)]

    def ids_of_words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of each word of each sentence, without special tokens and without a limit.

        A word of nothing but what BERT removes (control characters, and accents where it strips them) is [UNK], so
        that none is without a token.
        """
        words = [list(sentence) for sentence in sentences]
        encodings = self.backend.encode_batch(words, is_pretokenized=True, add_special_tokens=False)
        return [self._by_word(item, len(sentence)) for item, sentence in zip(encodings, words, strict=True)]

    def _by_word(self, encoding: tokenizers.Encoding, count: int) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in range(count)]
        for token, word in zip(encoding.ids, cast(list[int], encoding.word_ids), strict=True):
            tokens[word].append(token)
        return [ids or [self.special_ids["[UNK]"]] for ids in tokens]

    def encode(self, texts: Sequence[tuple[str, str | None]], max_length: int) -> list[Encoded]:
        """Encode texts and pairs as `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`.

        Args:
            texts: (text, None) or (text, pair).
            max_length: tokens to keep; of a pair the longer side is cut first.
        """
        sides = iter(self.ids_of_texts([side for item in texts for side in item if side is not None]))
        return [self._within(next(sides), None if pair is None else next(sides), max_length) for _, pair in texts]

    def _within(self, first: list[int], second: list[int] | None, max_length: int) -> Encoded:
        """What `tokenizers` makes of them with longest_first: of an odd room the longer side has the last token, or
        the second of two alike. By itself it would keep what it cuts off, and each piece of one side with each of the
        other; and the length would be a state of the backend, which threads share."""
        size, other = len(first), len(second or ())
        room = max(0, max_length - (2 if second is None else 3))
        shorter = min(size, other, room // 2)
        kept = shorter if size <= other else room - shorter
        ids = [self.cls_id, *first[:kept], self.sep_id]
        types = [0] * len(ids)
        if second is not None:
            ids += [*second[: room - kept], self.sep_id]
            types += [1] * (len(ids) - len(types))
        return Encoded(ids, types, truncated=size + other > room)

    def save(self, directory: Path, max_length: int = 512) -> None:
        """Write tokenizer.json, vocab.txt and tokenizer_config.json, as Hugging Face lays them out."""
        (directory / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        tokens = {index: token for token, index in self.backend.get_vocab().items()}
        # An id is the number of its line, and vocabularies lack ids: of a line that comes twice only the last counts.
        lines = (tokens.get(index, f"[missing{index}]") for index in range(self.vocab_size))
        (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in lines), encoding="utf-8")
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        rules = self.backend.normalizer
        settings = {"tokenizer_class": "BertTokenizer", "model_max_length": max_length}
        settings |= {theirs: getattr(rules, ours) for theirs, ours in _NORMALIZER_SETTINGS.items()}
        settings |= dict(zip(names, SPECIAL_TOKENS, strict=True))
        (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _with_accents(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if text.isascii():
        return offsets
    limits = [start for start, _ in offsets[1:]] + [len(text)]
    stretched = []
    for (start, end), limit in zip(offsets, limits, strict=False):
        while end < limit and unicodedata.category(text[end]) == "Mn":
            end += 1
        stretched.append((start, end))
    return stretched


def load(path: Path) -> Tokenizer:
    """Load `tokenizer.json` or `vocab.txt`, or whichever of the two a directory holds.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    if path.is_dir():
        candidates = [path / "tokenizer.json", path / "vocab.txt"]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise ArtifactError(f"{path} holds neither tokenizer.json nor vocab.txt.")
        path = found
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist. Give a tokenizer.json, a vocab.txt or a directory with one.")
    if path.suffix == ".json":
        return _from_json(path)
    tokens = _read_vocab(path)
    return from_vocab(tokens, _normalizer_beside(path, tokens))


def from_vocab(tokens: Sequence[str], normalizer: normalizers.BertNormalizer) -> Tokenizer:
    """A tokenizer over these WordPiece tokens; a token's id is its place in the list."""
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    return Tokenizer(backend)


def train(texts: Callable[[], Iterable[str]], vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    """Train a WordPiece vocabulary; the same texts give the same vocabulary.

    Args:
        texts: opens the stream of texts; it is read twice and never held.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(texts(), normalizer)
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers inner pieces (##x) in the order in which a hash map yields the words, and breaks ties by
    # number. Handing them over as special tokens fixes their numbers; `from_vocab` below knows nothing of that.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in alphabet)],
        limit_alphabet=MAX_ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    ordered = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return from_vocab([token for token, _ in ordered], normalizer)


def _alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer) -> list[str]:
    """The commonest characters of the normalised texts, in the order of their code points."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    common = sorted(counts, key=lambda character: (-counts[character], character))[:MAX_ALPHABET]
    return sorted(character for character in common if not character.isspace())


def _from_json(path: Path) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises a bare Exception for a file that it cannot parse
        raise ArtifactError(f"{path} is not a tokenizer that this version of `tokenizers` reads: {error}") from None
    if not isinstance(backend.model, models.WordPiece):
        raise ArtifactError(f"{path} holds a {type(backend.model).__name__} model; BERT's is WordPiece.")
    if not isinstance(backend.normalizer, normalizers.BertNormalizer):
        raise ArtifactError(
            f"{path} normalises text by {type(backend.normalizer).__name__}; BERT's is BertNormalizer, and "
            "another could not be written back so that others read it alike."
        )
    return Tokenizer(backend)


def _read_vocab(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 at byte {error.start}: it is not a vocabulary.") from None
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _normalizer_beside(path: Path, tokens: Sequence[str]) -> normalizers.BertNormalizer:
    """The rules that a tokenizer_config.json beside a vocabulary names; without one, the case that its tokens have."""
    file = path.parent / "tokenizer_config.json"
    if not file.is_file():
        cased = any(token != token.lower() for token in tokens if token not in SPECIAL_TOKENS)
        return normalizers.BertNormalizer(lowercase=not cased)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} is damaged: {error}. Copy it again.") from None
    if not isinstance(settings, dict):
        raise ArtifactError(f"{file} is damaged: it holds no object. Copy it again.")
    named = {ours: settings[theirs] for theirs, ours in _NORMALIZER_SETTINGS.items() if theirs in settings}
    return normalizers.BertNormalizer(**named)
