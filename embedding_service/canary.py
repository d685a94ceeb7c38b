"""`embedding-service canary pin FILE`: keep the vectors of 64 texts, to compare others with later.

From a running server over its API, or from engines that are started for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from embedding_service.errors import BadConfiguration, NoVectors, ServiceError
from embedding_service.local import local_service
from embedding_service.service import canaries, examiner
from embedding_service.service.canaries import Direction
from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.service.canaries import Directions, Pinned
    from embedding_service.service.models import ServedModel
    from embedding_service.service.service import EmbeddingService
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import InputType

    Json = dict[str, Any]

_TIMEOUT_S = 300.0
_TEXTS_AT_ONCE = 8  # within every server's limit, and each request within its deadline
_SHOWN_CHARACTERS = 300


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
    server = _Server(url, key)
    entry = _entry(server, name)
    space, outputs = entry["vector_space"], set(entry["outputs"]) & examiner.PINNED
    if "sparse_indices" in space["ingredients"]:  # hashed, and not as the engine gives them
        outputs -= {Output.SPARSE}
    found: list[Directions] = [{}] * len(canaries.asked())
    for use, places in _portions():
        texts = [canaries.asked()[place][0] for place in places]
        items = server.embed(_body(entry, texts, use, outputs), space["id"])
        for place, item in zip(places, items, strict=True):
            found[place] = {output: _direction(output, item, outputs) for output in outputs}
    pinned = canaries.pin(
        found,
        model=entry["root"],
        space=space["id"],
        build=space["build"],
        dtype=space["build_ingredients"]["dtype"],
    )
    canaries.write(path, pinned)
    return pinned


def _portions() -> Iterator[tuple[InputType | None, list[int]]]:
    """Yield what is asked in one request each: places of texts that have the same use."""
    uses = [use for _, use in canaries.asked()]
    for use in dict.fromkeys(uses):
        places = [place for place, each in enumerate(uses) if each is use]
        for first in range(0, len(places), _TEXTS_AT_ONCE):
            yield use, places[first : first + _TEXTS_AT_ONCE]


def _entry(server: _Server, name: str | None) -> Json:
    listed = server.get("/v1/models")
    entries = [entry for entry in listed.get("data") or () if name in (None, entry.get("id"))]
    found = next((entry for entry in entries if entry.get("vector_space")), None)
    if found is None:
        wanted = f"{name} is not a model" if name else "no model is"
        raise NoVectors(f"{server.url}: {wanted} of which it tells the vector space")
    return dict(found)


def _body(entry: Json, texts: list[str], use: InputType | None, outputs: set[Output]) -> Json:
    """Return a request for vectors as a worker's examination has them."""
    truncate = entry["vector_space"]["ingredients"].get("truncate", "right")
    body: Json = {"model": entry["id"], "input": texts, "truncate": truncate}
    body |= {"input_type": use} if use else {}
    if outputs != {Output.DENSE}:
        body |= {f"return_{output}": output in outputs for output in examiner.PINNED}
    return body


def _direction(output: Output, item: Json, outputs: set[Output]) -> Direction:
    value = item["embedding" if outputs == {Output.DENSE} else f"{output}_embedding"]
    if output is Output.SPARSE:
        return Direction.of(list(value.values()), list(map(int, value)))
    if output is Output.COLBERT:
        value = np.asarray(value, np.float32).sum(axis=0)
    return Direction.of(value)


class _Server:
    """A server of this kind at a URL, with or without `/v1`."""

    def __init__(self, url: str, key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadConfiguration(f"--server: {url} is not the URL of a server")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Json:
        """Return what is at a path. Raises `NoVectors`."""
        return self._ask(path, None)[0]

    def embed(self, body: Json, space: str) -> list[Json]:
        """Return the items of an answer in this space. Raises `NoVectors`."""
        answer, headers = self._ask("/v1/embeddings", body)
        if headers.get("x-vector-space") != space:
            raise NoVectors(f"{self.url}: vectors are not in {space}, the space that it lists")
        return list(answer["data"])

    def _ask(self, path: str, body: Json | None) -> tuple[Json, Any]:
        url, method = self.url + path, "GET" if body is None else "POST"
        try:
            # No redirect is followed: another host would get the key.
            response = httpx.request(
                method, url, json=body, headers=self._headers, timeout=_TIMEOUT_S
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NoVectors(f"{url} cannot be reached: {error}") from None
        if not response.is_success:
            said = " ".join(response.text[:_SHOWN_CHARACTERS].split())
            raise NoVectors(f"{url}: {response.status_code}: {said}")
        try:
            return response.json(), response.headers
        except ValueError:
            raise NoVectors(f"{url}: its answer is not JSON") from None
