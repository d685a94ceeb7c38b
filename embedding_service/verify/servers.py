"""Any server with OpenAI's embeddings API, as a side of a comparison.

This service is asked for its own prompts and kinds of vectors; before texts for others, the prompt
is put here, as their users have to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from embedding_service import client
from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.types import Output
from embedding_service.verify.sides import COMPARED, About, Kind, Refused, TooLong, weight_rows

if TYPE_CHECKING:
    from collections.abc import Collection

    import httpx

    from embedding_service.client import Client
    from embedding_service.types import Floats, Rows
    from embedding_service.verify.sides import Answer

PATIENCE_S: Final = 120.0
_TOO_LARGE, _DEFECT = 413, 500
# As vLLM, TEI, OpenAI, llama.cpp, Ollama and this service put it, in a code or in a message.
_TOO_LONG: Final = re.compile(
    r"context.?(length|window|size)|too.?long|(max(imum)?|input).{0,9}(length|tokens)"
    r"|(less|fewer|more) than \d+ tokens",
    re.IGNORECASE,
)
# Answers that are not JSON, or not of the shape that is read.
_UNREADABLE: Final = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
_OWN, _VLLM = "embedding-service", "vllm"


class Server:
    """A server as a side; `model` is the name that requests send.

    `prompts` are put before texts unless it is this service. `from_cache` counts vectors that came
    from the server's cache.
    """

    def __init__(self, http: Client, model: str, about: About) -> None:
        self._http = http
        self._url = http.roots[0]
        self.model = model
        self.about = about
        self.prompts: dict[Kind, str] = {}
        self.outputs: Collection[Output] = {Output.DENSE}
        self.kind = ""
        self.from_cache = 0

    async def ask(self, texts: list[str], kind: Kind) -> list[Answer]:
        """Return the rows of each text. Raises `Refused`, `NoVectors`."""
        if self.kind != _OWN:
            texts = [self.prompts.get(kind, "") + text for text in texts]
        body = {"model": self.model, "input": texts, **self._more(kind)}
        response = await self._http.ask("/v1/embeddings", orjson.dumps(body))
        if not response.is_success:
            raise _refusal(response)
        cached = response.headers.get("x-cache", "0/0").partition("/")[0]
        self.from_cache += int(cached) if cached.isdecimal() else 0
        return self._answers(response, len(texts))

    def _answers(self, response: httpx.Response, count: int) -> list[Answer]:
        try:
            items = response.json()["data"]
            by_index = {item["index"]: _rows(item) for item in items}
        except _UNREADABLE:
            what = "something else than OpenAI's embeddings"
            raise NoVectors(f"{self._url} answered {what}") from None
        if len(items) != count:
            raise NoVectors(f"{self._url} gave {len(items)} vectors for {count} texts")
        if set(map(repr, by_index)) != set(map(repr, range(count))):  # neither "0", 0.0 nor False
            raise NoVectors(f"{self._url} gave other indices than 0 to {count - 1}")
        return [by_index[index] for index in range(count)]

    def _more(self, kind: Kind) -> dict[str, Any]:
        """Return the fields that this kind of server knows beyond OpenAI's; OpenAI refuses them."""
        fields: dict[str, Any] = {"encoding_format": "float"}
        if self.kind == _VLLM:
            fields["truncate_prompt_tokens"] = -1
        if self.kind != _OWN:
            return fields
        fields["truncate"] = "right"
        if kind is not Kind.PLAIN:
            fields["input_type"] = str(kind)
        if set(self.outputs) != {Output.DENSE}:
            fields |= {f"return_{output}": output in self.outputs for output in COMPARED}
        return fields


async def connect(http: Client, model: str | None) -> Server:
    """Ask a server what it serves. Raises `NoVectors`, `BadConfiguration`."""
    root = http.roots[0]
    listed, info = await _get(http, "/v1/models"), await _get(http, "/info")
    entry = _entry(_entries(listed), model, root)
    name = model or entry.get("id") or info.get("model_id")
    if not isinstance(name, str):
        raise BadConfiguration(f"{root} does not say what it serves: give --model")
    if info.get("model_id") not in (None, name, entry.get("root")):
        info = {}  # of another model
    server = Server(http, name, _about(f"{name} at {root}", entry, info))
    server.kind = str(entry.get("owned_by"))
    # Another version may name kinds that this one does not know.
    outputs = entry.get("outputs")
    known = {output for output in COMPARED if isinstance(outputs, list) and output in outputs}
    server.outputs = known or {Output.DENSE}
    return server


def _about(label: str, entry: dict[str, Any], info: dict[str, Any]) -> About:
    """Return the facts that are of the right type: others are as good as none."""
    said = entry.get("max_model_len"), info.get("max_input_length")
    limits = [limit for limit in said if type(limit) is int and limit > 0]
    dtype, types = info.get("model_dtype"), entry.get("input_types")
    return About(
        label,
        dtype if isinstance(dtype, str) else None,
        next(iter(limits), None),
        own=entry.get("owned_by") == _OWN,
        prompted=[kind for kind in Kind if not isinstance(types, list) or kind in types],
    )


def _entries(listed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries that have a name."""
    data = listed.get("data")
    entries = [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
    return [each for each in entries if isinstance(each.get("id"), str)]


def _entry(entries: list[dict[str, Any]], model: str | None, root: str) -> dict[str, Any]:
    """Return the entry of a model; without a name, of the only one that the server has."""
    if model is None and len({str(entry.get("root") or entry["id"]) for entry in entries}) > 1:
        names = ", ".join(entry["id"] for entry in entries[:8])
        raise BadConfiguration(f"{root} serves several models, give --model: {names}")
    return next((each for each in entries if model in (None, each.get("id"))), {})


async def _get(http: Client, path: str) -> dict[str, Any]:
    """Return what a path says, {} where a server does not have it. Raises `NoVectors`."""
    response = await http.ask(path)
    if response.status_code in (401, 403) and path == "/v1/models":
        raise NoVectors(client.failure(response))
    try:
        found = response.json() if response.is_success else {}
    except _UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def _rows(item: dict[str, Any]) -> Rows:
    found: Rows = {}
    if item.get("embedding") is not None:
        # Null, which some servers write for NaN, becomes NaN.
        found[Output.DENSE] = _matrix([item["embedding"]])
    if item.get("sparse_embedding") is not None:
        found[Output.SPARSE] = weight_rows(item["sparse_embedding"])
    if item.get("colbert_embedding") is not None:
        found[Output.COLBERT] = _matrix(item["colbert_embedding"])
    return found


def _matrix(rows: list[list[float | None]]) -> Floats:
    with np.errstate(over="ignore"):  # 1e300 becomes infinity, which is named
        found = np.array(rows, np.float32)
    texts_or_tokens, dimensions = found.shape
    if not texts_or_tokens * dimensions:
        raise ValueError
    return found


def _refusal(response: httpx.Response) -> Exception:
    """Return the error of an answer without vectors: about its texts, or about the server."""
    if not client.is_refusal(response):
        return NoVectors(client.failure(response))
    reason = f"HTTP {response.status_code}: {client.message(response)}"
    status, text = response.status_code, response.text
    too_long = status == _TOO_LARGE or (status != _DEFECT and _TOO_LONG.search(text))
    return Refused(TooLong(reason) if too_long else reason)
