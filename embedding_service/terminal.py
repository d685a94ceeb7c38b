"""The log of a start, of requests and of the end as a person reads it; others as they are.

A line about waiting, such as a download's bar, is written over by the next one of the story.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from typing import TYPE_CHECKING, Any

from structlog import DropEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor, WrappedLogger

    Writer = Callable[[EventDict], str]

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_GREEN, _YELLOW = "\x1b[32m", "\x1b[33m"
_ONE_LINE_UP = "\x1b[1A\x1b[2K"
_BAR_COLUMNS = 30
_FIRST_ERROR_STATUS = 400
_NOTES = ("environment", "no_api_key")  # warnings about settings, which are sentences
# Of a request's line: shown in front, or of no use on a terminal.
_IN_FRONT = ("event", "level", "timestamp", "method", "path", "status", "seconds", "client", "id")


class Story:
    """A structlog renderer for the events of a start; `otherwise` renders the others."""

    def __init__(self, otherwise: Processor, version: str) -> None:
        self._otherwise = otherwise
        self._version = version
        self._over = False  # whether the last line may be written over
        self._bar = False  # whether it is a bar

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> Any:
        """Return the line. Raises `DropEvent` for one that would hide a bar, which says more."""
        if self._bar and event["event"] == "still_loading":
            raise DropEvent
        write = self._writer(event)
        before = _ONE_LINE_UP if self._over and write else ""
        self._bar = write is not None and "total_bytes" in event
        self._over = self._bar or event["event"] == "still_loading"
        return before + write(event) if write else self._otherwise(logger, method, event)

    def _writer(self, event: EventDict) -> Writer | None:
        if event["event"] == "listening":
            return self._listening
        if event["event"] in _NOTES:
            return _note
        return _WRITERS.get(event["event"]) if event.get("level") == "info" else None

    def _listening(self, event: EventDict) -> str:
        name = f"{_BOLD}embedding-service {self._version}{_PLAIN}"
        return f"{name} listens on {event['address']}"


def _note(event: EventDict) -> str:
    return f"{_YELLOW}Note:{_PLAIN} {event['detail']}"


def _loading(event: EventDict) -> str:
    replicas = f", {event['replicas']} replicas" if event.get("replicas", 1) > 1 else ""
    return f"\n{_BOLD}{event['model']}{_PLAIN}{replicas}"


def _stage(event: EventDict) -> str:
    facts = [event["detail"]] if "detail" in event else []
    if "memory_bytes" in event:
        facts.append(f"{event['memory_bytes'] / 1e6:,.0f} MB of memory")
    if "device_memory_bytes" in event:
        facts.append(f"{event['device_memory_bytes'] / 1e9:.1f} GB of the device")
    return _done(event["stage"], event, facts)


def _done(what: str, event: EventDict, facts: list[str]) -> str:
    done = f"  {_GREEN}✓{_PLAIN} {what:<26}{event['seconds']:>7.1f} s"
    return f"{done}   {_DIM}{', '.join(facts)}{_PLAIN}" if facts else done


def _progress(event: EventDict) -> str:
    if not event.get("total_bytes"):
        return f"    {event.get('detail', '')}"
    return "    " + bar(event["done_bytes"], event["total_bytes"])


def bar(done: int, total: int) -> str:
    """Return the picture of a download of so many bytes."""
    share = min(1.0, done / total) if total else 1.0
    columns = min(_BAR_COLUMNS, shutil.get_terminal_size().columns // 3)
    filled = round(share * columns)
    picture = "█" * filled + "░" * (columns - filled)
    return f"{picture} {share:4.0%}  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"


def _still_loading(event: EventDict) -> str:
    return f"    {_DIM}… {event['waiting_for']}, for {event['seconds']} s so far{_PLAIN}"


def _loaded(event: EventDict) -> str:
    facts = [f"{event['dtype']} on {event['device']}", f"up to {event['max_tokens']:,} tokens"]
    if event.get("dimension"):
        facts.append(f"{event['dimension']} dimensions")
    facts.append(event["outputs"].replace(",", ", "))
    return _done("loaded", event, facts)


def _ready(event: EventDict) -> str:
    lines = [f"\n{_GREEN}{_BOLD}Ready{_PLAIN} after {event['seconds']:.1f} s", ""]
    places = (name for name in ("url", "socket", "page", "docs") if name in event)
    lines += (f"  {name:<8}{event[name]}" for name in places)
    for name in ("curl", "python", "rerank_curl", "rerank_python"):
        if name in event:
            lines += ["", f"  {event[name]}"]
    return "\n".join([*lines, ""])


def _request(event: EventDict) -> str:
    at = datetime.fromisoformat(event["timestamp"]).astimezone()
    is_error = event["status"] >= _FIRST_ERROR_STATUS
    status = f"{_YELLOW if is_error else _GREEN}{event['status']}{_PLAIN}"
    facts = [f"{1000 * event['seconds']:,.0f} ms"]
    facts += (f"{name} {_printable(event[name])}" for name in event if name not in _IN_FRONT)
    if is_error:
        facts.append(f"id {event['id']}")
    asked = f"{event['method']} {_printable(event['path'])}"
    return f"{_DIM}{at:%H:%M:%S}{_PLAIN}  {status}  {asked}  {_DIM}{', '.join(facts)}{_PLAIN}"


def _printable(value: object) -> str:
    """Return a value of a client's; what a terminal would obey is escaped."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _draining(event: EventDict) -> str:
    requests = event["in_flight"]
    return f"\nStopping{f'; {requests} requests are answered first' if requests else ''}"


def _stopped(_: EventDict) -> str:
    return "Stopped"


_WRITERS: dict[str, Writer] = {
    "loading": _loading,
    "engine_stage": _stage,
    "engine_progress": _progress,
    "still_loading": _still_loading,
    "loaded": _loaded,
    "ready": _ready,
    "request": _request,
    "draining": _draining,
    "stopped": _stopped,
}
