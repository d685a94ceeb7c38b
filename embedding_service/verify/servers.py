"""Any server with OpenAI's embeddings API, as a side of a comparison.

This service is asked for its own prompts and kinds of vectors; before texts for others, the prompt
is put here, as their users have to.
"""

from __future__ import annotations

import json
import re
from asyncio import sleep
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import httpx
import numpy as np

from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.types import Output
from embedding_service.verify.sides import About, Kind, Refused, TooLong

if TYPE_CHECKING:
    from collections.abc import Collection

    from embedding_service.types import Floats, Rows
    from embedding_service.verify.sides import Answer

_TIMEOUT_S, _FACTS_TIMEOUT_S = 300.0, 10.0  # a CPU may need minutes for the longest texts
_TRIES = 5
_LONGEST_WAIT_S = 30.0
_PATIENCE_S = 120.0  # from the first failure on, without a good answer between
_PASSING: Final = frozenset({408, 429, 502, 503, 504})
_DEFECT = 500  # of one text, as where its numbers are not finite, or one that passes
_ABOUT_TEXTS: Final = frozenset({400, 413, 422, _DEFECT})  # all other errors are about the server
_TOO_LARGE = 413
# As vLLM, TEI, OpenAI, llama.cpp, Ollama and this service put it, in a code or in a message.
_TOO_LONG: Final = re.compile(
    r"context.?(length|window|size)|too.?long|(max(imum)?|input).{0,9}(length|tokens)"
    r"|(less|fewer|more) than \d+ tokens",
    re.IGNORECASE,
)
# Answers that are not JSON, or not of the shape that is read.
_UNREADABLE: Final = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
_OWN, _VLLM = "embedding-service", "vllm"
_SAID = 200


class Server:
    """A server at `url`, with or without `/v1`; `model` is the name that requests send.

    `prompts` are put before texts unless it is this service. `found` counts vectors that came from
    the server's cache.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, model: str, about: About) -> None:
        self._http = http
        self._url = url
        self.model = model
        self.about = about
        self.prompts: dict[Kind, str] = {}
        self.outputs: Collection[Output] = {Output.DENSE}
        self.kind = ""
        self.from_cache = 0
        self._failing_since: float | None = None

    async def ask(self, texts: list[str], kind: Kind) -> list[Answer]:
        """Return the rows of each text. Raises `Refused`, `NoVectors`."""
        if self.kind != _OWN:
            texts = [self.prompts.get(kind, "") + text for text in texts]
        response = await self._post({"model": self.model, "input": texts, **self._more(kind)})
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
            fields |= {f"return_{output}": output in self.outputs for output in _KINDS}
        return fields

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        """Return a good answer, after a few tries. Raises `Refused`, `NoVectors`."""
        for attempt in range(_TRIES - 1):
            try:
                response = await self._send(body)
            except httpx.HTTPError:
                wait = 2.0**attempt
            else:
                if not _should_retry(response, attempt):
                    return self._checked(response)
                wait = _wait_s(response, attempt)
            if self._failing_s() + wait > _PATIENCE_S:
                break
            await sleep(wait)
        try:
            return self._checked(await self._send(body))
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from None

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        """Return an answer. A server that says nothing in time is not asked twice."""
        try:
            return await self._http.post(f"{self._url}/v1/embeddings", json=body)
        except httpx.TimeoutException as error:
            raise _unreachable(self._url, error) from None

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            self._failing_since = None
            return response
        reason = _said(response)
        if response.status_code not in _ABOUT_TEXTS or self._failing_s() >= _PATIENCE_S:
            raise NoVectors(f"{self._url}: {reason}")
        raise Refused(TooLong(reason) if _is_too_long(response) else reason)

    def _failing_s(self) -> float:
        """Return how long there has been no good answer; the first call begins to count."""
        now = monotonic()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since


async def connect(http: httpx.AsyncClient, url: str, model: str | None) -> Server:
    """Ask a server what it serves. Raises `NoVectors`, `BadConfiguration`."""
    root = url.rstrip("/").removesuffix("/v1")
    listed, info = await _get(http, root, "/v1/models"), await _get(http, root, "/info")
    entry = _entry(_entries(listed), model, root)
    name = model or entry.get("id") or info.get("model_id")
    if not isinstance(name, str):
        raise BadConfiguration(f"{root} does not say what it serves: give --model")
    if info.get("model_id") not in (None, name, entry.get("root")):
        info = {}  # of another model
    server = Server(http, root, name, _about(f"{name} at {root}", entry, info))
    server.kind = str(entry.get("owned_by"))
    # Another version may name kinds that this one does not know.
    told = entry.get("outputs")
    known = {output for output in _KINDS if isinstance(told, list) and output in told}
    server.outputs = known or {Output.DENSE}
    return server


def _about(label: str, entry: dict[str, Any], info: dict[str, Any]) -> About:
    """Return the facts that are of the right type: others are as good as none."""
    said = entry.get("max_model_len"), info.get("max_input_length")
    limits = [limit for limit in said if type(limit) is int and limit > 0]
    dtype = info.get("model_dtype")
    own = entry.get("owned_by") == _OWN
    return About(
        label, dtype if isinstance(dtype, str) else None, next(iter(limits), None), own=own
    )


_KINDS: Final = frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})


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


async def _get(http: httpx.AsyncClient, root: str, path: str) -> dict[str, Any]:
    """Return what a path says, {} where a server does not have it."""
    try:
        response = await http.get(root + path, timeout=_FACTS_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(root, error) from None
    if response.status_code in (401, 403) and path == "/v1/models":
        raise NoVectors(f"{root}: {_said(response)}")
    try:
        found = response.json() if response.is_success else {}
    except _UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def client(key: str | None) -> httpx.AsyncClient:
    """Return an HTTP client that sends this key."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(_TIMEOUT_S, connect=10.0))


def _rows(item: dict[str, Any]) -> Rows:
    found: Rows = {}
    if item.get("embedding") is not None:
        # Null, which some servers write for NaN, becomes NaN.
        found[Output.DENSE] = _matrix([item["embedding"]])
    if item.get("sparse_embedding") is not None:
        found[Output.SPARSE] = _weights(item["sparse_embedding"])
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


def _weights(by_token: dict[str, float]) -> Floats:
    pairs = [(int(token), weight) for token, weight in by_token.items()]
    return np.array(pairs, np.float32).reshape(-1, 2)


def _should_retry(response: httpx.Response, attempt: int) -> bool:
    told, status = response.headers.get("x-should-retry"), response.status_code
    return told != "false" and (status in _PASSING or (status == _DEFECT and not attempt))


def _is_too_long(response: httpx.Response) -> bool:
    said = response.status_code != _DEFECT and _TOO_LONG.search(response.text) is not None
    return said or response.status_code == _TOO_LARGE


def _wait_s(response: httpx.Response, attempt: int) -> float:
    told = response.headers.get("retry-after", "")
    seconds = float(told) if told.isdecimal() else 2.0**attempt
    return min(_LONGEST_WAIT_S, seconds)


def _said(response: httpx.Response) -> str:
    """Return status and message in one line."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = error.get("message", error) if isinstance(error, dict) else error
    except _UNREADABLE:
        text = response.text
    words = " ".join((text if isinstance(text, str) else json.dumps(text)).split())
    return f"HTTP {response.status_code} {words}"[:_SAID]


def _unreachable(url: str, error: Exception) -> NoVectors:
    reason = str(error) or type(error).__name__
    return NoVectors(f"{url} cannot be reached: {reason}")
