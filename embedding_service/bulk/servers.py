"""Texts to vectors through running servers: this service's, or any that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import orjson

from embedding_service.bulk.embedder import NOT_FINITE, PROBE, Answer
from embedding_service.bulk.manifest import hex_of
from embedding_service.bulk.outputs import number_type
from embedding_service.bulk.rows import Failure
from embedding_service.errors import BadConfiguration, JobStopped
from embedding_service.types import EmbedDtype, Output, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from embedding_service.bulk.options import BulkOptions

# Of each server: four requests of 256 texts, so that some wait there while one is computed.
_ROWS_AT_ONCE = 1024
_TIMEOUT_S = 300.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_PATIENCE_S = 900.0  # for servers that are started anew one after another, and load a model each
# Nobody's doing, and worth another try: a timeout, too much at once, a server's own trouble.
_SERVER_ERRORS = range(500, 600)
_PASSING = {408, 429, *_SERVER_ERRORS}
_TOO_LARGE = 413
# The inputs' doing, where one of several may be at fault.
_REFUSED = {400, _TOO_LARGE, 422}
_TOLD_EVERY_S = 30.0
_TRUNCATE_FIELD = "truncate to left, right or chunk_mean"  # as `errors.py` words it for clients


class ServerEmbedder:
    """Servers that give the same vectors, each asked in turn."""

    def __init__(
        self,
        urls: Sequence[str],
        options: BulkOptions,
        model: str,
        key: str | None,
        log: FilteringBoundLogger,
    ) -> None:
        headers = {"content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S)
        self._urls = [embeddings_url(url) for url in urls]
        self._turns = itertools.count()
        self._options = options
        self._model = model
        self._space: str | None = None
        self._log = log
        self.cached = 0  # texts that a server had answered before
        self._width: dict[Output, int] = {}  # of the vectors, as the first answer has it
        self._heard = time.monotonic()
        self._told = -_TOLD_EVERY_S

    @property
    def identity(self) -> dict[str, Any]:
        """The model, and the vector space if the server names it."""
        return {"model": self._model, "vector_space": self._space}

    @property
    def rows_at_once(self) -> int:
        """As many rows as keep every server busy."""
        return _ROWS_AT_ONCE * len(self._urls)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def probe(self) -> Answer:
        """Embed a word; learn width and space. Raises `BadConfiguration`, `JobStopped`."""
        try:
            response = await self._client.post(self._urls[0], content=self._body([PROBE]))
        except httpx.HTTPError as error:
            raise _unreachable(self._urls[0], error) from None
        if response.is_error:
            _, reason = _reason(response)
            raise BadConfiguration(f"--server: {self._urls[0]}: {response.status_code}: {reason}")
        self._space = response.headers.get("x-vector-space")
        answer = self._read(response, 1)
        if answer.failed:
            raise BadConfiguration(f"--server: {self._urls[0]}: {answer.failed[0].reason}")
        packed = self._options.embed_dtype in (EmbedDtype.BINARY, EmbedDtype.UBINARY)
        wanted = (self._options.dimensions or 0) // (8 if packed else 1)
        if wanted and self._width.get(Output.DENSE, wanted) != wanted:
            numbers = f"{self._width[Output.DENSE]} numbers and not {wanted}"
            raise BadConfiguration(f"--dimensions: {self._urls[0]} gives {numbers}")
        return answer

    async def embed(self, texts: list[str]) -> Answer:
        """Embed texts; where they are refused, each half by itself. Raises `JobStopped`."""
        response = await self._ask(texts)
        if not response.is_error:
            return self._read(response, len(texts))
        if len(texts) == 1:
            return Answer({}, {0: Failure(*_reason(response))}, 0)
        middle = len(texts) // 2
        first = await self.embed(texts[:middle])
        return _join(first, await self.embed(texts[middle:]), middle)

    async def _ask(self, texts: list[str]) -> httpx.Response:
        """Return an answer or a refusal of these very texts, however often it takes."""
        body, began = self._body(texts), time.monotonic()
        for attempt in itertools.count():
            url = self._urls[next(self._turns) % len(self._urls)]
            response, reason = await self._ask_once(url, body)
            if response is not None and not reason:
                self._heard = time.monotonic()
                return response
            pause_s = _pause_s(attempt, response)
            # Of the time before this there may have been nothing to ask: inputs can be slow.
            silent_s = time.monotonic() - max(self._heard, began)
            if silent_s + pause_s > _PATIENCE_S:
                raise _stopped(url, reason)
            if attempt + 1 >= len(self._urls):
                self._tell(url, reason, silent_s)
            await asyncio.sleep(pause_s)
        raise AssertionError  # pragma: no cover - the loop has no end

    def _tell(self, url: str, reason: str, silent_s: float) -> None:
        """Say now and then that no server answers."""
        if time.monotonic() - self._told < _TOLD_EVERY_S:
            return
        self._told = time.monotonic()
        left = f"trying for {(_PATIENCE_S - silent_s) / 60:.0f} minutes more"
        self._log.warning(f"no server answers since {silent_s:.0f} s ({url}: {reason}); {left}")

    async def _ask_once(self, url: str, body: bytes) -> tuple[httpx.Response | None, str]:
        """Return what came, and why it is worth asking again. Raises `JobStopped` if it is not."""
        try:
            response = await self._client.post(url, content=body)
        except httpx.HTTPError as error:
            return None, _why(error)
        if not response.is_error or _is_final(response):
            return response, ""
        reason = f"{response.status_code}: {_reason(response)[1]}"
        if response.status_code not in _PASSING:
            raise _stopped(url, reason)
        return response, reason

    def _body(self, texts: list[str]) -> bytes:
        options = self._options
        fields: dict[str, Any] = {
            "model": self._model,
            "input": texts,
            "encoding_format": "base64",
            "dimensions": options.dimensions,
            "input_type": options.input_type,
            "instruction": options.instruction,
            "prompt_name": options.prompt_name,
        }
        if options.truncate is not None:
            fields["truncate"] = options.truncate
        if not options.normalize:
            fields["normalize"] = False
        if options.embed_dtype is not EmbedDtype.FLOAT32:
            fields["embed_dtype"] = options.embed_dtype
        if options.outputs != (Output.DENSE,):
            kinds = (Output.DENSE, Output.SPARSE, Output.COLBERT)
            fields |= {f"return_{kind}": kind in options.outputs for kind in kinds}
        return orjson.dumps({name: value for name, value in fields.items() if value is not None})

    def _read(self, response: httpx.Response, count: int) -> Answer:
        """Return the vectors of an answer. Raises `JobStopped` if it is none."""
        space = response.headers.get("x-vector-space", self._space)
        if hex_of(space or "") != hex_of(self._space or ""):
            raise _stopped(str(response.url), f"its vectors are of {space}, not {self._space}")
        hits = response.headers.get("x-cache", "").partition("/")[0]
        self.cached += int(hits) if hits.isdecimal() else 0  # others have words there
        try:
            return self._parse(response.content, count)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            text = f"not the answer of an embeddings server ({type(error).__name__}: {error})"
            raise _stopped(str(response.url), text) from None

    def _parse(self, content: bytes, count: int) -> Answer:
        """Return vectors, each of the first one's width. Raises `ValueError` and its like."""
        tree = _loads(content)
        items = sorted(tree["data"], key=lambda item: int(item["index"]))
        if [int(item["index"]) for item in items] != list(range(count)):
            raise ValueError(f"{len(items)} vectors for {count} texts, or not one for each")
        found = list(map(self._rows, items))
        good = [row for row in found if _all_finite(row)]
        failed = {index: NOT_FINITE for index, row in enumerate(found) if not _all_finite(row)}
        by_output = {kind: _together(kind, good) for kind in self._options.outputs if good}
        tokens = (tree.get("usage") or {}).get("prompt_tokens") or 0
        return Answer(by_output, failed, int(tokens))

    def _rows(self, item: dict[str, Any]) -> dict[Output, Any]:
        return {kind: self._row(kind, item) for kind in self._options.outputs}

    def _row(self, kind: Output, item: dict[str, Any]) -> Any:
        number = number_type(self._options.embed_dtype)
        if kind is Output.SPARSE:
            return _sparse(item["sparse_embedding"])
        if kind is Output.DENSE:
            row, dimensions = _numbers(item["embedding"], number), 1
        else:
            row, dimensions = _numbers(item["colbert_embedding"], number), 2
            row = row.reshape(item["colbert_shape"])
        width = self._width.setdefault(kind, row.shape[-1])
        if row.ndim != dimensions or row.shape[-1] != width or not width:
            raise ValueError(
                f"a vector of the shape {row.shape}, where others have {width} numbers"
            )
        return row


