"""TEI itself: its dialect's errors for everything, and probes that answer without a body."""

from __future__ import annotations

from embedding_service.dialects import tei
from embedding_service.dialects.dialect import Answer, Dialect, Request, probe
from embedding_service.dropin.preset import Preset
from embedding_service.errors import Unavailable

_RETRY_S = 5.0


async def health(request: Request[None]) -> Answer:
    """Answer 200 without a body once the gateway is ready."""
    if not request.lifecycle.ready:
        raise Unavailable(f"not ready: {request.lifecycle.phase}", retry_after_s=_RETRY_S)
    return Answer(media_type=None)


_SUMMARY, _ERRORS = "Is the service up?", tei.ERRORS.responses()
_PROBES = [probe(path, health, _SUMMARY, responses=_ERRORS) for path in ("/", "/health", "/ping")]
PROBES = Dialect("TEI", tei.ERRORS, tuple(_PROBES))
PRESET = Preset(name=tei.PRESET, errors=tei.ERRORS, dialects=lambda _: (PROBES, tei.DIALECT))
