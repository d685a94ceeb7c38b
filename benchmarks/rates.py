"""The physical limit: how fast this machine multiplies matrices."""

from __future__ import annotations

import time


def measure(*, dtype: str, products: list[tuple[int, int]], rows: int, seconds: float) -> float:
    """Return the best FLOP/s of square products and of the model's own, in this process."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 2048
    shapes = [
        (side, side, side),
        *((min(rows, 2 * side), inner, columns) for inner, columns in products),
    ]
    return max(
        _rate(*shape, getattr(torch, dtype), device, seconds / len(shapes)) for shape in shapes
    )


def _rate(rows: int, inner: int, columns: int, dtype, device: str, seconds: float) -> float:
    import torch

    left = torch.randn(rows, inner, dtype=dtype, device=device)
    right = torch.randn(columns, inner, dtype=dtype, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times, until = [], time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < until:
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        wait()
        times.append(time.perf_counter() - began)
    return 2 * rows * inner * columns / sorted(times)[len(times) // 4]
