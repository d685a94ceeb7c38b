"""The fields, answers and errors of Hugging Face's text-embeddings-inference.

Shapes and defaults are those of https://huggingface.github.io/text-embeddings-inference/.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from embedding_service.dialects import embedding
from embedding_service.dialects.errors import EMPTY, ErrorShape, Failure, Written
from embedding_service.dialects.fields import BareFields, Fields, Lax
from embedding_service.errors import InvalidRequest, Overloaded, RateLimited, Unavailable
from embedding_service.types import EmbedJob, InputType, Output, RerankJob, Truncate

ErrorKind = Literal["Empty", "Validation", "Tokenizer", "Backend", "Overloaded", "Unhealthy"]
# Few requests name a model: these fields are at fault where it cannot do what was asked.
_OF_THE_MODEL = frozenset({"model", "return_sparse", "return_colbert"})


class TeiErrorResponse(BaseModel):
    """The error envelope of Hugging Face's text-embeddings-inference."""

    error: str
    error_type: ErrorKind


class TeiOpenAIErrorResponse(BaseModel):
    """The error envelope of its `/v1/embeddings`."""

    message: str
    code: int
    type: ErrorKind


def _write(failure: Failure) -> Written:
    status, kind = _status(failure)
    return status, {"error": failure.message, "error_type": kind}


def _status(failure: Failure) -> tuple[int, str]:
    """Return status and type, as router/src/http/server.rs has them (`From<&ErrorType>`)."""
    error, status = failure.error, failure.status
    if isinstance(error, InvalidRequest):
        if error.code == EMPTY:
            return 400, "Empty"
        cannot = error.param in _OF_THE_MODEL and error.code == "not_supported_by_model"
        return (424, "Backend") if cannot else (422, "Validation")
    if isinstance(error, Overloaded | RateLimited):
        return status, "Overloaded"
    if isinstance(error, Unavailable):
        return status, "Unhealthy"
    return (424, "Backend") if status >= 500 else (status, "Validation")  # noqa: PLR2004


def _write_openai(failure: Failure) -> Written:
    status, kind = _status(failure)
    return status, {"message": failure.message, "code": status, "type": kind}


ERRORS = ErrorShape(TeiErrorResponse, _write)
OPENAI_ERRORS = ErrorShape(TeiOpenAIErrorResponse, _write_openai)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Texts = Annotated[str | list[str], AfterValidator(embedding.as_list)]
Direction = Annotated[Literal["left", "right"], BeforeValidator(_lower)]


class TeiInputs(Fields):
    """Texts, or token ids; null is the same as absent."""

    inputs: embedding.Input
    truncate: bool | None = Field(None, description="Cut over-long inputs; default true.")
    truncation_direction: Direction | None = Field(
        None, description="Which end is cut off; default right."
    )
    prompt_name: str | None = None

    def job(self, model: str, output: Output, *, truncates: bool) -> EmbedJob:
        """Return the request free of dialect."""
        cut = Truncate(self.truncation_direction or Truncate.RIGHT)
        return EmbedJob(
            model=model,
            inputs=self.inputs,
            outputs=frozenset({output}),
            prompt_name=self.prompt_name,
            truncate=cut if truncates else Truncate.ERROR,
        )


class TeiEmbedRequest(TeiInputs):
    """Inputs to embed, and the length of the vectors."""

    normalize: bool | None = Field(None, description="Scale vectors to length 1; default true.")
    dimensions: int | None = Field(None, ge=1, le=embedding.TOKEN_LIMIT)

    def job(self, model: str, output: Output, *, truncates: bool) -> EmbedJob:
        """Return the request free of dialect."""
        job = super().job(model, output, truncates=truncates)
        return replace(job, dimensions=self.dimensions, normalize=self.normalize is not False)


class TeiRerankRequest(Fields):
    """A query and the texts to score; scores are sigmoids unless raw ones are asked for.

    An empty text is scored, as an empty query is; only both at once are nothing.
    """

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = Field(
        None, description="Cut over-long pairs, the longer part first; default true."
    )
    truncation_direction: Direction | None = Field(
        None, description="Which end is cut off; default right."
    )

    def job(self, model: str, *, truncates: bool) -> RerankJob:
        """Return the request free of dialect."""
        return RerankJob(
            model,
            [(self.query, text) for text in self.texts],
            cut_documents=truncates,
            cut_longest=truncates,
            left=self.truncation_direction == "left",
        )


class Sentences(BareFields):
    """A sentence, and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(BareFields):
    """How the sentences are read."""

    truncate: bool | None = Field(
        default=None, description="Cut over-long sentences; default true."
    )
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class TeiSimilarityRequest(Fields):
    """Sentences to compare."""

    inputs: Sentences
    parameters: SimilarityParameters = SimilarityParameters()


class TokenizeRequest(BareFields):
    """Texts to split into tokens. Fields below `prompt_name` go beyond TEI."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = Field(
        None, description="Split as this model reads the texts, with its prompt before them."
    )
    instruction: str | None = None
    input_type: Annotated[InputType, Lax] | None = None

    def job(self) -> EmbedJob:
        """Return the request free of dialect."""
        return EmbedJob(
            self.model,
            list(self.inputs),
            instruction=self.instruction,
            prompt_name=self.prompt_name or None,
            input_type=self.input_type,
        )


class DecodeRequest(BareFields):
    """Token ids of one text, or of several."""

    ids: embedding.Input
    skip_special_tokens: bool = True
    model: str | None = Field(None, description="Beyond TEI: the model whose ids these are.")


class Weight(BaseModel):
    """A token id and its weight."""

    index: int
    value: float


class Rank(BaseModel):
    """One text's place; `text` only if asked for."""

    index: int
    score: float
    text: str | None = None


class SimpleToken(BaseModel):
    """A token; `start` and `stop` count characters of the text, and are null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(BaseModel):
    """The default model and the limits, as TEI has them; limits that do not exist here are null."""

    model_id: str
    served_model_name: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    version: str
    vector_space: embedding.VectorSpaceInfo | None
