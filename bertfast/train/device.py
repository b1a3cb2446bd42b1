"""Where and in which precision training runs, and whether it can be compiled."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import TypeVar

import torch

from bertfast import artifact
from bertfast.config import Precision, TrainConfig
from bertfast.errors import ConfigError
from bertfast.train.compiler import cpp_compiler
from bertfast.train.distributed import World

# Compiling a BERT takes one to two minutes on two cores (benchmarks/LOG.md); a shorter run does not earn that back.
COMPILE_MIN_STEPS = 1000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

Settings = TypeVar("Settings", bound=TrainConfig)


def resolve(config: Settings, steps: int, *, static_shapes: bool) -> Settings:
    """The settings with every `auto` decided for this machine and this number of steps, so that a run that goes on
    elsewhere goes on in the same way or is refused.

    Args:
        static_shapes: whether all micro-batches have the same shapes.
    """
    device = choose_device(config)
    return config.model_copy(
        update={
            "device": device.type,
            "precision": choose_precision(config, device),
            "compile": compile_wanted(config, steps, eager_wins=device.type == "cpu" and not static_shapes),
            "workers": choose_workers(config, device),
            "deterministic": device.type == "cpu" if config.deterministic == "auto" else config.deterministic,
        }
    )


def place(config: TrainConfig, world: World) -> torch.device:
    """The device of this process, with its threads and its algorithms set as the settings say."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda", world.local_rank) if config.device == "cuda" else torch.device(config.device)
    make_deterministic(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one, where that is glibc.

    It would give every large tensor back to the system and take its pages anew, zeroed one by one: 7% to 10% of a
    small step (benchmarks/LOG.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Older glibc takes no more than 32 MiB, and a trim threshold alone would switch off what it adapts by itself.
    if mallopt and (mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_device(config: TrainConfig) -> torch.device:
    """The device of a run; ConfigError where CUDA is asked for and absent."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for and torch sees none. Use device=auto, or run 'bertfast doctor'.")
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(config: TrainConfig, device: torch.device) -> Precision:
    """bf16 where the device multiplies in it, else fp32; what the user asks for goes before."""
    if config.precision != "auto":
        return config.precision
    return Precision.BF16 if has_fast_bf16(device) else Precision.FP32


def choose_workers(config: TrainConfig, device: torch.device) -> int:
    """Processes that make batches: a CPU that trains has no core to spare, a GPU may be faster than one of them."""
    if config.workers != "auto":
        return config.workers
    cores = int(artifact.hardware()["cores"]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(4, cores // 2) if device.type == "cuda" else 0


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 have instructions of their own here."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def make_deterministic(config: TrainConfig, device: torch.device) -> None:
    """Let torch use deterministic algorithms only, where that is asked for."""
    wanted = config.deterministic is True
    if wanted and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it in this mode
    torch.use_deterministic_algorithms(wanted)
    # Filling new memory is a debugging aid of the deterministic mode; it costs a quarter of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compile_wanted(config: TrainConfig, steps: int, *, eager_wins: bool = False) -> bool:
    """Whether to compile: as asked, and with `auto` where there is a C++ compiler and the run is long enough.

    Args:
        eager_wins: whether `auto` is eager however long the run is: on a CPU batches of many shapes are computed
            without padding, and what is compiled computes it (benchmarks/LOG.md).
    """
    if config.compile is False or (config.compile == "auto" and (eager_wins or steps < COMPILE_MIN_STEPS)):
        return False
    if cpp_compiler() is None:
        warnings.warn(
            "no C++ compiler was found, so training runs eagerly, which is slower. "
            "Install g++ or clang++, or set compile=false to silence this.",
            stacklevel=2,
        )
        return False
    return True
