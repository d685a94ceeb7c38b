"""Engines with the same identity, one short text, are interchangeable to the last digit.

Deny-lists, so that an option which changes numbers counts though nobody thought of it here: too
many vectors computed anew cost time, one wrong vector costs trust.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions

# Prompts come before the token ids, cutting and scaling after the vectors; the place of the weights
# says nothing of their content.
_FACTS_WITHOUT_EFFECT = frozenset({
    "default_prompt_name", "family", "folder", "matryoshka", "normalizes", "prompts",
})  # fmt: skip

# The worker's facts say what these came to, "auto" and names resolved.
_OPTIONS_IN_FACTS = frozenset({
    "engine", "device", "dtype", "max_model_len", "model_name", "model_path", "revision", "task",
})  # fmt: skip
# These concern time and memory, or the service: before token ids and after raw vectors.
_OPTIONS_OF_SERVICE = frozenset({
    "aliases", "batch_timeout_ms", "calibration_file", "default_instruction", "devices",
    "expected_dimension", "gpu_memory_utilization", "instruction_template", "matryoshka",
    "replicas", "required", "startup_timeout_s", "token_ids",
})  # fmt: skip
OPTIONS_WITHOUT_EFFECT = _OPTIONS_IN_FACTS | _OPTIONS_OF_SERVICE
# Of `engine_args`: logging; how weights reach the device, not which; memory and wiring.
ARGUMENTS_WITHOUT_EFFECT = frozenset({
    "aggregate_engine_logging", "collect_detailed_traces", "cudagraph_metrics",
    "disable_log_stats", "enable_layerwise_nvtx_tracing", "enable_logging_iteration_details",
    "enable_mfu_metrics", "kv_cache_metrics", "kv_cache_metrics_sample", "log_config_file",
    "log_level", "logging_config", "otlp_traces_endpoint", "profiler_config",
    "served_model_name", "show_hidden_metrics_for_version", "use_tqdm_on_load",
    "download_dir", "hf_token", "max_parallel_loading_workers", "safetensors_load_strategy",
    "safetensors_prefetch_block_size", "safetensors_prefetch_num_threads",
    "cpu_offload_gb", "device_ids", "distributed_timeout_seconds", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "master_addr", "master_port", "numa_bind", "numa_bind_cpus",
    "numa_bind_nodes", "shutdown_timeout",
})  # fmt: skip

# These change the order in which floats are summed, and with it the last digits. Results in a
# cache must not mix; vectors that are kept for years may. The second set is of `engine_args`.
OPTIONS_OF_ROUNDING = frozenset({"enforce_eager", "max_batch_size", "tensor_parallel_size"})
ARGUMENTS_OF_ROUNDING = frozenset({
    "async_scheduling", "attention_backend", "block_size", "compilation_config",
    "cudagraph_capture_sizes", "disable_custom_all_reduce", "distributed_executor_backend",
    "enable_chunked_prefill", "enable_flashinfer_autotune", "enable_prefix_caching",
    "enforce_eager", "max_cudagraph_capture_size", "max_num_batched_tokens", "max_num_seqs",
    "num_gpu_blocks_override", "optimization_level", "performance_mode",
    "pipeline_parallel_size", "scheduling_policy", "tensor_parallel_size",
})  # fmt: skip


def identity(options: ModelOptions, facts: ModelFacts) -> str:
    """Return the fingerprint of weights, number format, pooling, engine, and kind of device."""
    known = msgspec.structs.asdict(facts)
    for name in _FACTS_WITHOUT_EFFECT:
        del known[name]
    chosen = options.model_dump(mode="json", exclude=set(OPTIONS_WITHOUT_EFFECT))
    chosen["engine_args"] = without(options.engine_args, ARGUMENTS_WITHOUT_EFFECT)
    text = msgspec.json.encode([known, chosen], order="deterministic")
    return hashlib.sha256(text).hexdigest()[:32]


def without(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return the entries that have other names."""
    return {name: value for name, value in values.items() if name not in names}
