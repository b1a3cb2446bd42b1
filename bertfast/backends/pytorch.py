"""torch, eager: in fp32 the reference that every other backend is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from bertfast.backends.protocol import Arrays, Backend, Executed
from bertfast.backends.served import ServedModel
from bertfast.backends.torch_eight_bits import EightBitLinear, Format, to_eight_bits
from bertfast.config import Precision
from bertfast.model.heads import FullPrecisionLinear
from bertfast.model.weights import load_weights, open_checkpoint
from bertfast.text.batch import Batch

_IN_EIGHT_BITS = "bert.encoder"
_TYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_EIGHT_BITS: dict[Precision, Format] = {Precision.INT8: "int8", Precision.FP8: "fp8"}


class TorchBackend(Backend):
    """A checkpoint in torch, on the GPU where there is one and no other device is asked for.

    Args:
        precision: of the matrix products, by default the checkpoint's; int8 and fp8 are those of the encoder, in bf16.
    """

    name = "torch"

    def __init__(
        self,
        model: ServedModel,
        threads: int | None = None,
        device: str | None = None,
        precision: Precision | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.outputs = model.task.outputs
        checkpoint = model.checkpoint or open_checkpoint(model.path)
        self.module = model.task.build(checkpoint.config, len(model.context.labels), model.context.settings)
        load_weights(self.module, model.path, complete=True)
        wanted = precision or model.precision
        self.module.to(self.device, _TYPES.get(wanted, torch.bfloat16)).eval()
        for part in self.module.modules():
            if isinstance(part, FullPrecisionLinear):
                part.float()
        within = ""
        if wanted in _EIGHT_BITS:
            within = _IN_EIGHT_BITS
            to_eight_bits(self.module.get_submodule(within), _EIGHT_BITS[wanted])
        torch.set_float32_matmul_precision("highest")
        executed = _executed(self.module, within)
        self.hold_precision(executed, wanted, sum(one.weights for one in executed) if wanted is Precision.INT8 else 0)

    def upload(self, batch: Batch) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).to(self.device) for name, array in batch.arrays.items()}

    @torch.inference_mode()
    def execute(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.module(**inputs)  # type: ignore[no-any-return]

    def download(self, outputs: Mapping[str, Tensor]) -> Arrays:
        return {name: outputs[name].float().cpu().numpy() for name in self.outputs}

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _executed(module: torch.nn.Module, within: str) -> list[Executed]:
    """The formats in which a part's Linears multiply, seen by running one sentence through the module; those that are
    to compute in fp32 whatever the others do are left out."""
    seen: list[Executed] = []
    names = {kind: precision.value for precision, kind in _TYPES.items()}

    def note(linear: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        reduced = torch.get_float32_matmul_precision() != "highest"
        formats = {tensor.dtype for tensor in (*inputs, output)}
        weights = cast(Tensor, linear.weight).numel()
        seen.extend(Executed("reduced fp32" if reduced else names.get(kind, str(kind)), weights) for kind in formats)

    parts = list(module.get_submodule(within).modules())
    seen += [Executed(part.format, part.weight.numel()) for part in parts if isinstance(part, EightBitLinear)]
    linears = [part for part in parts if isinstance(part, torch.nn.Linear)]
    hooks = [part.register_forward_hook(note) for part in linears if not isinstance(part, FullPrecisionLinear)]
    ids = torch.ones((1, 2), dtype=torch.int64, device=next(module.parameters()).device)
    with torch.inference_mode():
        module(ids, ids, ids * 0)
    for hook in hooks:
        hook.remove()
    return seen
