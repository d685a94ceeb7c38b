"""The arguments of vLLM's engine: our options, completed by what model and machine are."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from pydantic import ValidationError
from vllm import EngineArgs
from vllm.config import ModelConfig

from embedding_service.families.architectures import PADDED_POSITIONS
from embedding_service.families.models import plugin
from embedding_service.families.refusals import check_class, check_compared
from embedding_service.worker import memory
from embedding_service.worker.backend import ModelRefused

if TYPE_CHECKING:
    from embedding_service.families.plan import Plan
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Json


# In the configurations of models that compute positions, and learn none.
_COMPUTED_POSITIONS: Final = ("rope_parameters", "rope_theta", "rotary_emb_base", "alibi")
_DECODERS: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
BATCH_TEXTS: Final = {"cpu": 32, "cuda": 256}
BATCH_TOKENS: Final = {"cpu": 2048, "cuda": 16384}
# Each text ends in a block of the cache of its own.
_BLOCK_TOKENS: Final = {"cpu": 64, "cuda": 16}
# Ways to read the weights that the plan and the vector space were made of, and arguments that name
# files which neither has seen.
_LOADS_THE_SAME: Final = frozenset({
    "auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer",
})  # fmt: skip
_FORMAT: Final = "hf"  # "auto" prefers Mistral's own files, which nobody has compared
_OTHER_FILES: Final = (
    "model", "model_weights", "tokenizer", "tokenizer_revision", "hf_config_path",
)  # fmt: skip
# On CUDA the next step is prepared while the device computes one; a CPU does both itself.
STEPS_AHEAD: Final = {"cpu": 1, "cuda": 2}
# On a CPU vLLM asks at the start whether so much of the memory is free, and takes what it needs.
_MOST: Final = {"cpu": 0.4, "cuda": 1.0}


def engine_arguments(plan: Plan, options: ModelOptions, device: str) -> EngineArgs:
    """Return what vLLM is started with, to serve a model as planned.

    Raises `ModelRefused` about a wrong entry of `engine_args`.
    """
    _check_sources(options.engine_args)
    plugin.register()
    _limit_texts(plan)
    own = _pooling(plan) | options.engine_args | {"hf_overrides": plan.overrides}
    if own.get("load_format") == "auto":
        own["load_format"] = _FORMAT
    try:
        args = EngineArgs(**_settings(plan.model, options, device) | own)
    except TypeError as error:
        wrong = first_line(error).replace("EngineArgs.__init__() ", "")
        raise ModelRefused(f"engine_args: {wrong}") from error
    _complete(args, plan, options, device)
    return args


def _limit_texts(plan: Plan) -> None:
    """Have vLLM take the plan's `max_seq_length`.

    It reads the file itself, also where sentence-transformers does not (without a modules.json),
    and takes a null for a number.
    """
    told = None if plan.max_seq_length is None else {"max_seq_length": plan.max_seq_length}
    ModelConfig._get_encoder_config = lambda _: told  # noqa: SLF001 - it has no option


def _check_sources(arguments: Json) -> None:
    """Raise `ModelRefused` for files that were not looked at: vectors would be of another model."""
    if named := next((name for name in _OTHER_FILES if name in arguments), None):
        raise ModelRefused(
            f"engine_args: {named} names files that nobody has compared; put them into the folder "
            "of model_path"
        )
    form = arguments.get("load_format", "auto")
    if form not in _LOADS_THE_SAME:
        raise ModelRefused(
            f"engine_args: load_format {form!r} reads other files than safetensors, by which "
            f"the model is known; use one of {', '.join(sorted(_LOADS_THE_SAME))}"
        )


def _pooling(plan: Plan) -> Json:
    return {} if plan.pooling is None else {"pooler_config": {"seq_pooling_type": plan.pooling}}


def _settings(model: str, options: ModelOptions, device: str) -> Json:
    """Return what our options say."""
    automatic = options.max_batch_size == "auto"
    ahead = STEPS_AHEAD[device]
    return {
        "model": model,
        "served_model_name": options.model_name,
        "runner": "pooling",
        "dtype": _dtype(options, device),
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": min(options.gpu_memory_utilization, _MOST[device]),
        "revision": options.revision,
        "load_format": _FORMAT,
        "trust_remote_code": options.trust_remote_code,
        "max_num_seqs": ahead * (BATCH_TEXTS[device] if automatic else options.max_batch_size),
        "async_scheduling": ahead > 1,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }


def _complete(args: EngineArgs, plan: Plan, options: ModelOptions, device: str) -> None:
    """Fill in what depends on the model's own configuration."""
    model_config = args.create_model_config()
    _check_class(model_config, plan, options)
    decoder = model_config.attn_type == "decoder"
    _check_parts(args, model_config)
    limit = _limit(args, plan)
    args.max_model_len = min(model_config.max_model_len, _positions(model_config.hf_config), limit)
    _check_rotary(model_config.hf_config, args.max_model_len)
    _check_window(model_config.hf_config, args.max_model_len)
    if "max_num_batched_tokens" not in options.engine_args:
        args.max_num_batched_tokens = max(BATCH_TOKENS[device], args.max_model_len)
    if "enforce_eager" not in options.engine_args:
        args.enforce_eager = _eager(options, device=device, decoder=decoder)
    shape = _shape(args, model_config.dtype, device)
    if decoder and args.kv_cache_memory_bytes is None:
        # Pooling keeps no token after its step: room for the steps in flight, and no share.
        block = _BLOCK_TOKENS[device]
        args.kv_cache_memory_bytes = memory.cache_bytes(model_config, shape, block=block)
    if device == "cuda" and Path(args.model).is_dir():
        args.gpu_memory_utilization = _share(args, model_config, shape, options)


