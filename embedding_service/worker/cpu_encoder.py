"""The layers of BERT and its kin on CPUs, in a straight line.

A lone text waits for its matrix products, and nearly as long for the modules, operators and looks
at the context through which vLLM reaches each operation of a layer. Here a layer is the ten calls
that it is. The kernels are the same: products as vLLM has packed them for this machine, attention
as `cpu_attention` does it, or vLLM where it has something better.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import layer_norm
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.bert import BertEncoder

from embedding_service.worker.cpu_attention import Implementation

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from vllm.model_executor.models.bert import BertLayer

    from embedding_service.worker.cpu_attention import Attend

    Step = Callable[[Tensor], Tensor]


def straighten(model: torch.nn.Module) -> int:
    """Let the encoders in a loaded model run in a straight line; return how many can.

    Those that vLLM computes in another way (quantised, over several devices, with adapters or
    another attention) stay as they are. Not for compiled models: their graph would not know of it.
    """
    encoders = list(filter(_can_be_straight, model.modules()))
    for encoder in encoders:
        encoder.forward = _Line(encoder)
    return len(encoders)


class _Line:
    """In place of an encoder's `forward`: (tokens, hidden) to (tokens, hidden)."""

    def __init__(self, encoder: BertEncoder) -> None:
        self.layers = [_Layer(layer) for layer in encoder.layer]
        self.attention = encoder.layer[0].attention.self.attn  # all have the same metadata
        self.otherwise = encoder.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        metadata = (get_forward_context().attn_metadata or {}).get(self.attention.layer_name)
        if metadata is None:  # vLLM looks for the largest step's memory
            return self.otherwise(hidden_states)
        how: Implementation = self.attention.impl
        attend = how.of_step(self.attention, metadata)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attend)
        return hidden_states


class _Layer:
    def __init__(self, layer: BertLayer) -> None:
        attention = layer.attention
        self.qkv = _product(attention.self.qkv_proj)
        self.heads = attention.self.attn.num_heads
        self.mix = _product(attention.output.dense)
        self.mixed = _norm(attention.output.LayerNorm)
        self.up = _product(layer.intermediate.dense)
        self.activation = layer.intermediate.intermediate_act_fn
        self.down = _product(layer.output.dense)
        self.done = _norm(layer.output.LayerNorm)

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:
        """Return the next layer's input, (tokens, hidden) as `x`."""
        query, key, value = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        attend(query, key, value, attended)
        x = self.mixed(self.mix(attended.flatten(1)).add_(x))
        return self.done(self.down(self.activation(self.up(x))).add_(x))


def _can_be_straight(module: torch.nn.Module) -> bool:
    if not isinstance(module, BertEncoder):
        return False
    return all(map(_attends_plainly, module.layer)) and all(map(_multiplies_plainly, module.layer))


def _attends_plainly(layer: BertLayer) -> bool:
    impl = layer.attention.self.attn.impl
    plain = isinstance(impl, Implementation) and impl.is_plain_encoder
    return plain and impl.num_kv_heads == impl.num_heads


def _multiplies_plainly(layer: BertLayer) -> bool:
    attention = layer.attention
    before = (attention.self.qkv_proj, attention.output.dense)
    products = (*before, layer.intermediate.dense, layer.output.dense)
    return all(hasattr(product, "cpu_linear") and product.tp_size == 1 for product in products)


def _product(module: torch.nn.Module) -> Step:
    return partial(module.cpu_linear, weight=module.weight, bias=module.bias)


def _norm(module: torch.nn.LayerNorm) -> Step:
    return partial(
        layer_norm,
        normalized_shape=module.normalized_shape,
        weight=module.weight,
        bias=module.bias,
        eps=module.eps,
    )
