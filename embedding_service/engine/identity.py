"""A loaded model, and what it contributes to its two ids, see `service/vector_space.py`.

Deny-lists: an option or a fact that nobody thought of here counts into the space, for a vector
that is computed anew costs time, and one that is searched for in the wrong index costs trust.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from embedding_service import __version__
from embedding_service.settings.space_ids import HEX_DIGITS

if TYPE_CHECKING:
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions

    Plain = dict[str, Any]

# How the files are computed, and by what: the same vectors but for their last digits. vLLM names
# its class and may have another one for the same files in another version, and a version of ours
# may add a kind of output, which leaves the others as they are.
_FACTS_OF_BUILD = frozenset({
    "architecture", "device", "dtype", "engine_version", "model_type", "outputs",
})  # fmt: skip
# The contents of the files count as `weights`, whatever the hub calls them; the service has the
# sizes that `matryoshka` comes to.
_FACTS_WITHOUT_EFFECT = frozenset({"matryoshka", "revision"})

# The worker's facts say what these came to, "auto" and names resolved.
_OPTIONS_IN_FACTS = frozenset({
    "engine", "device", "dtype", "max_model_len", "model_name", "model_path", "revision", "task",
})  # fmt: skip
# These concern time, memory and readiness, or a choice of the request's; the service adds the
# ranges in `calibration_file` and the sizes that `matryoshka` allows.
_OPTIONS_OF_SERVICE = frozenset({
    "aliases", "batch_timeout_ms", "calibration_file", "canary_file", "devices",
    "expected_dimension", "gpu_memory_utilization", "matryoshka", "replicas", "required",
    "startup_timeout_s",
})  # fmt: skip
OPTIONS_WITHOUT_EFFECT = _OPTIONS_IN_FACTS | _OPTIONS_OF_SERVICE
# Of `engine_args`: in the facts; logging; how weights reach the device, not which; memory, wiring.
ARGUMENTS_WITHOUT_EFFECT = frozenset({
    "dtype", "max_model_len",
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
OPTIONS_OF_BUILD = frozenset({"enforce_eager", "max_batch_size", "tensor_parallel_size"})
ARGUMENTS_OF_BUILD = frozenset({
    "async_scheduling", "attention_backend", "block_size", "compilation_config",
    "cudagraph_capture_sizes", "disable_custom_all_reduce", "distributed_executor_backend",
    "enable_chunked_prefill", "enable_flashinfer_autotune", "enable_prefix_caching",
    "enforce_eager", "max_cudagraph_capture_size", "max_num_batched_tokens", "max_num_seqs",
    "num_gpu_blocks_override", "optimization_level", "performance_mode",
    "pipeline_parallel_size", "scheduling_policy", "tensor_parallel_size",
})  # fmt: skip


class Ingredients(NamedTuple):
    """Plain values: those of the space, which decide the direction of vectors, and of the build."""

    space: Plain
    build: Plain


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model; `build` is its second id, see `service/vector_space.py`."""

    facts: ModelFacts
    tokenizer_json: bytes
    ingredients: Ingredients
    build: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", digest(self.ingredients.build))

    @classmethod
    def of(cls, options: ModelOptions, facts: ModelFacts, tokenizer_json: bytes) -> LoadedModel:
        """Name what a worker has said of itself."""
        return cls(facts, tokenizer_json, of_engine(options, facts, tokenizer_json))


def of_engine(options: ModelOptions, facts: ModelFacts, tokenizer_json: bytes) -> Ingredients:
    """Return what a model, as loaded, contributes to both.

    Defaults are left out, so that the next version's new options and facts change no id.
    """
    chosen = options.model_dump(
        mode="json", exclude={*OPTIONS_WITHOUT_EFFECT, "engine_args"}, exclude_defaults=True
    )
    arguments = _without(options.engine_args, ARGUMENTS_WITHOUT_EFFECT)
    known = _without(_non_default(facts), _FACTS_WITHOUT_EFFECT)
    build = {"service": __version__, **_only(known, _FACTS_OF_BUILD)}
    build |= _only(chosen, OPTIONS_OF_BUILD)
    build |= _arguments(_only(arguments, ARGUMENTS_OF_BUILD))
    space = _without(known, _FACTS_OF_BUILD) | _without(chosen, OPTIONS_OF_BUILD)
    space |= _arguments(_without(arguments, ARGUMENTS_OF_BUILD))
    space["tokenizer"] = hashlib.sha256(tokenizer_json).hexdigest()
    return Ingredients(space, build)


def digest(ingredients: Plain) -> str:
    """Return the hexadecimal digits of an id; the order of the ingredients does not count."""
    text = msgspec.json.encode(ingredients, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:HEX_DIGITS]


def _non_default(facts: ModelFacts) -> Plain:
    """Return the facts that are no default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(facts)}
    found = msgspec.to_builtins(facts)
    return {name: value for name, value in found.items() if value != defaults[name]}


def _arguments(values: Plain) -> Plain:
    return {"engine_args": values} if values else {}


def _without(values: Plain, names: frozenset[str]) -> Plain:
    return {name: value for name, value in values.items() if name not in names}


def _only(values: Plain, names: frozenset[str]) -> Plain:
    return {name: value for name, value in values.items() if name in names}
