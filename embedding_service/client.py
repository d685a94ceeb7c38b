"""Requests to running servers, with one rule for which are sent again, when, and for how long.

Proxies and certificates are those of the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE). No
redirect is followed: another host would get the key.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from asyncio import sleep
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

import httpx

from embedding_service.errors import BadConfiguration, NoVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TIMEOUT: Final = httpx.Timeout(300.0, connect=10.0)  # a CPU may need minutes for long texts
_GET_TIMEOUT: Final = httpx.Timeout(10.0)
_BROKEN: Final = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
# Nobody's doing, and worth another try: a timeout, too much at once, a server's own trouble.
_PASSING: Final = frozenset({408, 425, 429, *range(500, 600)}) - {501, 505}
_DEFECT: Final = 500
_TOO_LARGE: Final = 413
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_TOLD_EVERY_S: Final = 30.0
_SHOWN_CHARACTERS: Final = 500


class Client:
    """One API at `urls`, with or without `/v1`, which are asked in turn.

    A server that is in trouble, or whose connection breaks, is asked again after the pause that it
    names, or after longer and longer ones; `say` is told now and then. It ends where nothing good
    has come for `patience_s`, and at once where nothing ever came from the address. A second 500
    in succession is taken for an answer about the inputs, unless `doubts_500`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None,
        *,
        patience_s: float,
        say: Callable[[str], object],
        doubts_500: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if key is not None and not key.isascii():
            raise BadConfiguration("SERVER_KEY, AGAINST_KEY: a key has ASCII characters only")
        self.roots = [_root(url) for url in urls]
        self._turns = itertools.cycle(self.roots)
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.AsyncClient(headers=headers, transport=transport)
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            raise BadConfiguration(
                f"a proxy or certificates of the environment cannot be used: {error}; see "
                "HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"
            ) from None
        self._patience_s = patience_s
        self._say = say
        self._doubts_500 = doubts_500
        self._answered = False
        self._failing_since = math.inf
        self._told = -_TOLD_EVERY_S

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, path: str, body: bytes | None = None) -> httpx.Response:
        """Return the last answer, of whatever status, to a POST, or to a GET without a body.

        Raises `NoVectors` if there is none.
        """
        for attempt in itertools.count():
            began = monotonic()
            response, reason = await self._once(next(self._turns), path, body)
            if response is not None and not self._passes(response, attempt):
                if not response.is_server_error:
                    self._failing_since = math.inf
                return response
            self._failing_since = min(self._failing_since, began)
            await self._wait(
                _pause_s(attempt, response), reason, told=attempt + 1 >= len(self.roots)
            )
        raise AssertionError  # pragma: no cover - the loop has no end

    async def _once(
        self, root: str, path: str, body: bytes | None
    ) -> tuple[httpx.Response | None, str]:
        """Return what came, and what is wrong with it. Raises `NoVectors`."""
        method, timeout = ("POST", _TIMEOUT) if body else ("GET", _GET_TIMEOUT)
        try:
            response = await self._http.request(method, root + path, content=body, timeout=timeout)
        except httpx.HTTPError as error:
            reason = f"{root} cannot be reached: {_why(error)}"
            if self._answered and isinstance(error, _BROKEN):
                return None, reason
            raise NoVectors(reason) from None
        self._answered = True
        return response, "" if response.is_success else failure(response)

    def _passes(self, response: httpx.Response, attempt: int) -> bool:
        """Whether the next answer may be another."""
        if response.headers.get("x-should-retry") == "false":
            return False
        if response.status_code == _DEFECT and attempt and not self._doubts_500:
            return False
        return response.status_code in _PASSING

    async def _wait(self, pause_s: float, reason: str, *, told: bool) -> None:
        """Pause. Raises `NoVectors` where it has been tried for long enough."""
        now = monotonic()
        silent_s = now - self._failing_since
        left_s = self._patience_s - silent_s
        if pause_s > left_s:
            raise NoVectors(reason)
        if told and now - self._told >= _TOLD_EVERY_S:
            self._told = now
            left = f"trying for {left_s / 60:.0f} minutes more"
            self._say(f"no server answers since {silent_s:.0f} s ({reason}); {left}")
        await sleep(pause_s)


def is_refusal(response: httpx.Response) -> bool:
    """Whether an error is about these very inputs: others may be answered.

    A proxy's 413 is one too, since it may take half as much; its other errors are no JSON objects.
    """
    if response.status_code in (400, 422):
        return bool(_document(response))
    final = response.headers.get("x-should-retry") == "false" and response.is_server_error
    return response.status_code in (_TOO_LARGE, _DEFECT) or final


def failure(response: httpx.Response) -> str:
    """Return address, status and message of an error, in one line."""
    return f"{response.url}: HTTP {response.status_code}: {message(response)}"


def message(response: httpx.Response) -> str:
    """Return the message of an error in one line, as OpenAI, vLLM, TEI or a proxy put it."""
    body = _document(response)
    error = body.get("error", body)
    found = error.get("message") if isinstance(error, dict) else error
    text = found if isinstance(found, str) else response.text
    return " ".join(text.split())[:_SHOWN_CHARACTERS] or response.reason_phrase


def code(response: httpx.Response) -> str | None:
    """Return the code of an error in OpenAI's form."""
    error = _document(response).get("error")
    return str(error["code"]) if isinstance(error, dict) and error.get("code") else None


def _document(response: httpx.Response) -> dict[str, Any]:
    """Return the body if it is a JSON object, else {}."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _root(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        sound = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 0) < 1 << 16
    except httpx.InvalidURL:
        sound = False
    if not sound:
        raise BadConfiguration(f"{url!r} is not the URL of a server, as http://localhost:8080 is")
    return url.rstrip("/").removesuffix("/embeddings").removesuffix("/v1")


def _pause_s(attempt: int, response: httpx.Response | None) -> float:
    """Return how long to wait before another try: longer each time, or as the server says."""
    longest_s = min(_PAUSE_S * 2.0**attempt, _LONGEST_PAUSE_S)
    pause_s = longest_s * random.uniform(0.5, 1)  # noqa: S311 - so that clients come apart
    return pause_s if response is None else max(pause_s, _asked_s(response))


def _asked_s(response: httpx.Response) -> float:
    """Return the seconds of `Retry-After`, which has a number or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "")
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError):
        return parsedate_to_datetime(text).timestamp() - time()
    return 0.0


def _why(error: BaseException) -> str:
    """Return why there is no connection, which is some causes below what the client says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