async def served_model(url: str, key: str | None) -> str:
    """Return the name of the only model of a server. Raises `BadConfiguration`."""
    models_url = embeddings_url(url).removesuffix("embeddings") + "models"
    try:
        async with httpx.AsyncClient(headers=_authorization(key)) as client:
            response = (await client.get(models_url)).raise_for_status()
        names = {entry.get("root") or entry["id"] for entry in response.json()["data"]}
    except httpx.TransportError as error:
        raise _unreachable(models_url, error) from None
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadConfiguration(f"--server: {models_url}: {reason}") from None
    if len(names) == 1:
        return str(names.pop())
    raise BadConfiguration(f"--model: name one of {', '.join(sorted(names)) or 'nothing'}")


def _authorization(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def embeddings_url(url: str) -> str:
    """Return where embeddings are at a server's address, with or without its `/v1`."""
    if not url.startswith(("http://", "https://")):
        raise BadConfiguration(f"--server: {url!r} does not begin with http:// or https://")
    base = url.rstrip("/").removesuffix("/embeddings").removesuffix("/v1")
    return f"{base}/v1/embeddings"


def _numbers(value: Any, number: np.dtype[Any]) -> Any:
    """Return a vector; servers that do not know base64 send a list."""
    if isinstance(value, list):
        found = np.array(value)
        if number.kind in "iu" and found.dtype.kind not in "iu":
            raise ValueError(f"{found.dtype} instead of {number}")
        return np.array(value, number)
    return np.frombuffer(base64.b64decode(value, validate=True), number)


def _sparse(weights: dict[str, float]) -> Sparse:
    pairs = sorted((int(name), weight) for name, weight in weights.items())
    return Sparse(
        np.array([name for name, _ in pairs], np.int64),
        np.array([weight for _, weight in pairs], np.float32),
    )


def _join(first: Answer, second: Answer, middle: int) -> Answer:
    """Put the answers about two halves together, the second of which begins at `middle`."""
    failed = first.failed | {middle + index: why for index, why in second.failed.items()}
    by_output = dict(first.by_output or second.by_output)
    if first.by_output and second.by_output:
        for kind, rows in first.by_output.items():
            more = second.by_output[kind]
            by_output[kind] = np.concatenate([rows, more]) if kind is Output.DENSE else rows + more
    return Answer(by_output, failed, first.tokens + second.tokens)


def _is_final(response: httpx.Response) -> bool:
    """Whether it is no use to ask again: these texts are refused, or end an engine."""
    if response.status_code in _REFUSED and (_is_openais(response) or _is_too_large(response)):
        return True
    told = response.headers.get("x-should-retry") == "false"
    return told and response.status_code in _SERVER_ERRORS


def _is_openais(response: httpx.Response) -> bool:
    """Whether an error is of the server itself, in OpenAI's form; proxies have others."""
    try:
        return isinstance(orjson.loads(response.content)["error"]["message"], str)
    except (ValueError, LookupError, TypeError):
        return False


def _is_too_large(response: httpx.Response) -> bool:
    """Whether a proxy may take half as much."""
    return response.status_code == _TOO_LARGE


def _loads(content: bytes) -> Any:
    """Return a JSON document, in which some servers write NaN."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


def _together(kind: Output, rows: list[dict[Output, Any]]) -> Any:
    found = [row[kind] for row in rows]
    return np.stack(found) if kind is Output.DENSE else found


def _all_finite(row: dict[Output, Any]) -> bool:
    return all(
        np.isfinite(numbers.values if kind is Output.SPARSE else numbers).all()
        for kind, numbers in row.items()
    )


def _unreachable(url: str, error: httpx.HTTPError) -> JobStopped:
    return JobStopped(
        f"--server: {url} cannot be reached: {_why(error)}; start it, or mend the address"
    )


def _why(error: BaseException) -> str:
    """Return why there is no connection, which is some causes below what the client says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _reason(response: httpx.Response) -> tuple[str, str]:
    """Return code and message of an error."""
    try:
        error = orjson.loads(response.content)["error"]
        message = str(error["message"]).replace(_TRUNCATE_FIELD, "--truncate right")[:1000]
        return str(error.get("code") or "refused"), message.replace("input[0]", "the text")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "refused", response.text[:200].strip() or response.reason_phrase


def _pause_s(attempt: int, response: httpx.Response | None) -> float:
    """Return how long to wait before another try: longer each time, or as the server says."""
    asked: str = "0" if response is None else response.headers.get("retry-after", "0")
    longest_s = min(_PAUSE_S * 2.0**attempt, _LONGEST_PAUSE_S)
    pause_s = longest_s * random.uniform(0.5, 1)  # noqa: S311 - so that clients come apart
    with contextlib.suppress(ValueError):  # a date
        return max(pause_s, float(asked))
    return pause_s


def _stopped(url: str, reason: str) -> JobStopped:
    return JobStopped(f"{url}: {reason}; the same command goes on where this one ends")
