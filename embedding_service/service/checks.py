"""Refusals before any work: more than the server takes, or something that a model cannot give."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.service import vectors
from embedding_service.service.outputs import PER_TOKEN
from embedding_service.types import EmbedDtype, Encoding, Field, Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.service.models import ServedModel
    from embedding_service.service.prompts import Encoder, Prepared
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import EmbedJob, RerankJob

# Formats whose scale can be calibrated.
SCALED = frozenset({EmbedDtype.INT8, EmbedDtype.UINT8})
# A model that weighs its vocabulary gives 100 to 300 weights for a text, however long that is.
VOCABULARY_WEIGHTS = 256
# No natural language needs so few tokens. Longer requests are refused unread, since their tokens
# would fill the memory.
CHARACTERS_PER_TOKEN = 8
# In an answer: a token id and its weight; all that surrounds an item.
_BYTES_A_WEIGHT, _BYTES_AN_ITEM = 24, 100
_BYTES_A_TOKEN = 80  # where tokens are listed: its id, its text, its place
_BYTES_A_NUMBER = 4  # as the engine gives it
_ASKED_FOR_BY_NAME = frozenset({Output.SPARSE, Output.COLBERT})


def check_total(total: int, allowed: int, *, param: str | None) -> None:
    """Raise `InvalidRequest` for a request of more than `allowed` tokens."""
    if total > allowed:
        raise InvalidRequest(
            f"this request has more than {allowed} tokens, the most that one request may have; "
            "send fewer or shorter inputs",
            param=param,
            code="max_tokens_per_request",
        )


def check_count(items: int, limit: int, field: Field) -> None:
    """Raise `InvalidRequest` for an empty list, or one that is too long."""
    if not items:
        raise InvalidRequest(f"{field} must not be an empty list", param=field)
    if items > limit:
        raise InvalidRequest(
            f"{field} has {items} items; this server takes at most {limit} a request: send fewer",
            param=field,
            code="too_many_inputs",
        )


def check_characters(
    inputs: Sequence[str] | Sequence[list[int]], limit: int | None, field: Field
) -> None:
    """Raise `InvalidRequest` about the first text that is too long; token ids are no text."""
    if limit is None or max(map(len, inputs)) <= limit:
        return
    for index, text in enumerate(inputs):
        if isinstance(text, str) and len(text) > limit:
            where = f"{field}[{index}]"
            raise InvalidRequest(
                f"{where} has {len(text)} characters, and at most {limit} are taken: shorten it",
                param=where,
                code="text_too_long",
            )


def cut_texts(settings: Settings, job: EmbedJob) -> tuple[EmbedJob, tuple[int, ...]]:
    """Cut texts to `max_text_characters` where they are not refused; return which were longer."""
    limit = settings.max_text_characters
    if limit is None or settings.over_long_texts == "refuse" or not isinstance(job.inputs[0], str):
        return job, ()
    long = tuple(index for index, text in enumerate(job.inputs) if len(text) > limit)
    texts = [str(text)[:limit] for text in job.inputs]
    return (replace(job, inputs=texts) if long else job), long


def cut_pairs(settings: Settings, job: RerankJob) -> tuple[RerankJob, tuple[int, ...]]:
    """Do the same with queries and documents; return in which pairs one was longer."""
    limit = settings.max_text_characters
    if limit is None or settings.over_long_texts == "refuse":
        return job, ()
    pairs = [(query[:limit], document[:limit]) for query, document in job.pairs]
    both = enumerate(zip(pairs, job.pairs, strict=True))
    long = tuple(index for index, (cut, whole) in both if cut != whole)
    return (replace(job, pairs=pairs) if long else job), long


def check_embed(settings: Settings, model: ServedModel, encoder: Encoder, job: EmbedJob) -> None:
    """Raise `InvalidRequest` for too much, or for vectors that the model cannot give."""
    check_outputs(model, encoder, job)
    check_count(len(job.inputs) - job.queries, settings.max_inputs, job.field)
    check_characters(job.inputs, settings.max_text_characters, job.field)
    if job.dimensions is not None:
        _check_dimensions(model, encoder, job.dimensions)
    _check_formats(model, encoder, job)


def check_rerank(settings: Settings, job: RerankJob) -> None:
    """Raise `InvalidRequest` for too many pairs, or too long documents."""
    check_texts(settings, [document for _, document in job.pairs], Field.DOCUMENTS)


def check_texts(settings: Settings, texts: Sequence[str], field: Field) -> None:
    """Raise `InvalidRequest` for too many texts, or too long ones."""
    check_count(len(texts), settings.max_inputs, field)
    check_characters(texts, settings.max_text_characters, field)


def check_outputs(model: ServedModel, encoder: Encoder, job: EmbedJob) -> None:
    """Raise `InvalidRequest` for a kind of vector that the model cannot give."""
    given = encoder.facts.outputs
    if not job.outputs.issubset(given):
        missing = [output for output in Output if output in job.outputs and output not in given]
        by_name = _ASKED_FOR_BY_NAME.issuperset(missing)
        vectors = _ASKED_FOR_BY_NAME | {Output.DENSE}
        shown = [output for output in given if output in vectors] or given
        raise InvalidRequest(
            f"{model.name} gives {', '.join(shown)} and no {' or '.join(missing)}; "
            "ask for what it gives, or name another model",
            param=f"return_{missing[0]}" if by_name else "model",
            code="not_supported_by_model",
        )


def _check_dimensions(model: ServedModel, encoder: Encoder, dimensions: int) -> None:
    full, sizes = encoder.facts.dimension, model.matryoshka
    least = encoder.profile.smallest_dimension
    if dimensions == full:
        return
    if full is None:
        reason = f"{model.name} has no dense vectors to shorten; leave {Field.DIMENSIONS} out"
    elif sizes is None:
        reason = (
            f"{Field.DIMENSIONS} must be {full}: {model.name} is not known to be trained for "
            "shorter vectors (matryoshka: true in the server's settings allows them)"
        )
    elif sizes and dimensions not in sizes:
        allowed = ", ".join(map(str, sizes))
        reason = f"{Field.DIMENSIONS} must be one of {allowed} for {model.name}"
    elif not sizes and not least <= dimensions <= full:
        reason = f"{Field.DIMENSIONS} must be between {least} and {full} for {model.name}"
    else:
        return
    raise InvalidRequest(reason, param=Field.DIMENSIONS, code="dimensions_not_supported")


def _check_formats(model: ServedModel, encoder: Encoder, job: EmbedJob) -> None:
    """Raise `InvalidRequest` for int8 and uint8 of vectors that have no known scale."""
    scaled = sorted(SCALED & {job.embed_dtype, *job.more_dtypes})
    if not scaled:
        return
    if not job.normalize:
        raise InvalidRequest(
            f"{scaled[0]} is made from unit vectors; leave normalize out", param="normalize"
        )
    if model.ranges is None or Output.DENSE not in job.outputs:
        return
    dimensions = job.dimensions or encoder.facts.dimension
    calibrated = model.ranges.shape[1]
    if dimensions != calibrated:
        raise InvalidRequest(
            f"int8 and uint8 of {model.name} are calibrated for {calibrated} dimensions, and "
            f"these vectors have {dimensions}; set {Field.DIMENSIONS} to {calibrated}, or ask for "
            "another format",
            param=Field.DIMENSIONS,
        )


def check_late_interaction(model: ServedModel, job: RerankJob) -> None:
    """Raise `InvalidRequest` if an embedding model cannot score these pairs."""
    if Output.COLBERT not in model.embedder().facts.outputs:
        raise InvalidRequest(
            f"{model.name} has no ColBERT vectors to score pairs with; name a reranker, or BGE-M3",
            param="model",
            code="not_supported_by_model",
        )
    for name, value in (
        ("instruction", job.instruction),
        ("max_tokens_per_doc", job.max_tokens_per_document),
        ("truncate_prompt_tokens", job.max_tokens),
    ):
        if value is not None:
            raise InvalidRequest(
                f"{name} is for cross-encoders; {model.name} scores by late interaction: "
                "leave it out",
                param=name,
                code="not_supported_by_model",
            )


def check_read_whole(job: RerankJob, truncated: Sequence[int]) -> None:
    """Raise `ContextLengthExceeded` for a query that was cut, or a document that must not be."""
    if truncated and truncated[-1] >= len(job.pairs):  # queries follow the documents
        raise ContextLengthExceeded(
            "the query is longer than the model's context; shorten it", param="query"
        )
    if truncated and not job.cut_documents:
        where = f"{Field.DOCUMENTS}[{truncated[0]}]"
        raise ContextLengthExceeded(
            f"{where} is longer than the model's context; shorten it", param=where
        )


def numbers(encoder: Encoder, job: EmbedJob, prepared: Prepared) -> int:
    """Return about how many numbers the engine will give."""
    rows = prepared.total if job.outputs & PER_TOKEN else len(prepared.ids)
    return rows * (encoder.facts.dimension or 1)


def held_bytes(encoder: Encoder, job: EmbedJob, prepared: Prepared) -> int:
    """Return how large the engine's rows are, which are held as float32 until they are written."""
    outputs = max(1, len(job.outputs & PER_TOKEN))
    return _BYTES_A_NUMBER * outputs * numbers(encoder, job, prepared)


