"""Our own architectures: how vLLM learns of them, and which checkpoints they serve.

Imports neither vLLM nor torch: vLLM itself loads the classes, from the strings given here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BGE_M3: Final = "EmbeddingServiceBgeM3Model"
SPLADE: Final = "EmbeddingServiceSpladeModel"
ROBERTA: Final = "EmbeddingServiceRobertaModel"
ROBERTA_PAIRS: Final = "EmbeddingServiceRobertaForSequenceClassification"
_CLASSES: Final[Mapping[str, str]] = {
    BGE_M3: "embedding_service.engine.bge_m3_model:BgeM3Model",
    SPLADE: "embedding_service.engine.splade_model:SpladeModel",
    ROBERTA: "embedding_service.engine.roberta_models:PaddingAwareModel",
    ROBERTA_PAIRS: "embedding_service.engine.roberta_models:PaddingAwareReranker",
}
_CPU_ATTENTION: Final = "embedding_service.engine.cpu_attention.Backend"
# What we load in place of vLLM's own class, whatever the model's name.
_REPLACED: Final[Mapping[str, str]] = {
    "RobertaModel": ROBERTA,
    "RobertaForMaskedLM": ROBERTA,
    "XLMRobertaModel": ROBERTA,
    "RobertaForSequenceClassification": ROBERTA_PAIRS,
    "XLMRobertaForSequenceClassification": ROBERTA_PAIRS,
}


def register() -> None:
    """Tell this process's vLLM of our architectures; the `vllm.general_plugins` entry point.

    vLLM calls it in every process, the tensor-parallel workers included, and more than once.
    """
    from vllm import ModelRegistry  # noqa: PLC0415 - the gateway imports this module without vLLM
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend  # noqa: PLC0415

    register_backend(AttentionBackendEnum.CPU_ATTN, _CPU_ATTENTION)

    known = ModelRegistry.get_supported_archs()
    for architecture, path in _CLASSES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, path)


def replacement(config: Mapping[str, Any], family: Mapping[str, str]) -> str | None:
    """Return which of our architectures serves a checkpoint with this config.json, if any does.

    `family` says what the model's profile replaces beyond what is replaced for all. Models with
    rotary positions (jina-embeddings-v3 calls itself XLMRobertaModel) are left to vLLM.
    """
    if config.get("position_embedding_type", "absolute") != "absolute":
        return None
    replaced = {**_REPLACED, **family}
    return next((replaced[name] for name in config.get("architectures") or () if name in replaced), None)
