"""The lines of a batch: OpenAI's envelope around a request, read, checked and answered.

`{"custom_id", "method": "POST", "url", "body"}` comes in; `{"id", "custom_id", "response",
"error"}` goes out (https://platform.openai.com/docs/api-reference/batch).
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from embedding_service.batches.store import new_id
from embedding_service.errors import InvalidRequest, ServiceError, Unavailable, VectorSpaceMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

    from embedding_service.service.call import Call
    from embedding_service.service.models import ModelRegistry

RERANK = "/v1/rerank"
ENDPOINTS = ("/v1/embeddings", RERANK)
_SLICE_LINES, _SLICE_BYTES = 64, 256 << 10  # read at a time, in a thread
_MOST_BLANK_LINES = 1_000_000  # half a second
_MOST_ID_CHARACTERS = 512
_MOST_ERRORS = 100
_OK = 200


@dataclass(slots=True)
class Answered:
    """The answer to one line; with `retry_s` there is none yet, and the line may try again then."""

    status: int = _OK
    request_id: str = ""
    body: tuple[bytes, ...] = ()
    tokens: int = 0
    model: str | None = None
    retry_s: float | None = None


class Reader(Protocol):
    """The dialects' side: how a line is parsed, and how its body is answered."""

    def parse(self, raw: bytes) -> dict[str, Any]:
        """Return the JSON object of a line. Raises `InvalidRequest`."""

    async def answer(self, endpoint: str, body: Mapping[str, Any], call: Call) -> Answered:
        """Answer a body as the endpoint does; errors are answers, in its words."""


class Numbered(NamedTuple):
    """A line as it is: its number in the file (from 1), its place among those not blank."""

    number: int
    place: int
    raw: bytes


class Line(NamedTuple):
    """A line that was read: its place among the lines that are not blank, its id, its body."""

    place: int
    custom_id: str
    body: Mapping[str, Any]
    size: int

    @property
    def texts(self) -> int:
        """About how many texts it has."""
        lists = (self.body.get(name) for name in ("input", "documents"))
        return max(len(each) if isinstance(each, list) else 1 for each in lists)


class BadLine(Exception):
    """A line, or a fault of the disk, for which its batch fails."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    def fault(self, line: int | None = None) -> dict[str, Any]:
        """Return it as OpenAI's batches report it."""
        return {"code": self.code, "message": str(self), "param": self.param, "line": line}


