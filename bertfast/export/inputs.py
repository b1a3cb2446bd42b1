"""What a graph takes, and all that depends on it: rows with padding, or one row of real tokens.

Shapes: B sequences of S tokens with padding; packed, N sequences in a row of T tokens. H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from bertfast.export.nodes import Graph
from bertfast.model.encoder import MASKED_SCORE
from bertfast.text.batch import INPUTS, PACKED_INPUTS

Shape = Sequence[int | str]


class ModelGraph(Graph, ABC):
    """A graph that knows where the sequences lie in its inputs.

    Attributes:
        inputs: shapes by name, in their order; all are int64.
        of_tokens: the first dimensions of an output that has a row for each token.
        of_sequences: those of one that has a row for each sequence.
    """

    inputs: Mapping[str, Shape]
    of_tokens: Shape
    of_sequences: Shape

    @abstractmethod
    def positions(self, table: str, prefix: str) -> str:
        """The embeddings of each token's position, [S, H] or [1, T, H]."""

    @abstractmethod
    def mask(self) -> str:
        """What is added to the scores, 0 or MASKED_SCORE: [B, 1, 1, S] or [1, 1, T, T]."""

    @abstractmethod
    def mask_for_operator(self, mask: str) -> str:
        """The mask with a row for each query: the Attention operator does not repeat one in every runtime."""

    @abstractmethod
    def mask_of_firsts(self, mask: str) -> str:
        """What is added to the scores of the first tokens alone."""

    @abstractmethod
    def firsts(self, hidden: str) -> str:
        """The states of the first tokens, [B, 1, H] or [1, N, H]."""

    @abstractmethod
    def one_each(self, firsts: str) -> str:
        """The states of the first tokens as a row for each sequence, [B, H] or [N, H]."""

    @abstractmethod
    def mean(self, hidden: str) -> str:
        """The mean of the tokens of each sequence, [B, H] or [N, H]."""


class PaddedGraph(ModelGraph):
    """Rows of one sequence and its padding."""

    inputs = dict.fromkeys(INPUTS, ("batch", "sequence"))
    of_tokens = ("batch", "sequence")
    of_sequences = ("batch",)

    def positions(self, table: str, prefix: str) -> str:
        length = self.op("Shape", ["input_ids"], f"{prefix}/sequence", start=1, end=2)
        zero = self.constant("zero", [0], np.int64)
        return self.op("Slice", [table, zero, length, zero], f"{prefix}.position_embeddings/Slice")

    def mask(self) -> str:
        real = self.op("Cast", ["attention_mask"], "mask/Cast", to=TensorProto.FLOAT)
        padding = self.op("Sub", [self.constant("one", 1.0), real], "mask/Sub")
        scores = self.op("Mul", [padding, self.constant("masked_score", MASKED_SCORE)], "mask/Mul")
        return self.op("Unsqueeze", [scores, self.constant("mask_axes", [1, 2], np.int64)], "mask/Unsqueeze")

    def mask_for_operator(self, mask: str) -> str:
        length = self.op("Shape", ["input_ids"], "mask/sequence", start=1, end=2)
        ones = self.constant("ones", [1, 1], np.int64), self.constant("one_key", [1], np.int64)
        shape = self.op("Concat", [ones[0], length, ones[1]], "mask/shape", axis=0)
        return self.op("Expand", [mask, shape], "mask/Expand")

    def mask_of_firsts(self, mask: str) -> str:
        return mask

    def firsts(self, hidden: str) -> str:
        first = self.constant("first_of_each", [0], np.int64)
        return self.op("Gather", [hidden, first], "bert.encoder/first", axis=1)

    def one_each(self, firsts: str) -> str:
        return self.op("Gather", [firsts, self.constant("first", 0, np.int64)], "bert.pooler/first", axis=1)

    def mean(self, hidden: str) -> str:
        last, tokens = self.constant("last", [-1], np.int64), self.constant("tokens", [1], np.int64)
        mask = self.op("Unsqueeze", ["mask/Cast", last], "pooling/Unsqueeze")
        real = self.op("Mul", [hidden, mask], "pooling/Mul")
        summed = self.op("ReduceSum", [real, tokens], "pooling/ReduceSum", keepdims=0)
        count = self.op("ReduceSum", [mask, tokens], "pooling/ReduceSum_mask", keepdims=0)
        count = self.op("Max", [count, self.constant("one", 1.0)], "pooling/Max_count")
        return self.op("Div", [summed, count], "pooling/Div_count")


class PackedGraph(ModelGraph):
    """One row of tokens: a token attends to those that have its sequence's number.

    States stay of three dimensions, [1, T, H]: a runtime may leave INT8 where they are flat (benchmarks/LOG.md).
    """

    inputs = dict.fromkeys(PACKED_INPUTS[:-1], (1, "tokens")) | {PACKED_INPUTS[-1]: ("sequences",)}
    of_tokens = (1, "tokens")
    of_sequences = ("sequences",)

    def positions(self, table: str, prefix: str) -> str:
        return self.op("Gather", [table, "position_ids"], f"{prefix}.position_embeddings/Gather")

    def mask(self) -> str:
        of_query = self._numbers("sequence_ids", [1, 3], "mask/of_query")
        same = self.op("Equal", [of_query, self._numbers("sequence_ids", [1, 2], "mask/of_key")], "mask/Equal")
        scores = self.constant("seen_score", 0.0), self.constant("masked_score", MASKED_SCORE)
        return self.op("Where", [same, *scores], "mask/Where")

    def mask_for_operator(self, mask: str) -> str:
        return mask

    def mask_of_firsts(self, mask: str) -> str:
        return self.op("Gather", [mask, "sequence_starts"], "mask/first", axis=2)

    def firsts(self, hidden: str) -> str:
        return self.op("Gather", [hidden, "sequence_starts"], "bert.encoder/first", axis=1)

    def one_each(self, firsts: str) -> str:
        return self._of_the_row(firsts, "bert.pooler/first")

    def mean(self, hidden: str) -> str:
        """As one matrix product with a row of weights for each sequence; it is in the precision of the others, which a
        runtime is held to."""
        numbers = self.op("Gather", ["sequence_ids", "sequence_starts"], "pooling/numbers", axis=1)
        of_sequence = self._numbers(numbers, [2], "pooling/of_sequence")
        of_token = self._numbers("sequence_ids", [1], "pooling/of_token")
        same = self.op("Equal", [of_sequence, of_token], "pooling/Equal")
        inside = self.op("Cast", [same], "pooling/Cast", to=TensorProto.FLOAT)
        last = self.constant("last", [-1], np.int64)
        count = self.op("ReduceSum", [inside, last], "pooling/ReduceSum_inside", keepdims=1)
        weights = self.op("Div", [inside, count], "pooling/Div_count")
        return self._of_the_row(self.op("MatMul", [weights, hidden], "bert.mean/MatMul"), "pooling/row")

    def _numbers(self, value: str, axes: Sequence[int], name: str) -> str:
        which = self.constant("axes_" + "_".join(map(str, axes)), list(axes), np.int64)
        return self.op("Unsqueeze", [value, which], name)

    def _of_the_row(self, value_1NH: str, name: str) -> str:
        return self.op("Gather", [value_1NH, self.constant("first", 0, np.int64)], name, axis=0)
