"""The tokenisation of Google's reference code, character for character (google-research/bert, tokenization.py).

Hugging Face's BertNormalizer and BertPreTokenizer, which everything else here uses, come close and are not the same:
they drop private-use characters, do not part the first 256 characters of CJK extension E, lower-case one character at
a time, which makes another letter of the Greek final sigma, and carry Unicode tables that differ from Python's. Some
138,000 characters are read differently. That hardly matters to a model, but a single token too many moves every random
draw after it, so instances that are to equal the reference's need this module. Matching a word's pieces against the
vocabulary is left to `tokenizers`; there the two agree. Both the reference and this follow the Unicode tables of the
Python that runs them.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from tokenizers import models

from bertfast.errors import ConfigError, DataError
from bertfast.text.files import DAMAGED, open_binary

MAX_WORD_CHARS = 200
NEEDED_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS_REMEMBERED = 1 << 18
_WHITESPACE = "\t\n\r"
_CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class ReferenceTokenizer:
    """The reference's FullTokenizer: text to pieces, over the tokens of a vocabulary in their order.

    Raises:
        ConfigError: the vocabulary lacks one of `NEEDED_TOKENS`.
    """

    def __init__(self, vocabulary: Iterable[str], *, lowercase: bool = True) -> None:
        self.vocabulary = list(dict.fromkeys(vocabulary))
        self.lowercase = lowercase
        missing = [token for token in NEEDED_TOKENS if token not in self.vocabulary]
        if missing:
            raise ConfigError(f"the vocabulary lacks {', '.join(missing)}: it is not a BERT vocabulary.")
        ids = {token: index for index, token in enumerate(self.vocabulary)}
        self._model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS)
        self._pieces = lru_cache(_WORDS_REMEMBERED)(self._pieces_of)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text; special tokens that are written out in it are ordinary words."""
        return [piece for word in text.translate(_CLEANED).split() for piece in self._pieces(word)]

    def _pieces_of(self, word: str) -> tuple[str, ...]:
        if self.lowercase:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
        parts = word.translate(_SPACED_PUNCTUATION).split()
        return tuple(piece.value for part in parts for piece in self._model.tokenize(part))


def load(path: Path, *, lowercase: bool = True) -> ReferenceTokenizer:
    """Load a vocab.txt as the reference does: one token a line, without the whitespace around it.

    Raises:
        DataError: there is no such file.
        ConfigError: the vocabulary lacks one of `NEEDED_TOKENS`.
    """
    try:
        return ReferenceTokenizer((line.strip() for line in read_lines(path)), lowercase=lowercase)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a file as the reference's reader (TensorFlow's GFile) sees them, their ends included.

    A line ends at `\n` alone, and `\r` is dropped wherever it stands. Bytes that are not UTF-8 are left out, with
    one warning a file.

    Raises:
        DataError: the file is missing, empty, a directory, or a damaged .gz.
    """
    wrong = 0
    with open_binary(path) as stream:
        try:
            for raw in stream:
                data = raw.replace(b"\r", b"")
                line = data.decode("utf-8", "ignore")
                wrong += len(line.encode()) < len(data)
                if line:
                    yield line
        except DAMAGED as error:
            raise DataError(f"{path} is truncated or damaged: {error}") from None
    if wrong:
        warnings.warn(f"{path}: bytes that are not UTF-8 were left out of {wrong:,} lines.", stacklevel=2)


class _CharacterTable(dict[int, str]):
    """A table for `str.translate` that learns the replacement of a character when it first meets it."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        super().__init__()
        self.replacement = replacement

    def __missing__(self, code: int) -> str:
        self[code] = replaced = self.replacement(chr(code))
        return replaced


def _cleaned(char: str) -> str:
    """Control and format characters vanish, whitespace becomes a blank, and a CJK character a word of its own."""
    category = unicodedata.category(char)
    if char in _WHITESPACE or category == "Zs":
        return " "
    if char == "\ufffd" or category in ("Cc", "Cf"):
        return ""
    return f" {char} " if any(first <= ord(char) <= last for first, last in _CJK) else char


def _spaced_punctuation(char: str) -> str:
    """Punctuation becomes a word of its own: Unicode's, and every ASCII character that is no letter or digit."""
    ascii_symbol = "!" <= char <= "~" and not char.isalnum()
    return f" {char} " if ascii_symbol or unicodedata.category(char).startswith("P") else char


_CLEANED = _CharacterTable(_cleaned)
_SPACED_PUNCTUATION = _CharacterTable(_spaced_punctuation)
