"""All that is asked of a bulk job, beside its inputs and its model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import orjson

from embedding_service.types import EmbedDtype, EmbedJob, InputType, Output, Truncate

# 30 MB of vectors at 384 dimensions, a minute of a CPU, three seconds of a GPU.
ROWS_PER_PART = 20_000


class InputFormat(StrEnum):
    """How an input is read."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CSV = "csv"
    TSV = "tsv"
    LINES = "lines"


class OutputFormat(StrEnum):
    """How parts are written."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    NPY = "npy"


class BadLines(StrEnum):
    """The treatment of a line that is no JSON object or no row of its table."""

    STOP = "stop"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """One job. `id_column`: None for the column `id` if there is one, "" for the row's number.

    `truncate`: None for what a server does, and an error from an engine.
    """

    column: str = "text"
    id_column: str | None = None
    outputs: tuple[Output, ...] = (Output.DENSE,)
    input_type: InputType | None = None
    instruction: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    embed_dtype: EmbedDtype = EmbedDtype.FLOAT32
    truncate: Truncate | None = None
    normalize: bool = True
    format: OutputFormat = OutputFormat.PARQUET
    rows_per_part: int = ROWS_PER_PART
    bad_lines: BadLines = BadLines.STOP

    def job(self, texts: list[str], model: str | None = None) -> EmbedJob:
        """Return the request for some of the texts."""
        return EmbedJob(
            model=model,
            inputs=texts,
            outputs=frozenset(self.outputs),
            dimensions=self.dimensions,
            instruction=self.instruction,
            prompt_name=self.prompt_name,
            input_type=self.input_type,
            truncate=self.truncate or Truncate.ERROR,
            normalize=self.normalize,
            embed_dtype=self.embed_dtype,
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides about the content of parts, as JSON has it."""
        known: dict[str, Any] = orjson.loads(orjson.dumps(asdict(self)))
        # A part with a bad line is never written, unless it is skipped.
        del known["bad_lines"]
        return known
