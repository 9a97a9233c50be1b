"""Floating-point operations of a computation, and the rate at which a device multiplies matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_flops(computation: Callable[[], object]) -> int:
    """FLOPs of the matrix products, convolutions and attentions that a call makes, backward passes included; a multiply
    and an add are two. Works on the meta device and with fake tensors too."""
    aten = torch.ops.aten

    # torch's counter knows the kernels of GPUs only.
    def attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def attention_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    processors = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=processors) as counter:
        computation()
    return counter.get_total_flops()


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish, so that a clock tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of large matrix products on a device: the median over about `seconds`."""
    side = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def once() -> float:
        synchronize(device)
        start = time.perf_counter()
        product: Tensor = a @ b
        synchronize(device)
        del product
        return 2 * side**3 / (time.perf_counter() - start)

    once()
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        rates.append(once())
    return statistics.median(rates)