def read_slices(file: BinaryIO, longest_bytes: int) -> Iterator[list[Numbered]]:
    """Yield some lines at a time.

    Of a line that is too long no more than its beginning is read, and nothing after it. Raises
    `BadLine` for more blank lines than anybody could mean: 200 MB of them were two minutes of CPU.
    """
    number = place = size = 0
    lines: list[Numbered] = []
    while raw := file.readline(longest_bytes + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if raw.strip():
            lines.append(Numbered(number, place, raw))
            place, size = place + 1, size + len(raw)
        elif number - place > _MOST_BLANK_LINES:
            raise BadLine("invalid_file", f"the file has more than {_MOST_BLANK_LINES} blank lines")
        if len(lines) >= _SLICE_LINES or size >= _SLICE_BYTES or len(raw) > longest_bytes:
            if lines:
                yield lines
            lines, size = [], 0
        if len(raw) > longest_bytes:
            return
    if lines:
        yield lines


def read_line(numbered: Numbered, reader: Reader, endpoint: str, longest_bytes: int) -> Line:
    """Read the envelope. Raises `BadLine`; whether the body is right shows when it runs."""
    if len(numbered.raw) > longest_bytes:
        why = (
            f"line {numbered.number} is longer than {longest_bytes} bytes, which no request may be"
        )
        raise BadLine("line_too_long", why)
    try:
        tree = reader.parse(numbered.raw.rstrip())
    except InvalidRequest as error:
        why = error.message.replace("the request body", f"line {numbered.number}")
        why = why.replace(" at line 1 column", " at column")  # of the file, not of this line
        raise BadLine("invalid_json_line", why, error.param) from None
    _check_envelope(tree, endpoint)
    return Line(numbered.place, tree["custom_id"], tree["body"], len(numbered.raw))


def _check_envelope(tree: dict[str, Any], endpoint: str) -> None:
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in tree:
            raise BadLine("missing_required_parameter", f"{name} is required", name)
        if not isinstance(tree[name], kind):
            needed = "an object" if kind is dict else "a string"
            raise BadLine("invalid_request", f"{name} must be {needed}", name)
    if not 0 < len(tree["custom_id"]) <= _MOST_ID_CHARACTERS:
        why = f"custom_id must have from 1 to {_MOST_ID_CHARACTERS} characters"
        raise BadLine("invalid_custom_id", why, "custom_id")
    if tree["method"] != "POST":
        raise BadLine("invalid_method", "method must be POST", "method")
    if tree["url"] != endpoint:
        raise BadLine("mismatched_url", f"url must be the batch's endpoint, {endpoint}", "url")


@dataclass(slots=True, kw_only=True)
class Check:
    """The check of a whole input file; `errors` are what OpenAI's batches report.

    `spaces` are those of the models that lines name, all of them if these are `loaded`.
    """

    reader: Reader
    models: ModelRegistry
    endpoint: str
    call: Call
    most_lines: int
    longest_bytes: int
    total: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    spaces: set[str] = field(default_factory=set)
    loaded: bool = True
    _ids: set[str] = field(default_factory=set)

    @property
    def ended(self) -> bool:
        """Whether enough is known."""
        return len(self.errors) >= _MOST_ERRORS or self.total > self.most_lines

    def add(self, lines: list[Numbered]) -> None:
        """Check some lines."""
        for each in lines:
            try:
                self._check(each)
            except BadLine as error:
                self._refuse(error, each.number)

    def end(self) -> list[dict[str, Any]]:
        """Return what is wrong with the file."""
        if self.total > self.most_lines:
            self.errors.clear()
            why = f"max_batch_lines of this server is {self.most_lines}; make several batches"
            self._refuse(BadLine("too_many_lines", f"the file has more lines than allowed: {why}"))
        if not self.total:
            self._refuse(BadLine("empty_file", "the file has no request in it"))
        return self.errors[:_MOST_ERRORS]

    def _check(self, numbered: Numbered) -> None:
        self.total += 1
        line = read_line(numbered, self.reader, self.endpoint, self.longest_bytes)
        if line.custom_id in self._ids:
            raise BadLine("duplicate_custom_id", "custom_id is there twice", "custom_id")
        self._ids.add(line.custom_id)
        self._check_rights(line.body.get("model"))

    def _check_rights(self, name: object) -> None:
        """Raise `BadLine` for a model of others, or of a vector space that is not wanted.

        A model that is not served, or not ready, is for its line to meet.
        """
        try:
            asked = name if isinstance(name, str) else None
            model, _ = self.models.find(asked, scores=self.endpoint == RERANK)
            if self.call.tenant.may_use(model.options.names):
                if self.endpoint != RERANK:
                    self.call.enter(model.vector_space)
                    self.spaces.add(model.vector_space.hex)
                return
        except VectorSpaceMismatch as error:
            raise BadLine(str(error.code), error.message, "body.model") from None
        except Unavailable:
            self.loaded = False
            return
        except ServiceError:
            return
        raise BadLine("permission_denied", f"this key may not use {model.name}", "body.model")

    def _refuse(self, error: BadLine, line: int | None = None) -> None:
        self.errors.append(error.fault(line))


def answered_line(line: Line, answered: Answered) -> tuple[bytes, ...]:
    """Return the line of the output or error file; the answer's body is in it as it is."""
    response = b'"response":{"status_code":%d,"request_id":%s,"body":' % (
        answered.status,
        orjson.dumps(answered.request_id),
    )
    return _head(line), response, *answered.body, b'},"error":null}\n'


def unanswered_line(line: Line, code: str, message: str) -> tuple[bytes, ...]:
    """Return the line of the error file for a request that never ran."""
    error = orjson.dumps({"code": code, "message": message})
    return (_head(line) + b'"response":null,"error":' + error + b"}\n",)


def _head(line: Line) -> bytes:
    return b'{"id":"%s","custom_id":%s,' % (
        new_id("batch_req_").encode(),
        orjson.dumps(line.custom_id),
    )
