"""Any server with OpenAI's embeddings API, as a side of a comparison.

This service is asked for its own prompts and kinds of vectors; before texts for others, the prompt
is put here, as their users have to.
"""

from __future__ import annotations

import json
from asyncio import sleep
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import httpx
import numpy as np

from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.types import Output
from embedding_service.verify.sides import About, Kind, Refused

if TYPE_CHECKING:
    from collections.abc import Collection

    from embedding_service.types import Floats, Rows
    from embedding_service.verify.sides import Answer

_TIMEOUT_S = 600.0  # a CPU may need minutes for the longest texts
_TRIES = 5
_LONGEST_WAIT_S = 30.0
_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
_ENDS: Final = frozenset({401, 403, 404, 405})  # not about these texts
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

    async def ask(self, texts: list[str], kind: Kind) -> list[Answer]:
        """Return the rows of each text. Raises `Refused`, `NoVectors`."""
        if self.kind != _OWN:
            texts = [self.prompts.get(kind, "") + text for text in texts]
        response = await self._post({"model": self.model, "input": texts, **self._more(kind)})
        cached = response.headers.get("x-cache", "0/0").partition("/")[0]
        self.from_cache += int(cached) if cached.isdecimal() else 0
        answers = self._answers(response)
        if len(answers) != len(texts):
            raise NoVectors(f"{self._url} gave {len(answers)} vectors for {len(texts)} texts")
        return answers

    def _answers(self, response: httpx.Response) -> list[Answer]:
        try:
            items = sorted(response.json()["data"], key=itemgetter("index"))
            return list(map(_rows, items))
        except (KeyError, TypeError, ValueError):
            what = "something else than OpenAI's embeddings"
            raise NoVectors(f"{self._url} answered {what}") from None

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
                await sleep(2**attempt)
                continue
            if not _should_retry(response):
                return self._checked(response)
            await sleep(_wait_s(response, attempt))
        try:
            return self._checked(await self._send(body))
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from None

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        return await self._http.post(f"{self._url}/v1/embeddings", json=body)

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code in _ENDS:
            raise NoVectors(f"{self._url}: {_said(response)}")
        if response.is_error:
            raise Refused(_said(response))
        return response


async def connect(http: httpx.AsyncClient, url: str, model: str | None) -> Server:
    """Ask a server what it serves. Raises `NoVectors`, `BadConfiguration`."""
    root = url.rstrip("/").removesuffix("/v1")
    listed, info = await _get(http, root, "/v1/models"), await _get(http, root, "/info")
    entry = _entry(listed.get("data") or [], model, root)
    name = model or entry.get("id") or info.get("model_id")
    if not name:
        raise BadConfiguration(f"{root} does not say what it serves: give --model")
    if info.get("model_id") not in (None, name, entry.get("root")):
        info = {}  # of another model
    server = Server(http, root, name, _about(f"{name} at {root}", entry, info))
    server.kind = str(entry.get("owned_by"))
    # Another version may name kinds that this one does not know.
    server.outputs = _KINDS.intersection(entry.get("outputs") or ["dense"])
    return server


def _about(label: str, entry: dict[str, Any], info: dict[str, Any]) -> About:
    limit = entry.get("max_model_len") or info.get("max_input_length")
    return About(label, info.get("model_dtype"), limit, own=entry.get("owned_by") == _OWN)


_KINDS: Final = frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})


def _entry(entries: list[dict[str, Any]], model: str | None, root: str) -> dict[str, Any]:
    """Return the entry of a model; without a name, of the only one that the server has."""
    if model is None and len({entry.get("root") or entry.get("id") for entry in entries}) > 1:
        names = ", ".join(str(entry.get("id")) for entry in entries[:8])
        raise BadConfiguration(f"{root} serves several models, give --model: {names}")
    return next((each for each in entries if model in (None, each.get("id"))), {})


async def _get(http: httpx.AsyncClient, root: str, path: str) -> dict[str, Any]:
    """Return what a path says, {} where a server does not have it."""
    try:
        response = await http.get(root + path)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(root, error) from None
    if response.status_code in (401, 403) and path == "/v1/models":
        raise NoVectors(f"{root}: {_said(response)}")
    try:
        found = response.json() if response.is_success else {}
    except ValueError:
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
        found[Output.DENSE] = np.array([item["embedding"]], np.float32)
    if item.get("sparse_embedding") is not None:
        found[Output.SPARSE] = _weights(item["sparse_embedding"])
    if item.get("colbert_embedding") is not None:
        found[Output.COLBERT] = np.array(item["colbert_embedding"], np.float32)
    return found


def _weights(by_token: dict[str, float]) -> Floats:
    pairs = [(int(token), weight) for token, weight in by_token.items()]
    return np.array(pairs, np.float32).reshape(-1, 2)


def _should_retry(response: httpx.Response) -> bool:
    told = response.headers.get("x-should-retry")
    return told != "false" and response.status_code in _RETRIED


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
    except (ValueError, AttributeError):
        text = response.text
    words = " ".join((text if isinstance(text, str) else json.dumps(text)).split())
    return f"HTTP {response.status_code} {words}"[:_SAID]


def _unreachable(url: str, error: Exception) -> NoVectors:
    reason = str(error) or type(error).__name__
    return NoVectors(f"{url} cannot be reached: {reason}")
