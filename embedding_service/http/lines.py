"""The lines of batches, answered by the operations that answer requests at the same path."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

import orjson

from embedding_service.batches.lines import Answered
from embedding_service.dialects.errors import Failure
from embedding_service.errors import Overloaded, RateLimited, ServiceError, Unavailable
from embedding_service.http.answers import pieces
from embedding_service.http.exchange import Exchange
from embedding_service.http.json_body import parse_object
from embedding_service.http.problems import internal_error
from embedding_service.service.threads import Turns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

    from embedding_service.dialects.dialect import Answer
    from embedding_service.http.dispatch import Dispatcher
    from embedding_service.http.routes import RouteTable
    from embedding_service.service.call import Call

_ENVELOPE_VALUES = 8
_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0  # a batch may be cancelled, and its rights may change


class LineReader:
    """Parses lines as strictly as bodies, and answers them in the words of their dialect."""

    def __init__(
        self, dispatcher: Dispatcher, table: RouteTable, log: FilteringBoundLogger
    ) -> None:
        self._dispatcher = dispatcher
        self._table = table
        self._log = log
        self._turns = Turns()

    def parse(self, raw: bytes) -> dict[str, Any]:
        """Return the JSON object of a line. Raises `InvalidRequest`."""
        most = self._dispatcher.settings.body_values + _ENVELOPE_VALUES
        return parse_object(raw, None, max_values=most)

    async def answer(self, endpoint: str, body: Mapping[str, Any], call: Call) -> Answered:
        """Answer a body as the endpoint does; errors are answers, but for those that may pass."""
        resource = self._table.find(endpoint)
        assert resource is not None  # noqa: S101 - `ENDPOINTS` are always served
        exchange = Exchange(secrets.token_hex(16), time.monotonic(), call, resource.errors)
        await self._turns.wait()
        try:
            answer = await self._dispatcher.answer_tree(exchange, resource, body)
            parts = await _written(answer)
        except ServiceError as error:
            if _may_pass(error):
                return Answered(retry_s=min(error.retry_after_s or _RETRY_S, _LONGEST_RETRY_S))
            return _failed(error, exchange)
        except Exception:  # noqa: BLE001 - it fails its line, as it would fail its request
            self._log.exception("line_failed", id=exchange.id)
            return _failed(internal_error(), exchange)
        tokens, model = exchange.log.get("tokens", 0), exchange.log.get("model")
        return Answered(answer.status, exchange.id, parts, tokens, model)


def _may_pass(error: ServiceError) -> bool:
    """Tell whether the line should run again, later."""
    waits = isinstance(error, RateLimited | Overloaded | Unavailable)
    return waits and error.should_retry is not False


def _failed(error: ServiceError, exchange: Exchange) -> Answered:
    status, body = exchange.errors.write(Failure.of(error, exchange.names))
    return Answered(status, exchange.id, (orjson.dumps(body),))


async def _written(answer: Answer) -> tuple[bytes, ...]:
    """Render an answer; between its pieces others have their turn."""
    if isinstance(answer.body, bytes):
        return (answer.body,)
    parts = []
    for piece in pieces(answer.body):
        parts.append(piece)
        await asyncio.sleep(0)
    return tuple(parts)
