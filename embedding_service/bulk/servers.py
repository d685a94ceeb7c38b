"""Texts to vectors through running servers: this service's, or any that speaks OpenAI's API."""

from __future__ import annotations

import base64
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedding_service import client
from embedding_service.bulk.embedder import NOT_FINITE, PROBE, Answer
from embedding_service.bulk.manifest import hex_of
from embedding_service.bulk.outputs import number_type
from embedding_service.bulk.rows import Failure
from embedding_service.client import Client
from embedding_service.errors import BadConfiguration, JobStopped, NoVectors
from embedding_service.types import EmbedDtype, Output, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx
    from structlog.typing import FilteringBoundLogger

    from embedding_service.bulk.options import BulkOptions

# Of each server: four requests of 256 texts, so that some wait there while one is computed.
_ROWS_AT_ONCE = 1024
_PATIENCE_S = 900.0  # for servers that are started anew one after another, and load a model each
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
        self._client = Client(urls, key, patience_s=_PATIENCE_S, say=log.warning, doubts_500=True)
        self._options = options
        self._model = model
        self._space: str | None = None
        self.cached = 0  # texts that a server had answered before
        self._width: dict[Output, int] = {}  # of the vectors, as the first answer has it

    @property
    def identity(self) -> dict[str, Any]:
        """The model, and the vector space if the server names it."""
        return {"model": self._model, "vector_space": self._space}

    @property
    def rows_at_once(self) -> int:
        """As many rows as keep every server busy."""
        return _ROWS_AT_ONCE * len(self._client.roots)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def probe(self) -> Answer:
        """Embed a word; learn width and space. Raises `BadConfiguration`, `JobStopped`."""
        try:
            response = await self._post([PROBE])
        except NoVectors as error:
            raise _unreachable(error) from None
        if not response.is_success:
            raise BadConfiguration(f"--server: {client.failure(response)}")
        self._space = response.headers.get("x-vector-space")
        answer = self._read(response, 1)
        if answer.failed:
            raise BadConfiguration(f"--server: {response.url}: {answer.failed[0].reason}")
        packed = self._options.embed_dtype in (EmbedDtype.BINARY, EmbedDtype.UBINARY)
        wanted = (self._options.dimensions or 0) // (8 if packed else 1)
        if wanted and self._width.get(Output.DENSE, wanted) != wanted:
            numbers = f"{self._width[Output.DENSE]} numbers and not {wanted}"
            raise BadConfiguration(f"--dimensions: {response.url} gives {numbers}")
        return answer

    async def embed(self, texts: list[str]) -> Answer:
        """Embed texts; where they are refused, each half by itself. Raises `JobStopped`."""
        try:
            response = await self._post(texts)
        except NoVectors as error:
            raise _stopped(str(error)) from None
        if response.is_success:
            return self._read(response, len(texts))
        if not client.is_refusal(response):
            raise _stopped(client.failure(response))
        if len(texts) == 1:
            return Answer({}, {0: _refused(response)}, 0)
        middle = len(texts) // 2
        first = await self.embed(texts[:middle])
        return _join(first, await self.embed(texts[middle:]), middle)

    async def _post(self, texts: list[str]) -> httpx.Response:
        return await self._client.ask("/v1/embeddings", self._body(texts))

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
            raise _stopped(f"{response.url}: its vectors are of {space}, not {self._space}")
        hits = response.headers.get("x-cache", "").partition("/")[0]
        self.cached += int(hits) if hits.isdecimal() else 0  # others have words there
        try:
            return self._parse(response.content, count)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise _stopped(
                f"{response.url}: not the answer of an embeddings server ({why})"
            ) from None

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
    try:
        only = Client([url], key, patience_s=_PATIENCE_S, say=lambda _: None)
        async with aclosing(only) as http:
            response = await http.ask("/v1/models")
    except NoVectors as error:
        raise _unreachable(error) from None
    if not response.is_success:
        raise BadConfiguration(f"--server: {client.failure(response)}")
    try:
        names = {entry.get("root") or entry["id"] for entry in response.json()["data"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) or type(error).__name__
        raise BadConfiguration(f"--server: {response.url}: {why}") from None
    if len(names) == 1:
        return str(names.pop())
    raise BadConfiguration(f"--model: name one of {', '.join(sorted(names)) or 'nothing'}")


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


def _refused(response: httpx.Response) -> Failure:
    """Say why a text has no vector, in the words of the command that sent it."""
    message = client.message(response).replace(_TRUNCATE_FIELD, "--truncate right")
    return Failure(client.code(response) or "refused", message.replace("input[0]", "the text"))


def _unreachable(error: NoVectors) -> JobStopped:
    return JobStopped(f"--server: {error}; start it, or mend the address")


def _stopped(reason: str) -> JobStopped:
    return JobStopped(f"{reason}; the same command goes on where this one ends")