def answer_bytes(encoder: Encoder, job: EmbedJob, prepared: Prepared) -> int:
    """Return about how large the answer will be."""
    full, inputs = encoder.facts.dimension or 0, len(job.inputs)
    written = len(job.outputs & PER_TOKEN) * prepared.total * full
    if Output.DENSE in job.outputs:
        written += inputs * (job.dimensions or full)
    needed = _BYTES_AN_ITEM * inputs
    needed += vectors.written_bytes(written, job.embed_dtype, job.encoding)
    for dtype in job.more_dtypes:
        needed += vectors.written_bytes(written, dtype, Encoding.FLOAT)
    if Output.SPARSE in job.outputs:
        needed += _BYTES_A_WEIGHT * (prepared.total if full else VOCABULARY_WEIGHTS * inputs)
    return needed


def token_list_bytes(texts: int, characters: int, most_tokens: int) -> int:
    """Return about how large a list of the tokens of texts will be at most."""
    return _BYTES_A_TOKEN * min(characters, most_tokens) + _BYTES_AN_ITEM * texts


def check_answer(needed: int, limit: int, field: Field) -> None:
    """Raise `InvalidRequest` for an answer of more than `limit` bytes."""
    if needed > limit:
        raise InvalidRequest(
            f"the answer would have about {needed} bytes, and this server sends at most {limit}; "
            "ask for encoding_format base64, embed_dtype float16 or fewer texts",
            param=field,
            code="response_too_large",
        )
