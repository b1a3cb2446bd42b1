"""`bertfast build --inspect`: what an engine was made of, and what its library made of that."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from bertfast.backends.engine_plan import EngineRecord, read_engine
from bertfast.config import Config
from bertfast.engine.library import describe_plan
from bertfast.errors import BackendError, EngineError

# The inspector's words for a tensor's type, in the order to look for them: `BFloat16` has `Float` in it.
_FORMATS = {
    "int8": "int8",
    "fp8": "fp8",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
}
_ATTENTION = re.compile("mha|fmha|flash_?attention", re.IGNORECASE)
_QUANTIZED = {TensorProto.INT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8"}
_STORED = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16", **_QUANTIZED}


class Graph(Config):
    """What the ONNX holds that an engine was built from.

    Attributes:
        products: matrix products by the format of their operands; `plain` where not both are quantised.
        quantized: the names of those that are in INT8 or FP8.
        attentions: softmaxes and Attention operators, one for each layer of a BERT.
        casts: changes of type that the graph asks for.
        weights_bytes: of the constants, by their format.
    """

    products: dict[str, int]
    quantized: tuple[str, ...]
    attentions: int
    casts: int
    weights_bytes: dict[str, int]


class Layer(Config):
    """A layer of a plan.

    Attributes:
        kind: the library's word for what it is.
        format: of its first input, `other` where that is no number of a product.
        stands_for: its name, its kernel and the nodes of the ONNX that it computes, as far as the library says.
    """

    name: str
    kind: str
    format: str
    stands_for: str


class Compiled(Config):
    """What a plan executes, as its inspector tells it.

    Attributes:
        layers: by the format of their first input.
        fused_attentions: layers that are a whole attention.
        reformats: layers that only change the layout of a tensor.
        casts: layers that only change its type.
        memory_bytes: of the activations, for each profile.
        warnings: what was hoped for and is not there.
    """

    layers: dict[str, int]
    fused_attentions: int
    reformats: int
    casts: int
    memory_bytes: tuple[int, ...]
    warnings: tuple[str, ...]


class Inspection(Config):
    """What is known of an engine here.

    Attributes:
        plans: bytes of each, by its target.
        compiled: what the plan for this GPU executes; None where none can be loaded.
        unseen: why none can be.
    """

    engine: EngineRecord
    plans: dict[str, int]
    graph: Graph
    compiled: Compiled | None
    unseen: str | None


def inspect(path: Path) -> Inspection:
    """Inspect an engine; without a GPU that it was built for, what needs none.

    Raises:
        ArtifactError: it is no engine, or not whole.
        EngineError: a plan is not the one that was built.
    """
    _, record = read_engine(path)
    graph = read_graph(path / record.onnx)
    compiled, unseen = None, None
    try:
        described = describe_plan(path, record)
        compiled = judge(read_layers(described.layers), graph, described.memory_bytes)
    except (BackendError, EngineError) as refusal:
        unseen = str(refusal)
    sizes = {plan.target: (path / plan.file).stat().st_size for plan in record.plans}
    return Inspection(engine=record, plans=sizes, graph=graph, compiled=compiled, unseen=unseen)


def read_graph(file: Path) -> Graph:
    """Read the ONNX of an engine; its products are counted, and it is not run."""
    graph = onnx.load(file).graph
    stored = {item.name: item for item in graph.initializer}
    steps = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    products = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            read = [steps.get(name) for name in node.input[:2]]
            weights = [stored[name].data_type for name in read if name in stored]
            products[node.name] = _QUANTIZED[weights[0]] if weights and None not in read else "plain"
    sizes: Counter[str] = Counter()
    for item in graph.initializer:
        sizes[_STORED.get(item.data_type, "other")] += len(item.raw_data)
    return Graph(
        products=dict(Counter(products.values())),
        quantized=tuple(name for name, format_ in products.items() if format_ != "plain"),
        attentions=sum(node.op_type in ("Softmax", "Attention") for node in graph.node),
        casts=sum(node.op_type == "Cast" for node in graph.node),
        weights_bytes=dict(sizes),
    )


def read_layers(text: str) -> list[Layer]:
    """The layers in an inspector's JSON, as TensorRT 10 (`Format/Datatype`) or 11 (`DataType`) writes it."""
    return [_layer(item) for item in json.loads(text)["Layers"]]


def _layer(item: Any) -> Layer:
    if isinstance(item, str):  # a plan that was built without detailed profiling names its layers alone
        return Layer(name=item, kind="", format="other", stands_for=item)
    first = item["Inputs"][0] if item.get("Inputs") else {}
    said = str(first.get("DataType") or first.get("Format/Datatype") or first.get("Format") or "").lower()
    words = (item["Name"], item.get("TacticName", ""), item.get("Metadata", ""))
    return Layer(
        name=item["Name"],
        kind=item.get("LayerType", ""),
        format=next((format_ for word, format_ in _FORMATS.items() if word in said), "other"),
        stands_for=" ".join(words),
    )


def judge(layers: Sequence[Layer], graph: Graph, memory_bytes: Sequence[int] = ()) -> Compiled:
    """Hold what a plan executes against what its graph asks for."""
    fused = sum(bool(_ATTENTION.search(layer.stands_for)) for layer in layers)
    warnings = []
    if fused < graph.attentions:
        warnings.append(
            f"attention is one kernel in {fused} of {graph.attentions} layers; the others compute and store every score"
        )
    for name in graph.quantized:
        found = [layer for layer in layers if name in layer.stands_for]
        if found and all(layer.format not in _QUANTIZED.values() for layer in found):
            warnings.append(f"'{name}' is quantised in the graph and reads {found[0].format} in the plan")
    return Compiled(
        layers=dict(Counter(layer.format for layer in layers)),
        fused_attentions=fused,
        reformats=sum("reformat" in layer.kind.lower() for layer in layers),
        casts=sum("cast" in layer.kind.lower() for layer in layers),
        memory_bytes=tuple(memory_bytes),
        warnings=tuple(warnings),
    )
