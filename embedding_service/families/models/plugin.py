"""How vLLM learns of our architectures; it loads the classes itself, from strings given here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from transformers import AutoConfig, PreTrainedConfig
from vllm import ModelRegistry
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from embedding_service.families import architectures as ours
from embedding_service.families import weights

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLASSES: Final[Mapping[str, str]] = {
    ours.BERT: "embedding_service.families.models.bert:HeadlessBertModel",
    ours.BGE_M3: "embedding_service.families.models.bge_m3:BgeM3Model",
    ours.DISTIL: "embedding_service.families.models.bert:DistilBertModel",
    ours.DISTIL_SPLADE: "embedding_service.families.models.bert:DistilSpladeModel",
    ours.HEADLESS: "embedding_service.families.models.heads:HeadlessWrapper",
    ours.JINA: "embedding_service.families.models.rotary:JinaModel",
    ours.GTE_PAIRS: "embedding_service.families.models.rotary:GteReranker",
    ours.SPLADE: "embedding_service.families.models.splade:SpladeModel",
    ours.ROBERTA: "embedding_service.families.models.roberta:PaddingAwareModel",
    ours.ROBERTA_PAIRS: "embedding_service.families.models.roberta:PaddingAwareReranker",
}
# Where a CPU has AMX, vLLM multiplies small weights, meant to be routers of experts, by a kernel of
# its own. Its bound of 1 MiB also takes in half of MiniLM's, for which that kernel needs 1.3 times
# the time of oneDNN's when the tokens are many (docs/notebook/experiments.md).
_ROUTER_BYTES: Final = 64 << 10
_CPU_ATTENTION: Final = "embedding_service.worker.cpu_attention.Backend"


class NewConfig(PreTrainedConfig):
    """The configuration of GTE's "new" models, in place of their repositories' code.

    It keeps the keys of config.json as they are; vLLM asks for a class of this name.
    """

    model_type = "new"


def _chosen(files: list[str], *_: str) -> list[str]:
    """Return those of vLLM's weight files that transformers loads.

    vLLM takes whatever ends in .safetensors, copies in another precision and left-over shards too.
    """
    names = weights.chosen(Path(files[0]).parent) if files else set()
    return [file for file in files if Path(file).name in names] or files


def register() -> None:
    """Tell this process's vLLM of our architectures; the `vllm.general_plugins` entry point.

    vLLM calls it in every process, the tensor-parallel workers included, and more than once.
    """
    # Imported here because it imports torch's compiler.
    from vllm.model_executor.layers import utils  # noqa: PLC0415
    from vllm.model_executor.model_loader import default_loader  # noqa: PLC0415

    utils._CPU_SGL_GEMM_MAX_WEIGHT_BYTES = _ROUTER_BYTES  # noqa: SLF001
    default_loader.filter_duplicate_safetensors_files = _chosen
    default_loader.filter_files_not_needed_for_inference = _chosen
    register_backend(AttentionBackendEnum.CPU_ATTN, _CPU_ATTENTION)
    AutoConfig.register(NewConfig.model_type, NewConfig, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for architecture, path in _CLASSES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, path)