def _check_class(model_config: ModelConfig, plan: Plan, options: ModelOptions) -> None:
    """Raise `ModelRefused` about a class that nobody has compared, unless a task is asked for."""
    check_class(model_config.architecture, model_config.hf_config.model_type, scores=plan.scores)
    if options.task == "auto" and not model_config.architecture.startswith("Transformers"):
        check_compared(plan.architecture, scores=plan.scores)


def _check_parts(args: EngineArgs, model_config: ModelConfig) -> None:
    """Raise `ModelRefused` if texts are to be computed in parts, of which each sees itself only."""
    if args.enable_chunked_prefill and not model_config.is_chunked_prefill_supported:
        raise ModelRefused(
            "engine_args: enable_chunked_prefill computes a long text in parts, and this model "
            "needs all of it at once"
        )


def _share(
    args: EngineArgs, model_config: Any, shape: memory.Shape, options: ModelOptions
) -> float:
    """Return the share of each device that the model takes. Raises `MemoryError`."""
    cache = args.kv_cache_memory_bytes or 0
    taken = memory.need(args.model, model_config, shape, cache=cache)
    free, total = torch.cuda.mem_get_info()
    return memory.share(taken, options, free=free, total=total)


def _limit(args: EngineArgs, plan: Plan) -> int:
    """Return the tokenizer's limit, at which sentence-transformers cuts; vLLM passes over it.

    An operator's `max_model_len` counts in its place.
    """
    own = args.max_model_len not in (None, -1)
    return sys.maxsize if own or plan.max_tokens is None else plan.max_tokens


def _positions(hf_config: Any) -> int:
    """Return how many tokens learned position embeddings reach; without any, no end.

    A model's `max_seq_length` may promise more, and an input in between would end the engine with
    an index error. RoBERTa's begin behind the padding id, which vLLM does not subtract.
    """
    kind = getattr(hf_config, "position_embedding_type", None) or "absolute"
    learned = getattr(hf_config, "max_position_embeddings", None)
    computed = any(getattr(hf_config, name, None) for name in _COMPUTED_POSITIONS)
    if kind != "absolute" or computed or learned is None:
        return sys.maxsize
    if hf_config.model_type in PADDED_POSITIONS:
        learned -= hf_config.pad_token_id + 1
    return int(learned)


def _check_rotary(hf_config: Any, tokens: int) -> None:
    """Raise `ModelRefused` if rotary positions go by each text's length, and vLLM's do not.

    transformers turns to others beyond a length, and vLLM has one kind for all of up to `tokens`.
    """
    told = getattr(hf_config, "rope_parameters", None) or {}
    # One for each type of layer, or for all.
    for parameters in [told, *(part for part in told.values() if isinstance(part, dict))]:
        kind = str(parameters.get("rope_type"))
        reach = {
            "dynamic": getattr(hf_config, "max_position_embeddings", None),
            "longrope": parameters.get("original_max_position_embeddings"),
        }.get(kind)
        if reach is not None and tokens > reach:
            raise ModelRefused(
                f"config.json says rope_type: {kind}, whose positions are others in texts of more "
                f"than {reach} tokens, and vLLM has one kind for all up to {tokens}; set "
                f"max_model_len: {reach}"
            )


def _check_window(hf_config: Any, tokens: int) -> None:
    """Raise `ModelRefused` if a decoder that attends both ways is to attend within a window.

    In these vLLM's classes look over the whole text, or back only.
    """
    window = getattr(hf_config, "sliding_window", None)
    both_ways = getattr(hf_config, "is_causal", None) is False
    if both_ways and hf_config.model_type in _DECODERS and window is not None and tokens > window:
        raise ModelRefused(
            f"config.json says is_causal: false and sliding_window: {window}, and vLLM's class has "
            f"not both; for shorter texts, in which they are the same, set max_model_len: {window}"
        )


def _dtype(options: ModelOptions, device: str) -> str:
    """Resolve `auto`: float16 can overflow and bfloat16 without hardware was 7 times slower."""
    if options.dtype == "half":
        return "float16" if device == "cuda" else "float32"
    if options.dtype != "auto":
        return options.dtype
    if device == "cuda":
        ampere_or_later = torch.cuda.get_device_capability() >= (8, 0)
        return "bfloat16" if ampere_or_later else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", flags) else "float32"


def _eager(options: ModelOptions, *, device: str, decoder: bool) -> bool:
    if options.enforce_eager != "auto":
        return options.enforce_eager
    if device == "cuda":
        return False
    return not decoder or shutil.which("c++") is None


def _shape(args: EngineArgs, dtype: torch.dtype, device: str) -> memory.Shape:
    """Return the largest step that the engine will be given."""
    tokens = max(args.max_model_len or 0, args.max_num_batched_tokens or 0)
    texts = args.max_num_seqs or 1
    # A CPU's ranks share its memory, and their parts count together.
    ranks = args.tensor_parallel_size if device == "cuda" else 1
    return memory.Shape(tokens, texts, STEPS_AHEAD[device], dtype.itemsize, ranks)


def first_line(error: BaseException) -> str:
    """Return what an error says, shortly."""
    if isinstance(error, ValidationError):
        return _first_fault(error)
    text = str(error).strip()
    return text.splitlines()[0].strip()[:500] if text else type(error).__name__


def _first_fault(error: ValidationError) -> str:
    """Return the first fault alone: the error's text has a count and the whole input too."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{first['loc'][0]}: {first['msg']}" if first["loc"] else message
