"""torch without padding: a batch's real tokens one after another in a row, attention kept inside each sequence.

On CUDA attention is the kernel for sequences of unequal length, and the batches of a layout share a CUDA graph. On a
CPU a mask keeps sequences apart: the same numbers, for tests, at the cost of every token's score with every other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertfast.backends.protocol import Arrays
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.served import ServedModel
from bertfast.backends.torch_graphs import Outputs, Replayed
from bertfast.config import Precision
from bertfast.model.encoder import takes_boundaries
from bertfast.text.batch import Batch, Int64, group_by_tokens
from bertfast.text.packing import Layout, with_padding, without_padding

_KERNEL_TOKENS, _MASK_TOKENS = 16384, 512
_TOKEN_GRAIN, _LENGTH_GRAIN = 64, 64


@dataclass(frozen=True)
class Packed:
    """A batch where it is computed.

    Attributes:
        values: int32, the arrays of the packed batch one after another, so that they are copied as one.
        real: bool [B, S], where the tokens of the padded batch are real.
    """

    layout: Layout
    values: Tensor
    real: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PackedOutputs:
    """What was computed of a packed batch, and where the tokens of the padded batch are real."""

    outputs: Outputs
    real: npt.NDArray[np.bool_]


class TorchPackedBackend(TorchBackend):
    """A checkpoint in torch: by default in bf16 on the GPU where there is one, else in fp32 on the CPU.

    Args:
        precision: as `TorchBackend` has it.
        compiled: whether torch.compile makes the kernels.
        max_tokens: real tokens of a batch that `group` makes.
    """

    name = "torch-packed"

    def __init__(
        self,
        model: ServedModel,
        threads: int | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        compiled: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        on_gpu = torch.device(device).type == "cuda" if device else torch.cuda.is_available()
        super().__init__(model, threads, device, precision or (Precision.BF16 if on_gpu else Precision.FP32))
        kernel = takes_boundaries(self.device.type, next(self.module.parameters()).dtype, 0.0)
        self.max_tokens = max_tokens or (_KERNEL_TOKENS if kernel else _MASK_TOKENS)
        self.per_token = model.task.per_token
        self.call = torch.compile(self.module, dynamic=True) if compiled else self.module
        self.replayed = Replayed(self._compute)

    def group(self, lengths: Sequence[int]) -> Iterator[Int64]:
        return group_by_tokens(lengths, self.max_tokens)

    def computed_tokens(self, batch: Batch) -> int:
        return layout_for(batch).tokens

    @torch.inference_mode()  # a compiled model would be traced again for tensors of another mode
    def upload(self, batch: Batch) -> Packed:  # type: ignore[override]
        layout = layout_for(batch)
        packed = without_padding(batch, layout)
        packing = packed.packing
        assert packing is not None
        tokens = packed.input_ids, packed.token_type_ids, packing.position_ids
        parts = [*(part[0] for part in tokens), packing.sequence_starts, packing.cu_seqlens]
        values = torch.from_numpy(np.concatenate(parts, dtype=np.int32, casting="same_kind"))
        if self.device.type == "cuda":
            values = values.pin_memory().to(self.device, non_blocking=True)
        return Packed(layout, values, batch.attention_mask == 1)

    @torch.inference_mode()
    def execute(self, inputs: Packed) -> PackedOutputs:  # type: ignore[override]
        return PackedOutputs(self.replayed(inputs.values, inputs.layout), inputs.real)

    def download(self, outputs: PackedOutputs) -> Arrays:  # type: ignore[override]
        found, real = super().download(outputs.outputs), outputs.real
        return {
            name: with_padding(values, real) if name in self.per_token else values[: len(real)]
            for name, values in found.items()
        }

    def _compute(self, values: Tensor, layout: Layout) -> Outputs:
        sizes = [layout.tokens] * 3 + [layout.sequences, layout.boundaries]
        ids, types, positions, starts, bounds = torch.split(values, sizes)
        return self.call(  # type: ignore[no-any-return]
            ids[None],
            ids[None],  # the mask, which a packed batch has no use for
            types[None],
            sequence_starts=starts,
            position_ids=positions[None],
            cu_seqlens=bounds,
            max_seqlen=layout.max_length,
        )


def layout_for(batch: Batch) -> Layout:
    """The layout of a padded batch without its padding: one of few, so that few graphs are recorded.

    Tokens are rounded up to an eighth of the power of two below, sequences to a power of two.
    """
    tokens, length = batch.real_tokens, batch.input_ids.shape[1]
    grain = max(_TOKEN_GRAIN, (1 << tokens.bit_length()) // 16)
    sequences = 1 << (len(batch) - 1).bit_length()
    return Layout(1, _round_up(tokens, grain), sequences, 0, _round_up(length, _LENGTH_GRAIN))


def _round_up(number: int, grain: int) -> int:
    return -(-number // grain) * grain
