"""Rates of requests, before anything is read; the rate of tokens is prepared here and taken by the core."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from embedding_service.http.middleware import exchange_of
from embedding_service.service.rates import TokenBudget, over_limit
from embedding_service.types import ANYONE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from embedding_service.http.middleware import Exchange
    from embedding_service.service.rates import Rates, Window
    from embedding_service.types import Tenant


class RateLimit:
    """Middleware that counts what may have a body, for each key, or each address where there are no keys."""

    def __init__(self, app: ASGIApp, *, rates: Rates) -> None:
        self.app = app
        self.rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its limits in the headers. Raises `RateLimited`."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        tenant, path = exchange.call.tenant, scope["path"]
        if (rate := self.rates.requests(tenant, path)) is not None:
            own = path if rate != tenant.requests and path in self.rates.paths else ""
            window = await self.rates.take("requests", _who(tenant, scope) + own, rate, 1)
            _tell(exchange, "requests", window)
            if not window.allowed:
                raise over_limit(window, rate, "requests", 1)
        if (rate := self.rates.tokens(tenant)) is None:
            await self.app(scope, receive, send)
            return
        budget = exchange.call.budget = TokenBudget(self.rates, _who(tenant, scope), rate)

        async def send_with_tokens(message: Message) -> None:
            if message["type"] == "http.response.start" and budget.last is not None:
                _tell(exchange, "tokens", budget.last)
            await send(message)

        try:
            await self.app(scope, receive, send_with_tokens)
        except Exception:
            if budget.last is not None:
                _tell(exchange, "tokens", budget.last)
            raise


def _tell(exchange: Exchange, kind: str, window: Window) -> None:
    exchange.headers |= {
        f"x-ratelimit-limit-{kind}": str(window.limit),
        f"x-ratelimit-remaining-{kind}": str(window.remaining),
        f"x-ratelimit-reset-{kind}": f"{window.reset_s:.3f}s",
    }


def _who(tenant: Tenant, scope: Scope) -> str:
    return f"address:{_address(scope)}" if tenant is ANYONE else f"key:{tenant.name}"


def _address(scope: Scope) -> str:
    """Return who asks: an IPv4 address, or the /64 network that one IPv6 customer has."""
    client = scope.get("client")
    if client is None:
        return "local"
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return "unknown"
    if address.version == 6 and address.ipv4_mapped is not None:  # noqa: PLR2004 - how a listener on `::` sees IPv4
        address = address.ipv4_mapped
    if address.version == 4:  # noqa: PLR2004
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
