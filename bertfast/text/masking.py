"""Which tokens of a sequence are masked, and what they become.

Shapes: S tokens of a sequence, C of them may be chosen, W words that these form, M tokens are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bertfast.config import PretrainConfig
from bertfast.text.batch import Int64
from bertfast.text.tokenizer import Tokenizer

Unit = Literal["token", "whole-word", "span"]
_NEVER_CHOSEN = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")  # the text may spell them out; [UNK] is a word like others


@dataclass(frozen=True)
class Masking:
    """The settings of masking, and what it needs to know of the vocabulary.

    Attributes:
        unit: what is chosen at a time: a token, a word with all its pieces, or a span of words.
        probability: share of all tokens that is chosen, [CLS] and [SEP] counted as the reference counts them.
        max_predictions: the most that are chosen in one sequence.
        mask_share, random_share: how many of the chosen become [MASK] and a random token; the rest stay.
        span_shares: float64 [N], for n = 1..N the probability that a span has at most n words.
        inner: bool [vocab_size], True for a token that goes on with the word of the token before it.
        choosable: bool [vocab_size], False for the tokens that are never chosen.
    """

    unit: Unit
    probability: float
    max_predictions: int
    mask_share: float
    random_share: float
    span_shares: npt.NDArray[np.float64]
    mask_id: int
    vocab_size: int
    inner: npt.NDArray[np.bool_]
    choosable: npt.NDArray[np.bool_]


def max_predictions(config: PretrainConfig) -> int:
    """The most tokens that are chosen in one sequence; where it is not set, the share of a whole one."""
    return config.max_predictions_per_seq or max(1, round(config.max_length * config.masked_lm_prob))


def masking_of(config: PretrainConfig, tokenizer: Tokenizer) -> Masking:
    choosable = np.ones(tokenizer.vocab_size, bool)
    choosable[[tokenizer.special_ids[token] for token in _NEVER_CHOSEN]] = False
    shares = 1 / np.arange(1, config.max_span_words + 1)
    return Masking(
        unit=config.masking,
        probability=config.masked_lm_prob,
        max_predictions=max_predictions(config),
        mask_share=config.mask_token_prob,
        random_share=config.random_token_prob,
        span_shares=np.cumsum(shares / shares.sum()),
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        inner=inner_pieces(tokenizer),
        choosable=choosable,
    )


def inner_pieces(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """bool [vocab_size]: True for the tokens that go on with a word (`##ing`)."""
    prefix = tokenizer.backend.model.continuing_subword_prefix
    inner = np.zeros(tokenizer.vocab_size, bool)
    inner[[index for token, index in tokenizer.backend.get_vocab().items() if token.startswith(prefix)]] = True
    return inner


def mask_tokens(ids_S: Int64, masking: Masking, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Corrupt tokens for masked-language modelling (Devlin et al. 2019, 3.1).

    What becomes of a chosen token ([MASK], a token drawn uniformly from the whole vocabulary, or itself) is drawn for
    each token apart, in spans and whole words too, as in the code of BERT and of ALBERT (SpanBERT draws once a span).

    Args:
        ids_S: int64 token ids, [CLS] and [SEP] included.
    Returns:
        (corrupted ids [S], chosen positions [M] in ascending order).
    """
    budget = min(masking.max_predictions, max(1, round(len(ids_S) * masking.probability)))
    if masking.unit == "token":
        candidates_C = masking.choosable[ids_S].nonzero()[0]
        rng.shuffle(candidates_C)
        chosen = np.sort(candidates_C[:budget])
    else:
        chosen = _whole_words(ids_S, budget, masking, rng)
    draw = rng.random(len(chosen))
    inputs = ids_S.copy()
    inputs[chosen[draw < masking.mask_share]] = masking.mask_id
    replaced = chosen[draw >= 1 - masking.random_share]
    if len(replaced):
        inputs[replaced] = rng.integers(0, masking.vocab_size, len(replaced))
    return inputs, chosen


def _whole_words(ids_S: Int64, budget: int, masking: Masking, rng: np.random.Generator) -> Int64:
    """Ascending positions [M] of whole words; M is less than `budget` where no word fits into what is left."""
    starts, ends = words_of(ids_S, masking)
    if masking.unit == "whole-word":
        spans = choose_words(starts, ends, budget, rng)
    else:
        spans = choose_spans(starts, ends, budget, masking.span_shares, rng)
    taken = bytearray(len(ids_S))
    for start, end in spans:
        taken[start:end] = b"\1" * (end - start)
    return np.frombuffer(taken, bool).nonzero()[0]


def words_of(ids_S: Int64, masking: Masking) -> tuple[Int64, Int64]:
    """(starts [W], ends [W]) of the words that may be chosen; a special token ends a word before it and begins one."""
    choosable = masking.choosable[ids_S]
    heads = ~masking.inner[ids_S]
    heads[1:] |= ~choosable[:-1]
    starts = heads.nonzero()[0]
    ends = np.empty_like(starts)
    ends[:-1], ends[-1] = starts[1:], len(ids_S)
    words = choosable[starts]
    return starts[words], ends[words]


def choose_words(starts_W: Int64, ends_W: Int64, budget: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Words in random order while they fit; one that would exceed the budget is passed over (reference,
    create_masked_lm_predictions).

    Args:
        starts_W, ends_W: the positions where each word starts and where it has ended.
        budget: the most positions that are chosen.
    Returns:
        (start, end) of each.
    """
    order = rng.permutation(len(starts_W))
    chosen = []
    for start, end in zip(starts_W[order].tolist(), ends_W[order].tolist(), strict=True):
        if end - start <= budget:
            chosen.append((start, end))
            budget -= end - start
            if not budget:
                break
    return chosen


def choose_spans(
    starts_W: Int64, ends_W: Int64, budget: int, shares_N: npt.NDArray[np.float64], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Spans of n neighbouring words with p(n) proportional to 1/n (Lan et al. 2020, 3.1), in random places.

    As in ALBERT's create_masked_lm_predictions, a span ends with the text and loses words until the budget holds it,
    and one that touches what is already taken is passed over. Ours also ends with its segment.

    Args:
        starts_W, ends_W: the positions where each word starts and where it has ended.
        budget: the most positions that are chosen.
        shares_N: float64, the probability that a span has at most n words.
    Returns:
        (start, end) of each.
    """
    words = len(starts_W)
    segment_ends = np.append((starts_W[1:] != ends_W[:-1]).nonzero()[0] + 1, words)
    order = rng.permutation(words)
    sizes = shares_N[:-1].searchsorted(rng.random(words), side="right") + 1
    lasts = np.minimum(order + sizes, segment_ends[segment_ends.searchsorted(order, side="right")])
    starts, ends = starts_W.tolist(), ends_W.tolist()
    taken = bytearray(words)
    spans = []
    for first, last in zip(order.tolist(), lasts.tolist(), strict=True):
        while last > first and ends[last - 1] - starts[first] > budget:
            last -= 1
        if last > first and taken.find(1, first, last) < 0:
            taken[first:last] = b"\1" * (last - first)
            spans.append((starts[first], ends[last - 1]))
            budget -= ends[last - 1] - starts[first]
            if not budget:
                break
    return spans
