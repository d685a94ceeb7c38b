"""How vLLM learns of our architectures; it loads the classes itself, from strings given here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm import ModelRegistry
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from embedding_service.families.architectures import BGE_M3, ROBERTA, ROBERTA_PAIRS, SPLADE

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLASSES: Final[Mapping[str, str]] = {
    BGE_M3: "embedding_service.families.models.bge_m3:BgeM3Model",
    SPLADE: "embedding_service.families.models.splade:SpladeModel",
    ROBERTA: "embedding_service.families.models.roberta:PaddingAwareModel",
    ROBERTA_PAIRS: "embedding_service.families.models.roberta:PaddingAwareReranker",
}
_CPU_ATTENTION: Final = "embedding_service.worker.cpu_attention.Backend"


def register() -> None:
    """Tell this process's vLLM of our architectures; the `vllm.general_plugins` entry point.

    vLLM calls it in every process, the tensor-parallel workers included, and more than once.
    """
    register_backend(AttentionBackendEnum.CPU_ATTN, _CPU_ATTENTION)
    known = ModelRegistry.get_supported_archs()
    for architecture, path in _CLASSES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, path)
