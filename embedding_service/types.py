"""The vocabulary of the service: enums and frozen dataclasses that every layer shares.

No behaviour, no I/O and no import of another module of this package.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    TokenIds = npt.NDArray[np.int32]


class Output(StrEnum):
    """A kind of result that a model can give for one input."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    SCORE = "score"
    HIDDEN_STATES = "hidden_states"


PER_TOKEN = frozenset({Output.COLBERT, Output.HIDDEN_STATES})
"""Outputs with a vector for each token."""


class InputType(StrEnum):
    """What a text is for: asymmetric models embed queries and documents differently."""

    QUERY = "query"
    DOCUMENT = "document"


class Truncate(StrEnum):
    """What to do with an input that is longer than the model's context."""

    ERROR = "error"
    LEFT = "left"
    RIGHT = "right"
    CHUNK_MEAN = "chunk_mean"


class EmbedDtype(StrEnum):
    """The number format of a returned vector; see `core.vectors.quantise`."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"


class Encoding(StrEnum):
    """How numbers are written in an answer."""

    FLOAT = "float"
    BASE64 = "base64"


class TokenIdPolicy(StrEnum):
    """How inputs that are sent as token ids are read."""

    CL100K = "cl100k_base"
    NATIVE = "native"
    REJECT = "reject"


class Priority(StrEnum):
    """Whether somebody waits for the answer, or a pipeline collects it.

    ALONE is for a job that was in the engine when it died: no other job shares its steps.
    """

    INTERACTIVE = "interactive"
    BULK = "bulk"
    ALONE = "alone"


class Field(StrEnum):
    """A field of a request that every dialect calls by a name of its own.

    Messages and `param` hold the value as a placeholder, which becomes the dialect's name when the
    error is written.
    """

    INPUT = "{input}"
    DOCUMENTS = "{documents}"
    DIMENSIONS = "{dimensions}"
    TRUNCATE = "{truncate}"  # the values that cut an input instead of refusing it


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """One embedding request, free of any dialect.

    `inputs` are all texts or all lists of token ids. `outputs` is never empty; HIDDEN_STATES stands
    in it alone, and knows no `dimensions`, `normalize` and `embed_dtype`. `more_dtypes` are formats
    that the dialect itself will make of the float32 vectors. Errors about inputs name `field`. The
    last `queries` of the inputs are no items of the list that the client sent, and do not count where
    that is limited.
    """

    model: str | None
    inputs: list[str] | list[list[int]]
    outputs: frozenset[Output] = frozenset({Output.DENSE})
    dimensions: int | None = None
    instruction: str | None = None
    prompt_name: str | None = None
    input_type: InputType | None = None
    truncate: Truncate = Truncate.ERROR
    normalize: bool = True
    embed_dtype: EmbedDtype = EmbedDtype.FLOAT32
    more_dtypes: frozenset[EmbedDtype] = frozenset()
    encoding: Encoding = Encoding.FLOAT
    field: Field = Field.INPUT
    queries: int = 0


@dataclass(frozen=True, slots=True)
class Sparse:
    """Lexical weights of one input: `indices` sorted and unique, `values` > 0, both shape (k,)."""

    indices: npt.NDArray[np.int64]
    values: Floats


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer to an `EmbedJob`; every list runs in the order of its inputs.

    `dense` has shape (n, dimensions), or (n, dimensions / 8) for binary formats, in the dtype
    that was asked for; each item of `colbert` and `hidden_states` has shape (tokens, dimensions).
    What was not asked for is None. `ranges` (2, dimensions) is what int8 and uint8 are scaled by, see
    `core.vectors.quantise`. `tokens` counts what the model read, prompt and special tokens included;
    `cached` tells which inputs it had read before.
    """

    model: str
    tokens: list[int]
    dense: npt.NDArray[np.generic] | None = None
    sparse: list[Sparse] | None = None
    colbert: list[npt.NDArray[np.generic]] | None = None
    hidden_states: list[Floats] | None = None
    ranges: Floats | None = None
    truncated: tuple[int, ...] = ()
    chunked: tuple[int, ...] = ()
    token_ids_read_as: TokenIdPolicy | None = None
    cached: list[bool] = dataclasses.field(default_factory=list)
    engine_s: float = 0.0

    @property
    def total_tokens(self) -> int:
        """Tokens that the model read for this request."""
        return sum(self.tokens)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a key belongs to, and what it may do. None: all models, no limit beyond everybody's.

    `requests` and `tokens` are rates such as `100/minute`.
    """

    name: str
    models: frozenset[str] | None = None
    requests: str | None = None
    tokens: str | None = None

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether one of these names of a model is allowed."""
        return self.models is None or not self.models.isdisjoint(names)


ANYONE = Tenant("anonymous")


@dataclass(frozen=True, slots=True)
class RerankJob:
    """One reranking request, free of any dialect: pairs of query and document.

    `weights` (dense, sparse, ColBERT) asks a BGE-M3 model for the weighted sum of its three
    similarities; without them it scores by MaxSim alone. Over-long queries and documents are cut on
    the right, or refused.
    """

    model: str | None
    pairs: list[tuple[str, str]]
    instruction: str | None = None
    max_tokens_per_document: int | None = None
    weights: tuple[float, float, float] | None = None
    cut_queries: bool = False
    cut_documents: bool = True


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a `RerankJob`: one raw score per pair, in the order sent.

    `logits` tells that a score is a logit, of which the sigmoid is a probability; similarities of
    late interaction are none.
    """

    model: str
    values: Floats
    tokens: int
    truncated: tuple[int, ...]
    logits: bool
    engine_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a client may know of a served model."""

    name: str
    aliases: tuple[str, ...]
    created: int
    dimension: int | None
    max_tokens: int
    outputs: tuple[Output, ...]
    prompt_names: tuple[str, ...]
    matryoshka: bool
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids on their way to an engine; `deadline` is on the monotonic clock, in seconds.

    `boundaries` holds, for pairs, how many tokens belong to the first segment (token type 0).
    """

    ids: list[TokenIds]
    outputs: frozenset[Output]
    priority: Priority
    deadline: float
    boundaries: list[int] | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What an engine made of a `Batch`, in its order; what was not asked for is None.

    `dense` (n, dimension) is not normalised; each of `sparse` (tokens,) weighs every token, or
    (k, 2) holds token ids of the whole vocabulary and their weights; each of `colbert`
    (tokens - 1, dimension) has unit rows; each of `hidden_states` (tokens, dimension) is the last
    layer's output; `scores` (n, labels) are raw.
    """

    dense: Floats | None = None
    sparse: list[Floats] | None = None
    colbert: list[Floats] | None = None
    hidden_states: list[Floats] | None = None
    scores: Floats | None = None
    steps: int = 0
    queued_s: float = 0.0
