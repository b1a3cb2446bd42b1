"""Raw text cut into words as files of tagged words hold them, with character offsets."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, pre_tokenizers

Offsets = tuple[int, int]

# In Oniguruma's syntax; where one word ends, the first of the alternatives that fits makes the next.
_CLITIC = r"['\u2019](?i:[sdm]|re|ve|ll)(?![\p{L}\p{N}])"
_WITHIN = r"[\p{L}\p{N}\p{M}\p{Cf}_&&[^\p{Han}]]"
_JOINS = rf"(?!{_CLITIC})[-'\u2019.&@](?=[\p{{L}}\p{{N}}&&[^\p{{Han}}]])|(?<=\p{{N}})[,:/](?=\p{{N}})"
_WORD = "|".join(
    [
        r"(?:https?://|www\.)\S*[\p{L}\p{N}/]",
        _CLITIC,
        r"(?:\p{L}\.){2,}(?![\p{L}\p{N}])",
        rf"[@#]?[\p{{L}}\p{{N}}_&&[^\p{{Han}}]](?:{_WITHIN}|{_JOINS})*",
        r"(?![\s\p{C}])\X",
    ]
)
_SPLIT = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)


def split_words(text: str) -> list[Offsets]:
    """(start, end) of each word of `text`, in characters.

    A word is, by the first of these that fits: a web address; what English writes onto a noun or a verb with an
    apostrophe ('s, 're, 've, 'll, 'd, 'm); an abbreviation of single letters with dots (U.S.); letters and digits
    with what joins them (- ' . & @ between any, and , : / between digits; @ and # in front); and otherwise one visible
    character with all that combines with it, such as a punctuation mark, an emoji or a Chinese character. White space
    separates, and invisible characters outside a word belong to none.
    """
    return [offsets for _, offsets in _SPLIT.pre_tokenize_str(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[Offsets]]:
    """The words with one space between them, and (start, end) of each in that text."""
    offsets, start = [], 0
    for word in words:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), offsets
