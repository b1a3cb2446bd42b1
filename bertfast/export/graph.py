"""The ONNX graph of a BERT, written node by node from its weights.

No tracing: what stands here is what the file holds, whatever version of torch is installed. Stock operators, of opset
21 where attention is written out and of opset 23 where it is one operator; one MatMul a Linear under the parameter's
own name; and no shape arithmetic but with the sequence's length, to which position embeddings are cut.

Shapes: B sequences, S tokens, H hidden size, A attention heads, D = H / A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bertfast.config import Config, ModelConfig
from bertfast.model.encoder import MASKED_SCORE
from bertfast.model.heads import SHORTEST
from bertfast.quantize.product import QuantizedProduct, fold_smoothing
from bertfast.tasks.embed import EmbedSettings
from bertfast.text.batch import INPUTS

Attention = Literal["plain", "operator"]

OPSETS: Mapping[Attention, int] = {"plain": 21, "operator": 23}
IR_VERSIONS: Mapping[Attention, int] = {"plain": 10, "operator": 11}
_EMBEDDINGS = "bert.embeddings"

Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclass
class Graph:
    """Nodes and constants as they are added; every method returns the name of the value it adds.

    Attributes:
        quantized: the products that are in INT8 or FP8, by name.
        attention: its form.
    """

    weights: Weights
    quantized: Mapping[str, QuantizedProduct] = field(default_factory=dict)
    attention: Attention = "plain"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node; its output carries the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add a constant once; the same name is the same value."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def parameter(self, name: str, *, transposed: bool = False) -> str:
        """Add a parameter of the model under its own name; `transposed` as the [in, out] operand of a MatMul."""
        value = self.weights[name]
        return self.constant(name, np.ascontiguousarray(value.T) if transposed else value)

    def linear(self, hidden: str, name: str) -> str:
        product = self.op("MatMul", [hidden, self.parameter(f"{name}.weight", transposed=True)], f"{name}/MatMul")
        return self.op("Add", [product, self.parameter(f"{name}.bias")], f"{name}/Add")

    def split(self, value: str, names: Sequence[str]) -> list[str]:
        """Equal parts of the last dimension."""
        parts = [f"{name}/Split" for name in names]
        self.nodes.append(helper.make_node("Split", [value], parts, parts[0], axis=-1, num_outputs=len(parts)))
        return parts

    def product(self, hidden: str, name: str, linears: Sequence[str] = ()) -> str:
        """A product of the encoder, or that part of it which belongs to some of its Linears; by default a product of
        one Linear, which has its name."""
        linears = linears or (name,)
        found = self.quantized.get(name)
        if found is None:
            return self.linear(hidden, name)
        if found.smoothing_K is not None:
            smoothing = self.constant(f"{name}.smoothing", 1 / found.smoothing_K)
            hidden = self.op("Mul", [hidden, smoothing], f"{linears[0]}/smoothed")
        part = slice(found.places[linears[0]].start, found.places[linears[-1]].stop)
        scale = self.constant(f"{name}.input_scale", found.input_scale)
        zero = self.constant(f"zero_{found.format}", 0, found.weight_KN.dtype)
        steps = self.op("QuantizeLinear", [hidden, scale, zero], f"{linears[0]}/QuantizeLinear")
        inputs = self.op("DequantizeLinear", [steps, scale, zero], f"{linears[0]}/DequantizeLinear")
        weight = self.constant(f"{linears[0]}.steps", found.weight_KN[:, part], found.weight_KN.dtype)
        of_weight = [weight, self.constant(f"{linears[0]}.scale", found.weight_scale_N[part])]
        weight = self.op("DequantizeLinear", of_weight, f"{linears[0]}.steps/DequantizeLinear", axis=1)
        product = self.op("MatMul", [inputs, weight], f"{linears[0]}/MatMul")
        return self.op("Add", [product, self.constant(f"{linears[0]}.bias", found.bias_N[part])], f"{linears[0]}/Add")

    def layer_norm(self, hidden: str, name: str, epsilon: float) -> str:
        inputs = [hidden, self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")]
        return self.op("LayerNormalization", inputs, f"{name}/LayerNormalization", axis=-1, epsilon=epsilon)

    def activation(self, hidden: str, name: str, kind: str) -> str:
        if kind == "relu":
            return self.op("Relu", [hidden], f"{name}/Relu")
        return self.op("Gelu", [hidden], f"{name}/Gelu", approximate="none" if kind == "gelu" else "tanh")


def build_graph(
    architecture: str,
    weights: Weights,
    config: ModelConfig,
    settings: Config,
    quantized: Sequence[QuantizedProduct] = (),
    attention: Attention = "plain",
) -> onnx.ModelProto:
    """The model of `architecture` with dynamic batch and sequence.

    Args:
        weights: float32 parameters by their names in the checkpoint.
        settings: the task's own.
        quantized: the products in INT8 or FP8: QuantizeLinear and DequantizeLinear around their MatMuls say so.
        attention: written out, or as ONNX's own operator, which TensorRT builds as a fused kernel or not at all.
    """
    quantized, weights = fold_smoothing(quantized, weights)
    graph = Graph(weights, {one.product.name: one for one in quantized}, attention)
    head = _HEADS[architecture]
    hidden = _encoder(graph, config, first_only=head.reads_first_only(settings))
    outputs = head.add(graph, hidden, config, settings)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUTS]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    body = helper.make_graph(graph.nodes, architecture, inputs, results, list(graph.constants.values()))
    opset = helper.make_opsetid("", OPSETS[attention])
    return helper.make_model(body, opset_imports=[opset], producer_name="bertfast", ir_version=IR_VERSIONS[attention])


def _encoder(graph: Graph, config: ModelConfig, *, first_only: bool) -> str:
    """The states of all tokens, or of the first ones alone: then the last layer does nothing for the others."""
    hidden = _embeddings(graph, config)
    mask_B11S = _mask(graph)
    mask = mask_B11S if graph.attention == "plain" else _for_each_token(graph, mask_B11S)
    for number in range(config.num_hidden_layers):
        asking = hidden
        if first_only and number == config.num_hidden_layers - 1:
            first = graph.constant("first_of_each", [0], np.int64)
            asking, mask = graph.op("Gather", [hidden, first], "bert.encoder/first", axis=1), mask_B11S
        hidden = _layer(graph, hidden, asking, mask, f"bert.encoder.layer.{number}", config)
    return hidden


def _embeddings(graph: Graph, config: ModelConfig) -> str:
    prefix = _EMBEDDINGS

    def embedding(kind: str, ids: str) -> str:
        table = graph.parameter(f"{prefix}.{kind}_embeddings.weight")
        return graph.op("Gather", [table, ids], f"{prefix}.{kind}_embeddings/Gather")

    length = graph.op("Shape", ["input_ids"], f"{prefix}/sequence", start=1, end=2)
    zero = graph.constant("zero", [0], np.int64)
    table = graph.parameter(f"{prefix}.position_embeddings.weight")
    positions = graph.op("Slice", [table, zero, length, zero], f"{prefix}.position_embeddings/Slice")
    words_and_types = [embedding("word", "input_ids"), embedding("token_type", "token_type_ids")]
    summed = graph.op("Add", words_and_types, f"{prefix}/Add")
    summed = graph.op("Add", [summed, positions], f"{prefix}/Add_positions")
    return graph.layer_norm(summed, f"{prefix}.LayerNorm", config.layer_norm_eps)


def _mask(graph: Graph) -> str:
    """What is added to the scores, [B, 1, 1, S]: 0 on real tokens, MASKED_SCORE on padding."""
    real = graph.op("Cast", ["attention_mask"], "mask/Cast", to=TensorProto.FLOAT)
    padding = graph.op("Sub", [graph.constant("one", 1.0), real], "mask/Sub")
    scores = graph.op("Mul", [padding, graph.constant("masked_score", MASKED_SCORE)], "mask/Mul")
    return graph.op("Unsqueeze", [scores, graph.constant("mask_axes", [1, 2], np.int64)], "mask/Unsqueeze")


def _for_each_token(graph: Graph, mask_B11S: str) -> str:
    """[B, 1, S, S]: the operator does not repeat a mask in every runtime."""
    ones = graph.constant("ones", [1, 1], np.int64), graph.constant("one_key", [1], np.int64)
    shape = graph.op("Concat", [ones[0], f"{_EMBEDDINGS}/sequence", ones[1]], "mask/shape", axis=0)
    return graph.op("Expand", [mask_B11S, shape], "mask/Expand")


def _layer(graph: Graph, hidden: str, asking: str, mask: str, prefix: str, config: ModelConfig) -> str:
    context = _self_attention(graph, hidden, asking, mask, f"{prefix}.attention.self", config)
    attended = _residual(graph, context, asking, f"{prefix}.attention.output", config)
    wide = graph.product(attended, f"{prefix}.intermediate.dense")
    wide = graph.activation(wide, f"{prefix}.intermediate", config.hidden_act)
    return _residual(graph, wide, attended, f"{prefix}.output", config)


def _self_attention(graph: Graph, hidden: str, asking: str, mask: str, prefix: str, config: ModelConfig) -> str:
    projected = _query_key_value(graph, hidden, asking, prefix)
    if graph.attention == "plain" or asking != hidden:  # TensorRT has no fused kernel for a single query
        return _plain_attention(graph, projected, mask, prefix, config)
    heads = dict.fromkeys(("q_num_heads", "kv_num_heads"), config.num_attention_heads)
    return graph.op("Attention", [*projected, mask], f"{prefix}/Attention", **heads)


def _plain_attention(graph: Graph, projected: Sequence[str], mask: str, prefix: str, config: ModelConfig) -> str:
    heads = graph.constant("heads_shape", [0, 0, config.num_attention_heads, config.head_size], np.int64)

    def split(kind: str, states: str, order: list[int]) -> str:
        name = f"{prefix}.{kind}"
        shaped = graph.op("Reshape", [states, heads], f"{name}/Reshape")
        return graph.op("Transpose", [shaped], f"{name}/Transpose", perm=order)

    query, key, value = projected
    query = split("query", query, [0, 2, 1, 3])
    key_BADS, value = split("key", key, [0, 2, 3, 1]), split("value", value, [0, 2, 1, 3])
    scale = graph.constant("attention_scale", 1 / math.sqrt(config.head_size))
    query = graph.op("Mul", [query, scale], f"{prefix}/scale")
    scores = graph.op("MatMul", [query, key_BADS], f"{prefix}/scores")
    scores = graph.op("Add", [scores, mask], f"{prefix}/masked")
    probabilities = graph.op("Softmax", [scores], f"{prefix}/Softmax", axis=-1)
    context = graph.op("MatMul", [probabilities, value], f"{prefix}/context")
    context = graph.op("Transpose", [context], f"{prefix}/Transpose", perm=[0, 2, 1, 3])
    flat = graph.constant("hidden_shape", [0, 0, config.hidden_size], np.int64)
    return graph.op("Reshape", [context, flat], f"{prefix}/Reshape")


def _query_key_value(graph: Graph, hidden: str, asking: str, prefix: str) -> list[str]:
    """Each [B, S, H]. Quantised, what reads the same states is one product, because a runtime that sees three behind
    one QuantizeLinear computes them in fp32 (see benchmarks/LOG.md)."""
    product, names = f"{prefix}.query_key_value", [f"{prefix}.{kind}" for kind in ("query", "key", "value")]
    if product not in graph.quantized:
        return [graph.linear(states, name) for states, name in zip((asking, hidden, hidden), names, strict=True)]
    if asking == hidden:
        return graph.split(graph.product(hidden, product, names), names)
    key_value = graph.split(graph.product(hidden, product, names[1:]), names[1:])
    return [graph.product(asking, product, names[:1]), *key_value]


def _residual(graph: Graph, hidden: str, residual: str, prefix: str, config: ModelConfig) -> str:
    summed = graph.op("Add", [graph.product(hidden, f"{prefix}.dense"), residual], f"{prefix}/Add")
    return graph.layer_norm(summed, f"{prefix}.LayerNorm", config.layer_norm_eps)


def _first(graph: Graph, hidden: str) -> str:
    return graph.op("Gather", [hidden, graph.constant("first", 0, np.int64)], "bert.pooler/first", axis=1)


def _pooled(graph: Graph, hidden: str) -> str:
    return graph.op("Tanh", [graph.linear(_first(graph, hidden), "bert.pooler.dense")], "bert.pooler/Tanh")


def _named(graph: Graph, value: str, name: str) -> str:
    """Let the node that makes `value` give it the name of a graph output."""
    node = next(node for node in graph.nodes if node.output[0] == value)
    node.output[0] = name
    return name


def _classification(graph: Graph, hidden: str, config: ModelConfig, settings: Config) -> dict[str, list[Any]]:
    _named(graph, graph.linear(_pooled(graph, hidden), "classifier"), "logits")
    return {"logits": ["batch", len(graph.weights["classifier.bias"])]}


def _question_answering(graph: Graph, hidden: str, config: ModelConfig, settings: Config) -> dict[str, list[Any]]:
    logits = graph.linear(hidden, "qa_outputs")
    for place, name in enumerate(("start_logits", "end_logits")):
        index = graph.constant(f"{name}/index", place, np.int64)
        _named(graph, graph.op("Gather", [logits, index], f"{name}/Gather", axis=-1), name)
    return {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]}


def _token_classification(graph: Graph, hidden: str, config: ModelConfig, settings: Config) -> dict[str, list[Any]]:
    _named(graph, graph.linear(hidden, "classifier"), "logits")
    return {"logits": ["batch", "sequence", len(graph.weights["classifier.bias"])]}


def _pretraining(graph: Graph, hidden: str, config: ModelConfig, settings: Config) -> dict[str, list[Any]]:
    prefix = "cls.predictions"
    transformed = graph.linear(hidden, f"{prefix}.transform.dense")
    transformed = graph.activation(transformed, f"{prefix}.transform", config.hidden_act)
    transformed = graph.layer_norm(transformed, f"{prefix}.transform.LayerNorm", config.layer_norm_eps)
    words = graph.parameter("bert.embeddings.word_embeddings.weight")
    decoder = graph.op("Transpose", [words], f"{prefix}.decoder/Transpose", perm=[1, 0])
    scores = graph.op("MatMul", [transformed, decoder], f"{prefix}.decoder/MatMul")
    bias = graph.parameter(f"{prefix}.bias")
    _named(graph, graph.op("Add", [scores, bias], f"{prefix}.decoder/Add"), "prediction_logits")
    _named(graph, graph.linear(_pooled(graph, hidden), "cls.seq_relationship"), "seq_relationship_logits")
    return {
        "prediction_logits": ["batch", "sequence", config.vocab_size],
        "seq_relationship_logits": ["batch", 2],
    }


def _sentence_vector(graph: Graph, hidden: str, config: ModelConfig, settings: Config) -> dict[str, list[Any]]:
    assert isinstance(settings, EmbedSettings)
    vector = _first(graph, hidden) if settings.pooling == "cls" else _mean_of_tokens(graph, hidden)
    if settings.normalize:
        length = graph.op("ReduceL2", [vector, graph.constant("last", [-1], np.int64)], "pooling/ReduceL2", keepdims=1)
        length = graph.op("Max", [length, graph.constant("shortest", SHORTEST)], "pooling/Max_length")
        vector = graph.op("Div", [vector, length], "pooling/Div_length")
    _named(graph, vector, "embedding")
    return {"embedding": ["batch", config.hidden_size]}


def _mean_of_tokens(graph: Graph, hidden: str) -> str:
    last, tokens = graph.constant("last", [-1], np.int64), graph.constant("tokens", [1], np.int64)
    mask = graph.op("Unsqueeze", ["mask/Cast", last], "pooling/Unsqueeze")
    real = graph.op("Mul", [hidden, mask], "pooling/Mul")
    summed = graph.op("ReduceSum", [real, tokens], "pooling/ReduceSum", keepdims=0)
    count = graph.op("ReduceSum", [mask, tokens], "pooling/ReduceSum_mask", keepdims=0)
    count = graph.op("Max", [count, graph.constant("one", 1.0)], "pooling/Max_count")
    return graph.op("Div", [summed, count], "pooling/Div_count")


class _Head(NamedTuple):
    """How a head is added to the encoder's states, and whether it reads those of the first token alone."""

    add: Callable[[Graph, str, ModelConfig, Config], dict[str, list[Any]]]
    reads_first_only: Callable[[Config], bool] = lambda settings: False


_HEADS = {
    "BertForSequenceClassification": _Head(_classification, lambda settings: True),
    "BertForTokenClassification": _Head(_token_classification),
    "BertForPreTraining": _Head(_pretraining),
    "BertForQuestionAnswering": _Head(_question_answering),
    "BertModel": _Head(_sentence_vector, lambda settings: cast(EmbedSettings, settings).pooling == "cls"),
}
