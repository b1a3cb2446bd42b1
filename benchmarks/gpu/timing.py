"""Turns and ceilings: what the card does at its best, and contenders timed one after another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.gpu.step import Run

Call = Callable[[], object]
E4M3 = torch.float8_e4m3fn


def seconds(call: Call, run: Run, times: int = 1) -> float:
    """Seconds that a call takes to its very end, the mean of some in a row."""
    run.synchronize()
    started_s = time.perf_counter()
    for _ in range(times):
        call()
    run.synchronize()
    return (time.perf_counter() - started_s) / times


def take_turns(contenders: Mapping[str, Call], run: Run, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; every other round goes backwards. Who fails leaves, with a row."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1 if run.dry else rounds):
        for name in list(samples)[:: 1 if number % 2 else -1]:
            try:
                samples[name].append(seconds(contenders[name], run))
            except Exception as error:  # of any library
                run.found(contender=name, error=f"{type(error).__name__}: {error}"[:1000])
                del samples[name]
    return samples


def matmul_flops(run: Run, dtype: torch.dtype = torch.bfloat16, shape: tuple[int, int, int] | None = None) -> float:
    """FLOP/s of a matrix product [M, K] x [K, N] at its best of five; in FP8 with a scale for each row and column."""
    m, k, n = shape or ((64, 64, 64) if run.dry else (8192, 8192, 8192))
    one = torch.randn(m, k, device=run.device).to(dtype)
    other = torch.randn(n, k, device=run.device).to(dtype).T
    if dtype is E4M3:
        scales = torch.ones(m, 1, device=run.device), torch.ones(1, n, device=run.device)
        call: Call = partial(torch._scaled_mm, one, other, *scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    else:
        call = partial(torch.matmul, one, other)
    seconds(call, run, 3)
    return 2 * m * k * n / min(seconds(call, run, 1 if run.dry else 30) for _ in range(5))


def copy_bytes_per_s(run: Run) -> float:
    """Bytes read and written a second, in the copy of 1 GiB."""
    source = torch.empty(2**20 if run.dry else 2**30, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    call = partial(target.copy_, source)
    seconds(call, run, 3)
    return 2 * source.numel() / min(seconds(call, run, 1 if run.dry else 10) for _ in range(5))


def ceilings(run: Run) -> None:
    """The best matrix products in each format, those in the shapes of BERT-base and BERT-large, and the memory."""
    grow = (16, 32, 64) if run.dry else (16384, 768, 3072)
    shrink = (16, 64, 32) if run.dry else (16384, 4096, 1024)
    for shape in (None, grow, shrink):
        for dtype in (torch.bfloat16, torch.float16) if run.dry else (torch.bfloat16, torch.float16, E4M3):
            flops = matmul_flops(run, dtype, shape)
            run.found(what="matmul", format=str(dtype), shape=shape, tflops=flops / 1e12)
    run.found(what="copy", gbytes_per_s=copy_bytes_per_s(run) / 1e9)


def summarize(samples: list[float]) -> dict[str, object]:
    low, *_, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 2
    return {"median_s": statistics.median(samples), "quartiles_s": [low, high], "samples_s": samples}
