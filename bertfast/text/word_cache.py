"""Token ids of sentences, a word at a time: each word goes through the tokenizer once and is looked up afterwards."""

from __future__ import annotations

import re
from array import array

import numpy as np
from tokenizers import pre_tokenizers

from bertfast.text.tokenizer import Tokenizer

# BERT's tokenizer takes a space and each mark of ASCII punctuation by itself, whatever stands around it, and its rules
# of normalisation never look across one. So the ids of a text are those of the stretches between them, in order.
_STRETCH = re.compile(r"[^ !-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")
_MAX_WORDS = 1 << 18
_MAX_CHARS = 32


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


class WordCache(dict[str, bytes]):
    """Words and their token ids, as the bytes of an array of `token_dtype`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._typecode = "H" if token_dtype(tokenizer).itemsize == 2 else "I"
        added = tokenizer.backend.get_added_tokens_decoder().values()
        self._whole = re.compile("|".join(re.escape(token.content) for token in added) or r"(?!)")
        self._cuts_words = isinstance(tokenizer.backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer) and not any(
            token.normalized for token in added
        )

    def ids(self, text: str) -> bytes:
        """The ids that `Tokenizer.ids_of_texts` gives this text, as bytes.

        A text in which a special token is written out, or whose tokenizer does not cut words as BERT's does, goes
        through the tokenizer whole.
        """
        if self._cuts_words and not self._whole.search(text):
            return b"".join(map(self.__getitem__, _STRETCH.findall(text)))
        return self._encode(text)

    def __missing__(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= _MAX_CHARS:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def _encode(self, text: str) -> bytes:
        return array(self._typecode, self._tokenizer.backend.encode(text, add_special_tokens=False).ids).tobytes()
