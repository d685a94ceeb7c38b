"""`embedding-service canary pin FILE`: keep the vectors of 64 texts, to compare others with later.

From a running server over its API, or from engines that are started for it.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from embedding_service import client
from embedding_service.client import Client
from embedding_service.errors import BadConfiguration, NoVectors, ServiceError
from embedding_service.local import local_service
from embedding_service.progress import Progress
from embedding_service.service import canaries, examiner
from embedding_service.service.canaries import Direction
from embedding_service.types import Json, Output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx
    from structlog.typing import FilteringBoundLogger

    from embedding_service.service.canaries import Directions, Pinned
    from embedding_service.service.models import ServedModel
    from embedding_service.service.service import EmbeddingService
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import InputType


_TEXTS_AT_ONCE = 8  # within every server's limit, and each request within its deadline
_PATIENCE_S = 90.0  # with a server whose limits per minute leave no room

_Read = TypeVar("_Read", "_Models", "_Items")


async def pin_here(
    settings: Settings, log: FilteringBoundLogger, path: Path, name: str | None
) -> Pinned:
    """Start the configured model, or the one of this name, and pin its vectors.

    Raises `BadConfiguration`, `ModelNotLoaded`, `NoVectors`.
    """
    options = [model for model in settings.served_models if name in (None, *model.names)]
    if not options:
        raise BadConfiguration(f"--model: {name} is not one of the settings' models")
    # Neither compared with the pins that are to be replaced, nor loaded twice.
    change = {"canary_file": None, "replicas": 1, "required": True}
    alone = settings.model_copy(update={"models": (options[0].model_copy(update=change),)})
    async with local_service(alone, log) as service:
        pinned = await _computed(service, service.models.default)
    canaries.write(path, pinned)
    return pinned


async def _computed(service: EmbeddingService, model: ServedModel) -> Pinned:
    worker, space = model.engine.replicas[0].current, model.space
    if worker is None or space is None:
        raise NoVectors(f"{model.name} makes no vectors")
    facts = worker.model.facts
    outputs = examiner.PINNED.intersection(facts.outputs)
    try:
        found = await examiner.vectors(model, service.settings, worker, canaries.asked(), outputs)
    except ServiceError as error:
        raise NoVectors(f"{model.name}: {error.message}") from None
    return canaries.pin(
        found, model=model.name, space=str(space), build=space.build, dtype=facts.dtype
    )


def pin_server(url: str, path: Path, *, name: str | None, key: str | None) -> Pinned:
    """Pin the vectors of a running server's model: the first that embeds, or the one of this name.

    Raises `BadConfiguration`, `NoVectors`.
    """
    pinned = asyncio.run(_of_server(url, name, key))
    canaries.write(path, pinned)
    return pinned


async def _of_server(url: str, name: str | None, key: str | None) -> Pinned:
    async with aclosing(Client([url], key, patience_s=_PATIENCE_S, say=Progress().say)) as http:
        return await _asked(http, name)


async def _asked(http: Client, name: str | None) -> Pinned:
    entry, space = await _listed(http, name)
    outputs = {Output(each) for each in entry.outputs if each in examiner.PINNED}
    if space.ingredients.sparse_indices is not None:  # hashed, and not as the engine gives them
        outputs -= {Output.SPARSE}
    if not outputs:
        raise NoVectors(f"{http.roots[0]}: {entry.id} gives no vectors that can be pinned")
    found: list[Directions] = [{}] * len(canaries.asked())
    for use, places in _portions():
        texts = [canaries.asked()[place][0] for place in places]
        vectors = await _embed(http, _body(entry, space, use, outputs), texts, outputs, space.id)
        for place, vector in zip(places, vectors, strict=True):
            found[place] = vector
    return canaries.pin(
        found,
        model=entry.root,
        space=space.id,
        build=space.build,
        dtype=space.build_ingredients.dtype,
    )


def _portions() -> Iterator[tuple[InputType | None, list[int]]]:
    """Yield what is asked in one request each: places of texts that have the same use."""
    uses = [use for _, use in canaries.asked()]
    for use in dict.fromkeys(uses):
        places = [place for place, each in enumerate(uses) if each is use]
        for first in range(0, len(places), _TEXTS_AT_ONCE):
            yield use, places[first : first + _TEXTS_AT_ONCE]


def _body(entry: _Entry, space: _Space, use: InputType | None, outputs: set[Output]) -> Json:
    """Return a request, but for its texts, for vectors as a worker's examination has them."""
    body: Json = {"model": entry.id, "truncate": space.ingredients.truncate}
    body |= {"input_type": use} if use else {}
    if outputs != {Output.DENSE}:
        body |= {f"return_{output}": output in outputs for output in examiner.PINNED}
    return body


