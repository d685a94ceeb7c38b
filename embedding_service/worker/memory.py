"""The memory of a device that one replica takes, reckoned from the model before vLLM starts.

vLLM would take the share that it is told, whatever the model: a decoder's cache grows to fill it.
A pooling model keeps no token after its step, so that the steps in flight bound its cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embedding_service.families.weights import weights_bytes

if TYPE_CHECKING:
    from embedding_service.settings.model import ModelOptions

_GIB: Final = 1 << 30
# CUDA's context, libraries' workspaces and captured graphs: 0.7 to 1.1 GiB on an H200.
_CONTEXT: Final = 3 * _GIB // 2


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a replica takes on each of its devices; `step` is what a step computes with."""

    weights: int
    cache: int
    step: int
    context: int = _CONTEXT

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.step + self.context

    def __str__(self) -> str:
        parts = {"weights": self.weights, "cache": self.cache, "steps": self.step}
        parts |= {"CUDA and graphs": self.context}
        words = (f"{name} {gib(size)}" for name, size in parts.items())
        return f"{gib(self.total)} GiB ({', '.join(words)})"


@dataclass(frozen=True, slots=True)
class Shape:
    """The largest step: tokens in it, texts and steps in flight.

    A number has `width` bytes, and each of `ranks` devices a part of the model.
    """

    tokens: int
    texts: int
    steps: int
    width: int
    ranks: int = 1


def need(folder: str, config: Any, shape: Shape, *, cache: int) -> Need:
    """Return what a model takes beside its `cache`; `config` is vLLM's ModelConfig.

    The step is the widest place of a layer: the inner vector and its gate twice, some eight hidden
    vectors, and one in float32 for the pooler.
    """
    hidden = config.get_hidden_size()
    inner = getattr(config.hf_text_config, "intermediate_size", None) or 4 * hidden
    a_token = shape.width * (3 * inner // shape.ranks + 8 * hidden) + 4 * hidden
    weights = weights_bytes(folder, shape.width) // shape.ranks
    return Need(weights, cache, step=shape.tokens * a_token)


def cache_bytes(config: Any, shape: Shape, *, block: int) -> int:
    """Return what keys and values of all steps in flight take, in whole blocks of tokens."""
    numbers = (
        2  # a key and a value
        * config.get_total_num_hidden_layers()
        * config.get_total_num_kv_heads()
        * config.get_head_size()
    )
    tokens = shape.steps * shape.tokens + block * shape.texts
    return int(numbers * shape.width * tokens) // shape.ranks


def share(taken: Need, options: ModelOptions, *, free: int, total: int) -> float:
    """Return the share of a device with `total` bytes that a replica takes.

    Raises `MemoryError` if that is more than it may take, than is free, or than there is for all
    replicas on the device.
    """
    allowed, beside = options.gpu_memory_utilization, _replicas_on_a_device(options)
    if taken.total > allowed * total:
        why = f"gpu_memory_utilization {allowed:g} allows {gib(allowed * total)}: raise it"
    elif taken.total > free:
        why = f"{gib(free)} are free: end what holds the device (nvidia-smi shows it)"
    elif beside * taken.total > total:
        why = f"{beside} replicas share the device: lower replicas"
    else:
        return taken.total / total
    raise MemoryError(
        f"a replica of {options.model_name} takes {taken} of {gib(total)}; {why}, lower "
        "max_model_len or max_batch_size, or use a larger device"
    )


def _replicas_on_a_device(options: ModelOptions) -> int:
    places = max(1, len(set(options.devices)) // options.tensor_parallel_size)
    return math.ceil(options.replicas / places)


def gib(size: float) -> str:
    """Write bytes as GiB."""
    return f"{size / _GIB:.1f}"
