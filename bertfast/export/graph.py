"""The ONNX graph of a BERT, written node by node from its weights.

No tracing: what stands here is what the file holds, whatever version of torch is installed. Stock operators, of opset
21 where attention is written out and of opset 23 where it is one operator; one MatMul a Linear under the parameter's
own name; and no shape arithmetic but with the sequence's length, to which position embeddings are cut.

Shapes: B sequences, S tokens, H hidden size, A attention heads, D = H / A. Packed (see `inputs`), one row of tokens
stands for B and S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import onnx
from onnx import TensorProto, helper

from bertfast.config import Config, ModelConfig
from bertfast.export.inputs import ModelGraph, PackedGraph, PaddedGraph, Shape
from bertfast.export.nodes import Attention, Graph, Weights
from bertfast.model.heads import SHORTEST
from bertfast.quantize.product import QuantizedProduct, fold_smoothing
from bertfast.tasks.embed import EmbedSettings

OPSETS: Mapping[Attention, int] = {"plain": 21, "operator": 23}
IR_VERSIONS: Mapping[Attention, int] = {"plain": 10, "operator": 11}
_EMBEDDINGS = "bert.embeddings"

Shapes = Mapping[str, Shape]


def build_graph(
    architecture: str,
    weights: Weights,
    config: ModelConfig,
    settings: Config,
    quantized: Sequence[QuantizedProduct] = (),
    attention: Attention = "plain",
    packed: bool = False,
) -> onnx.ModelProto:
    """The model of `architecture` with dynamic batch and sequence.

    Args:
        weights: float32 parameters by their names in the checkpoint.
        settings: the task's own.
        quantized: the products in INT8 or FP8: QuantizeLinear and DequantizeLinear around their MatMuls say so.
        attention: written out, or as ONNX's own operator, which TensorRT builds as a fused kernel or not at all.
        packed: whether it takes one row of real tokens, instead of a row with padding for each sequence.
    """
    quantized, weights = fold_smoothing(quantized, weights)
    graph = (PackedGraph if packed else PaddedGraph)(weights, {one.product.name: one for one in quantized}, attention)
    head = _HEADS[architecture]
    hidden = _encoder(graph, config, first_only=head.reads_first_only(settings))
    outputs = head.add(graph, hidden, config, settings)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in graph.inputs.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    body = helper.make_graph(graph.nodes, architecture, inputs, results, list(graph.constants.values()))
    opset = helper.make_opsetid("", OPSETS[attention])
    return helper.make_model(body, opset_imports=[opset], producer_name="bertfast", ir_version=IR_VERSIONS[attention])


def _encoder(graph: ModelGraph, config: ModelConfig, *, first_only: bool) -> str:
    """The states of all tokens, or of the first ones alone: then the last layer does nothing for the others."""
    hidden = _embeddings(graph, config)
    narrow = graph.mask()
    mask = narrow if graph.attention == "plain" else graph.mask_for_operator(narrow)
    for number in range(config.num_hidden_layers):
        asking = hidden
        if first_only and number == config.num_hidden_layers - 1:
            asking, mask = graph.firsts(hidden), graph.mask_of_firsts(narrow)
        hidden = _layer(graph, hidden, asking, mask, f"bert.encoder.layer.{number}", config)
    return hidden


def _embeddings(graph: ModelGraph, config: ModelConfig) -> str:
    prefix = _EMBEDDINGS

    def embedding(kind: str, ids: str) -> str:
        table = graph.parameter(f"{prefix}.{kind}_embeddings.weight")
        return graph.op("Gather", [table, ids], f"{prefix}.{kind}_embeddings/Gather")

    positions = graph.positions(graph.parameter(f"{prefix}.position_embeddings.weight"), prefix)
    words_and_types = [embedding("word", "input_ids"), embedding("token_type", "token_type_ids")]
    summed = graph.op("Add", words_and_types, f"{prefix}/Add")
    summed = graph.op("Add", [summed, positions], f"{prefix}/Add_positions")
    return graph.layer_norm(summed, f"{prefix}.LayerNorm", config.layer_norm_eps)


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


def _pooled(graph: ModelGraph, firsts: str) -> str:
    return graph.op("Tanh", [graph.linear(graph.one_each(firsts), "bert.pooler.dense")], "bert.pooler/Tanh")


def _named(graph: Graph, value: str, name: str) -> str:
    """Let the node that makes `value` give it the name of a graph output."""
    node = next(node for node in graph.nodes if node.output[0] == value)
    node.output[0] = name
    return name


def _classification(graph: ModelGraph, hidden: str, config: ModelConfig, settings: Config) -> Shapes:
    _named(graph, graph.linear(_pooled(graph, hidden), "classifier"), "logits")
    return {"logits": [*graph.of_sequences, len(graph.weights["classifier.bias"])]}


def _question_answering(graph: ModelGraph, hidden: str, config: ModelConfig, settings: Config) -> Shapes:
    logits = graph.linear(hidden, "qa_outputs")
    for place, name in enumerate(("start_logits", "end_logits")):
        index = graph.constant(f"{name}/index", place, np.int64)
        _named(graph, graph.op("Gather", [logits, index], f"{name}/Gather", axis=-1), name)
    return {"start_logits": graph.of_tokens, "end_logits": graph.of_tokens}


def _token_classification(graph: ModelGraph, hidden: str, config: ModelConfig, settings: Config) -> Shapes:
    _named(graph, graph.linear(hidden, "classifier"), "logits")
    return {"logits": [*graph.of_tokens, len(graph.weights["classifier.bias"])]}


def _pretraining(graph: ModelGraph, hidden: str, config: ModelConfig, settings: Config) -> Shapes:
    prefix = "cls.predictions"
    transformed = graph.linear(hidden, f"{prefix}.transform.dense")
    transformed = graph.activation(transformed, f"{prefix}.transform", config.hidden_act)
    transformed = graph.layer_norm(transformed, f"{prefix}.transform.LayerNorm", config.layer_norm_eps)
    words = graph.parameter("bert.embeddings.word_embeddings.weight")
    decoder = graph.op("Transpose", [words], f"{prefix}.decoder/Transpose", perm=[1, 0])
    scores = graph.op("MatMul", [transformed, decoder], f"{prefix}.decoder/MatMul")
    bias = graph.parameter(f"{prefix}.bias")
    _named(graph, graph.op("Add", [scores, bias], f"{prefix}.decoder/Add"), "prediction_logits")
    pooled = _pooled(graph, graph.firsts(hidden))
    _named(graph, graph.linear(pooled, "cls.seq_relationship"), "seq_relationship_logits")
    return {
        "prediction_logits": [*graph.of_tokens, config.vocab_size],
        "seq_relationship_logits": [*graph.of_sequences, 2],
    }


def _sentence_vector(graph: ModelGraph, hidden: str, config: ModelConfig, settings: Config) -> Shapes:
    assert isinstance(settings, EmbedSettings)
    vector = graph.one_each(hidden) if settings.pooling == "cls" else graph.mean(hidden)
    if settings.normalize:
        length = graph.op("ReduceL2", [vector, graph.constant("last", [-1], np.int64)], "pooling/ReduceL2", keepdims=1)
        length = graph.op("Max", [length, graph.constant("shortest", SHORTEST)], "pooling/Max_length")
        vector = graph.op("Div", [vector, length], "pooling/Div_length")
    _named(graph, vector, "embedding")
    return {"embedding": [*graph.of_sequences, config.hidden_size]}


class _Head(NamedTuple):
    """How a head is added to the encoder's states, and whether it reads those of the first token alone."""

    add: Callable[[ModelGraph, str, ModelConfig, Config], Shapes]
    reads_first_only: Callable[[Config], bool] = lambda settings: False


_HEADS = {
    "BertForSequenceClassification": _Head(_classification, lambda settings: True),
    "BertForTokenClassification": _Head(_token_classification),
    "BertForPreTraining": _Head(_pretraining),
    "BertForQuestionAnswering": _Head(_question_answering),
    "BertModel": _Head(_sentence_vector, lambda settings: cast(EmbedSettings, settings).pooling == "cls"),
}
