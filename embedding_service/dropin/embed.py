"""`embed`, the service of a Next.js application: `/embed` with `texts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import BaseModel, Field

from embedding_service.dialects import embedding
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, Sends, probe
from embedding_service.dialects.errors import DETAIL, OPENAI
from embedding_service.dialects.fields import Fields
from embedding_service.dropin.preset import Preset
from embedding_service.types import EmbedJob, Truncate
from embedding_service.types import Field as Name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.types import Embeddings


class TextsRequest(Fields):
    """Texts to embed."""

    texts: list[str] = Field(min_length=1)
    normalize: Annotated[bool, Field(strict=False)] = Field(
        default=True,
        description="As in sentence-transformers: false leaves the model's own last module, which "
        "may scale vectors to length 1 too.",
    )


class TextsResponse(BaseModel):
    """One vector for each text."""

    embeddings: list[list[float]]
    model: str
    dimension: int


def _render(answer: Embeddings) -> Iterator[bytes]:
    assert answer.dense is not None  # noqa: S101 - it was asked for
    yield b'{"embeddings":'
    yield from embedding.json_list(map(embedding.vector_json, answer.dense))
    dimension = answer.dense.shape[1]
    yield b',"model":%s,"dimension":%d}' % (orjson.dumps(answer.model), dimension)


async def embed_texts(request: Request[TextsRequest]) -> Answer:
    """Give each text one vector of the default model."""
    fields = request.fields
    model = request.models.default_for(scores=False)
    # The system that this replaces was built on sentence-transformers, where a model whose own last
    # module scales its vectors does so whatever `normalize_embeddings` says.
    scales = model.facts is not None and model.facts.normalizes
    normalize = fields.normalize or scales
    job = EmbedJob(model.name, list(fields.texts), truncate=Truncate.MODEL, normalize=normalize)
    return await embedding.respond(request, job, _render)


async def health(request: Request[None]) -> Answer:
    """Describe the default model; 503 until the gateway is ready."""
    model, lifecycle = request.models.default, request.lifecycle
    facts = model.facts
    body = {
        "status": lifecycle.status("healthy"),
        "model": model.name,
        "device": facts.device if facts else None,
        "dimension": facts.dimension if facts else None,
    }
    return Answer.json(body, status=200 if lifecycle.ready else 503)


EMBED = Operation(
    path="/embed",
    handle=embed_texts,
    summary="Embed texts",
    request=TextsRequest,
    example={"texts": ["Hello, world"]},
    response=TextsResponse,
    when=Sends("texts"),
    names={Name.INPUT: "texts"},
)
HEALTH = probe("/health", health, "Health of the model")
DIALECT = Dialect("Embed", OPENAI, (EMBED,))
PRESET = Preset(
    name="embed", errors=DETAIL, dialects=lambda _: (Dialect("Embed", DETAIL, (EMBED, HEALTH)),)
)