class _Ingredients(msgspec.Struct):
    truncate: str = "right"
    sparse_indices: Any = None


class _Build(msgspec.Struct):
    dtype: str


class _Space(msgspec.Struct):
    id: str
    build: str
    ingredients: _Ingredients
    build_ingredients: _Build


class _Entry(msgspec.Struct):
    id: str
    root: str = ""
    outputs: tuple[str, ...] = ()
    vector_space: _Space | None = None


class _Models(msgspec.Struct):
    data: list[_Entry]


class _Item(msgspec.Struct):
    embedding: list[float] | None = None
    dense_embedding: list[float] | None = None
    sparse_embedding: dict[int, float] | None = None
    colbert_embedding: list[list[float]] | None = None

    def directions(self, outputs: set[Output]) -> Directions:
        """Return the vectors of these kinds. Raises `ValueError` if one is missing or wrong."""
        found = {}
        if Output.DENSE in outputs:
            found[Output.DENSE] = Direction.of(self.dense_embedding or self.embedding or [])
        if Output.SPARSE in outputs and self.sparse_embedding is not None:
            weights = self.sparse_embedding
            found[Output.SPARSE] = Direction.of(list(weights.values()), list(weights))
        if Output.COLBERT in outputs:
            tokens = np.asarray(self.colbert_embedding or [[]], np.float32)
            found[Output.COLBERT] = Direction.of(tokens.sum(axis=0))
        sound = all(vector.is_sound() for vector in found.values())
        dense = [vector for output, vector in found.items() if output is not Output.SPARSE]
        if len(found) < len(outputs) or not sound or not all(each.values for each in dense):
            raise ValueError("a vector is missing, or no vector")
        return found


class _Items(msgspec.Struct):
    data: list[_Item]


async def _listed(http: Client, name: str | None) -> tuple[_Entry, _Space]:
    """Return the model of this name, or the first, that has a space. Raises `NoVectors`."""
    response = await http.ask("/v1/models")
    if not response.is_success:
        raise NoVectors(client.failure(response))
    for entry in _read(response, _Models).data:
        if name in (None, entry.id) and entry.vector_space is not None:
            return entry, entry.vector_space
    wanted = f"{name} is not a model" if name else "no model is"
    raise NoVectors(f"{http.roots[0]}: {wanted} of which it tells the vector space")


async def _embed(
    http: Client, body: Json, texts: list[str], outputs: set[Output], space: str
) -> list[Directions]:
    """Return the vectors of texts in this space. Raises `NoVectors`.

    Texts that are refused together are sent one at a time: limits may be narrow.
    """
    content = msgspec.json.encode({**body, "input": texts})
    response = await http.ask("/v1/embeddings", content)
    if client.is_refusal(response) and len(texts) > 1:
        apart = [await _embed(http, body, [text], outputs, space) for text in texts]
        return list(chain.from_iterable(apart))
    if not response.is_success:
        raise NoVectors(client.failure(response))
    if response.headers.get("x-vector-space") != space:
        raise NoVectors(f"{http.roots[0]}: vectors are not in {space}, the space that it lists")
    items = _read(response, _Items).data
    try:
        with np.errstate(over="raise"):
            found = [item.directions(outputs) for item in items]
    except (ValueError, ArithmeticError) as error:  # the second of numbers too large for us
        raise _wrong(response, error) from None
    if len(found) != len(texts):
        raise _wrong(response, f"{len(found)} vectors of {len(texts)} texts")
    return found


def _read(response: httpx.Response, kind: type[_Read]) -> _Read:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(response, error) from None


def _wrong(response: httpx.Response, why: object) -> NoVectors:
    return NoVectors(f"{response.url}: its answer is not this service's: {why}")
