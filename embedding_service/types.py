"""The vocabulary of the service: enums and frozen dataclasses that every layer shares.

No behaviour, no I/O and no import of another module of this package.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

Json = dict[str, Any]  # an object of a document, or a tree of settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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


if TYPE_CHECKING:
    # One input's results, each a number of rows of one width. Dense: one row, not normalised.
    # Sparse: a row for each token that counts: its id and its weight. ColBERT: a row of length 1
    # for each token but the first. Score: one row of raw scores. Hidden states: the last layer's,
    # a row for each token. `service/outputs.py` says what becomes of them.
    Rows = dict[Output, Floats]


class InputType(StrEnum):
    """The use of a text: asymmetric models embed queries and documents differently."""

    QUERY = "query"
    DOCUMENT = "document"


class Truncate(StrEnum):
    """The treatment of an input that is longer than the model's context.

    MODEL cuts at the end that the model's tokenizer names (`truncation_side`), as libraries do that
    call it: at the left a prompt goes first.
    """

    ERROR = "error"
    LEFT = "left"
    RIGHT = "right"
    MODEL = "model"
    CHUNK_MEAN = "chunk_mean"


class EmbedDtype(StrEnum):
    """The number format of a returned vector; see `service.vectors.quantise`."""

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
    TRUNCATE = "{truncate}"  # the setting of a field that has over-long inputs cut


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """One embedding request, free of any dialect.

    `inputs` are all texts or all lists of token ids. `outputs` is never empty; HIDDEN_STATES is
    alone in it, and knows no `dimensions`, `normalize` and `embed_dtype`. `more_dtypes` are formats
    that the dialect itself will make of the float32 vectors. Errors about inputs name `field`. The
    last `queries` of the inputs are not from the list that the client sent, so a limit on its
    length does not count them. Inputs of more than `max_tokens` are cut, also where they would fit.
    `layer_norm` comes before a cut to `dimensions`; the service fills it in, from the model's
    family.
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
    max_tokens: int | None = None
    layer_norm: bool = False


@dataclass(frozen=True, slots=True)
class Sparse:
    """Lexical weights of one input: `indices` sorted and unique, `values` > 0, both shape (k,)."""

    indices: npt.NDArray[np.int64]
    values: Floats


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer to an `EmbedJob`; all that is in it runs in the order of its inputs.

    `by_output` holds what was asked for; the properties name it, and are None for the rest.
    `ranges` (2, dimensions) is what int8 and uint8 are scaled by, see `vectors.quantise`. `tokens`
    counts what the model read, prompt and special tokens included; `cached` tells which inputs it
    had read before. `ignored` names fields of the job that changed nothing for this model.
    """

    model: str
    tokens: list[int]
    by_output: Mapping[Output, Any]
    ranges: Floats | None = None
    truncated: tuple[int, ...] = ()
    chunked: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()
    token_ids_read_as: TokenIdPolicy | None = None
    cached: list[bool] = dataclasses.field(default_factory=list)
    engine_s: float = 0.0

    @property
    def dense(self) -> npt.NDArray[np.generic] | None:
        """Shape (n, dimensions), or (n, dimensions / 8) for binary formats."""
        return cast("npt.NDArray[np.generic] | None", self.by_output.get(Output.DENSE))

    @property
    def sparse(self) -> list[Sparse] | None:
        """Lexical weights."""
        return cast("list[Sparse] | None", self.by_output.get(Output.SPARSE))

    @property
    def colbert(self) -> list[npt.NDArray[np.generic]] | None:
        """For each input (tokens - 1, dimensions), in the dtype asked for."""
        return cast("list[npt.NDArray[np.generic]] | None", self.by_output.get(Output.COLBERT))

    @property
    def hidden_states(self) -> list[Floats] | None:
        """For each input (tokens, dimensions)."""
        return cast("list[Floats] | None", self.by_output.get(Output.HIDDEN_STATES))

    @property
    def total_tokens(self) -> int:
        """Tokens that the model read for this request."""
        return sum(self.tokens)


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of a key, and their rights. None: all models, no limit beyond everybody's.

    `requests` and `tokens` are rates such as `100/minute`. With `spaces`, vectors have to be in one
    of these, by the digits of its id.
    """

    name: str
    models: frozenset[str] | None = None
    requests: str | None = None
    tokens: str | None = None
    spaces: frozenset[str] | None = None

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether one of these names of a model is allowed."""
        return self.models is None or not self.models.isdisjoint(names)


ANYONE = Tenant("anonymous")


@dataclass(frozen=True, slots=True)
class RerankJob:
    """One reranking request, free of any dialect: pairs of query and document.

    `weights` (dense, sparse, ColBERT) asks a BGE-M3 model for the weighted sum of its three
    similarities; without them it scores by MaxSim alone. Over-long queries and documents are cut on
    the right, or refused. With `cut_longest` a token is taken from the longer of the two until they
    fit, from the `left` or the right end: how tokenizers and TEI cut pairs. `max_tokens` bounds
    a whole pair.
    """

    model: str | None
    pairs: list[tuple[str, str]]
    instruction: str | None = None
    max_tokens_per_document: int | None = None
    weights: tuple[float, float, float] | None = None
    cut_queries: bool = False
    cut_documents: bool = True
    cut_longest: bool = False
    left: bool = False
    max_tokens: int | None = None


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
class Batch:
    """Token ids on their way to an engine; `deadline` is on the monotonic clock, in seconds.

    `boundaries` holds, for pairs, how many tokens belong to the first segment (token type 0).
    """

    ids: list[TokenIds]
    outputs: frozenset[Output]
    priority: Priority
    deadline: float
    boundaries: list[int] | None = None

    def select(self, indices: Sequence[int]) -> Batch:
        """Return the inputs at `indices`, which ascend."""
        if len(indices) == len(self.ids):
            return self
        boundaries = self.boundaries and [self.boundaries[i] for i in indices]
        ids = [self.ids[i] for i in indices]
        return dataclasses.replace(self, ids=ids, boundaries=boundaries)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The rows that an engine computed for each input of a `Batch`, in its order.

    `steps` is the number of engine steps between the arrival of the batch and its end, `queued_s`
    the time until its first input was computed.
    """

    results: list[Rows]
    steps: int = 0
    queued_s: float = 0.0
