"""Requests to copy, for a person who has just started the gateway: for each kind of model one.

They go to the address that is listened to, with the model's name, and show where a key goes.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings

_V4, _V6 = 4, 6
_LOOPBACK = {_V4: ipaddress.ip_address("127.0.0.1"), _V6: ipaddress.ip_address("::1")}
_TEXT = "Hello, world"
_PAIR = {
    "query": "capital of France",
    "documents": ["Paris is its capital.", "Bananas are yellow."],
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the gateway is reached from its own machine: a URL, and perhaps a Unix socket."""

    url: str
    socket: str | None = None

    @classmethod
    def of(cls, name: Any) -> Place:
        """Return the place of a listening socket, by its `getsockname`."""
        if isinstance(name, str):
            return cls("http://localhost", name)
        host, port = name[:2]
        address = ipaddress.ip_address(host.partition("%")[0])
        if address.is_unspecified:
            address = _LOOPBACK[address.version]
        shown = str(address) if address.version == _V4 else f"[{address}]"
        return cls(f"http://{shown}:{port}")


def ready_facts(settings: Settings, models: Iterable[ServedModel], place: Place) -> dict[str, str]:
    """Return what the log says when the gateway is ready: addresses, and requests to copy."""
    steps = {"url": place.url}
    if place.socket is not None:
        steps["socket"] = place.socket
    elif settings.docs != "off":
        steps["docs"] = f"{place.url}/docs"
    if place.socket is None and settings.ui != "off":
        steps["page"] = f"{place.url}/ui"
    ready = [model for model in models if model.facts is not None]
    for model in reversed(ready):  # the first of each kind stays
        kind = "rerank_" if _scores(model) else ""
        steps[f"{kind}curl"] = _curl(model, place, has_keys=settings.has_keys)
        steps[f"{kind}python"] = _python(model, place, has_keys=settings.has_keys)
    return steps


def _scores(model: ServedModel) -> bool:
    return model.facts is not None and Output.SCORE in model.facts.outputs


def _request(model: ServedModel) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request that the model can answer."""
    if _scores(model):
        return "/v1/rerank", {"model": model.name, **_PAIR}
    dense = model.facts is not None and Output.DENSE in model.facts.outputs
    path = "/v1/embeddings" if dense else "/v1/sparse-embeddings"
    return path, {"model": model.name, "input": _TEXT}


def _curl(model: ServedModel, place: Place, *, has_keys: bool) -> str:
    path, body = _request(model)
    parts = ["curl", place.url + path]
    if place.socket is not None:
        parts[1:1] = ["--unix-socket", shlex.quote(place.socket)]
    if has_keys:
        parts += ["-H", '"Authorization: Bearer $KEY"']
    parts += ["-H", "'Content-Type: application/json'"]
    return " ".join([*parts, "-d", shlex.quote(json.dumps(body, ensure_ascii=False))])


def _python(model: ServedModel, place: Place, *, has_keys: bool) -> str:
    """Return a line of Python: OpenAI's SDK for vectors, httpx for what it has no method for."""
    path, body = _request(model)
    transport = f"httpx.HTTPTransport(uds={place.socket!r})"
    if path != "/v1/embeddings":
        client = f"httpx.Client(transport={transport})" if place.socket is not None else "httpx"
        headers = ', headers={"Authorization": "Bearer KEY"}' if has_keys else ""
        return f"import httpx; {client}.post({place.url + path!r}, json={body}{headers}).json()"
    more = f", http_client=httpx.Client(transport={transport})" if place.socket is not None else ""
    imports = "import httpx, openai" if place.socket is not None else "import openai"
    key = "KEY" if has_keys else "none"
    return (
        f"{imports}; openai.OpenAI(base_url={place.url + '/v1'!r}, api_key={key!r}{more})"
        f".embeddings.create(model={model.name!r}, input={_TEXT!r})"
    )
