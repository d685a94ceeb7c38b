"""Settings of one model: how it is loaded and run, and how requests to it are read.

Imported by workers too, and therefore without the modules that read files and variables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import NoDecode

from embedding_service.types import InputType, TokenIdPolicy

_Item = TypeVar("_Item")


def comma_separated(value: object) -> object:
    """Return the parts of a text; anything else as it is."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


CommaSeparated = Annotated[tuple[_Item, ...], NoDecode, BeforeValidator(comma_separated)]


def _alias_mapping(value: object) -> object:
    value = comma_separated(value)
    if not isinstance(value, list):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of names; put a number in quotes")
    return {name: {} for name in value}


class Strict(BaseModel):
    """Knows its fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AliasSettings(Strict):
    """Another name for a model, with the prompt that requests under this name get by default."""

    instruction: str | None = None
    input_type: InputType | None = None
    prompt_name: str | None = None


class EngineOptions(Strict):
    """How one model is loaded and run; at the top level, defaults for the entries of `models`."""

    engine: Literal["vllm", "fake"] = Field(
        "vllm", description="`fake` gives made-up vectors at once, for tests."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where the model runs.")
    devices: CommaSeparated[int] = Field(
        (), description="CUDA device numbers; replicas take them in turn. Empty: all visible ones."
    )
    replicas: int = Field(1, ge=1, le=64, description="Engine processes for the model.")
    dtype: Literal["auto", "half", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 where the hardware computes in it, else float32; "
        "half: float16 on CUDA, else float32.",
    )
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="Devices that share one replica.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of a device that one replica may take at most."
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest input in tokens; default: the model's own."
    )
    max_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Most texts in one engine step."
    )
    batch_timeout_ms: float = Field(
        10, ge=0, le=1000, description="Longest that an idle engine gathers requests on their way."
    )
    enforce_eager: bool | Literal["auto"] = Field(
        "auto", description="Run without compilation; auto: encoders on a CPU do."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    engine_args: dict[str, Any] = Field(
        {}, description="Passed on to vLLM's EngineArgs; its own statistics and traces stay off."
    )
    startup_timeout_s: float = Field(
        1800, gt=0, description="Longest that download, load and warm-up may take together."
    )


class ModelOptions(EngineOptions):
    """One served model."""

    model_name: str = Field(
        "Qwen/Qwen3-Embedding-0.6B",
        min_length=1,
        description="Public name and hub id; a model_path without one goes by its folder.",
    )
    model_path: str | None = Field(
        None, description="Local folder, or `package:NAME/FOLDER`; wins over the hub."
    )
    aliases: Annotated[dict[str, AliasSettings], BeforeValidator(_alias_mapping), NoDecode] = Field(
        {}, description="Further public names: a list, or name → default prompt."
    )
    task: Literal["auto", "embed", "rerank"] = Field(
        "auto", description="Embed texts or score pairs; auto: as the model's files say."
    )
    score_label: str | None = Field(
        None, description="The label whose logit is the score, for a classifier with several."
    )
    required: bool | None = Field(
        None, description="Whether readiness waits for this model; default: for the first one only."
    )
    instruction_template: str | None = Field(
        None,
        pattern=r"\{instruction\}",
        description="How an instruction precedes a text (`{instruction}`); default: by family.",
    )
    default_instruction: str | None = Field(
        None, description="Instruction of requests with `input_type: query` that bring none."
    )
    matryoshka: bool | None = Field(
        None, description="Whether `dimensions` may cut vectors; default: by family."
    )
    calibration_file: Path | None = Field(
        None,
        description="JSON file: `min` and `max` of each dimension, the range of int8 and uint8.",
    )
    canary_file: Path | None = Field(
        None, description="Pinned vectors that each worker has to come near, now and then again."
    )
    expected_dimension: int | None = Field(
        None, ge=1, description="Refuse to start if vectors have another size."
    )
    token_ids: TokenIdPolicy = Field(
        TokenIdPolicy.CL100K, description="How token ids in requests are read."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_by_folder(cls, data: object) -> object:
        """Call a model by its folder's name if no other is given: it is not the default model."""
        if not isinstance(data, dict) or "model_name" in data:
            return data
        path = data.get("model_path")
        name = Path(path.removeprefix("package:")).absolute().name if isinstance(path, str) else ""
        return {**data, "model_name": name} if name else data

    @property
    def names(self) -> tuple[str, ...]:
        """The public name and all aliases."""
        return (self.model_name, *self.aliases)
