"""Rates of requests, before anything is read; the service spends the token budget made here."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from embedding_service.http.body import WITHOUT_BODY
from embedding_service.http.exchange import exchange_of
from embedding_service.service.call import Unlimited
from embedding_service.service.rates import TokenBudget, over_limit
from embedding_service.types import ANYONE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from embedding_service.http.exchange import Exchange
    from embedding_service.service.call import Budget
    from embedding_service.service.rates import Rates, Window
    from embedding_service.types import Tenant


class RateLimit:
    """Middleware that counts requests which may have a body, by key, or by address without keys."""

    def __init__(self, app: ASGIApp, *, rates: Rates) -> None:
        self.app = app
        self.rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its limits in the headers. Raises `RateLimited`."""
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        await self._take_request(scope, exchange)
        rate = self.rates.tokens(exchange.call.tenant)
        if rate is None:
            await self.app(scope, receive, send)
            return
        caller = _caller(exchange.call.tenant, scope)
        budget = exchange.call.budget = TokenBudget(self.rates, caller, rate)
        await self._serve_with_budget(scope, receive, send, budget)

    async def _take_request(self, scope: Scope, exchange: Exchange) -> None:
        tenant, resource = exchange.call.tenant, exchange.resource
        path = scope["path"]
        if resource is not None and self.rates.paths:
            path = resource.rated_as(self.rates.paths)
        rate = self.rates.requests(tenant, path)
        if rate is None:
            return
        has_own_counter = rate != tenant.requests and path in self.rates.paths
        counter = _caller(tenant, scope) + (path if has_own_counter else "")
        window = await self.rates.take("requests", counter, rate, 1)
        _show(exchange, "requests", window)
        if not window.allowed:
            raise over_limit(window, rate, "requests", 1)

    async def _serve_with_budget(
        self, scope: Scope, receive: Receive, send: Send, budget: TokenBudget
    ) -> None:
        """Serve, and show the tokens that are left, also where the answer is an error."""
        exchange = exchange_of(scope)

        async def send_with_tokens(message: Message) -> None:
            if message["type"] == "http.response.start" and budget.last is not None:
                _show(exchange, "tokens", budget.last)
            await send(message)

        try:
            await self.app(scope, receive, send_with_tokens)
        except Exception:
            if budget.last is not None:
                _show(exchange, "tokens", budget.last)
            raise


def budget_of(rates: Rates, tenant: Tenant) -> Budget:
    """Return what an owner's batches may have computed; their requests are not counted."""
    rate = rates.tokens(tenant)
    caller = "batches" if tenant is ANYONE else f"key:{tenant.name}"
    return Unlimited() if rate is None else TokenBudget(rates, caller, rate)


def _show(exchange: Exchange, kind: str, window: Window) -> None:
    exchange.headers |= {
        f"x-ratelimit-limit-{kind}": str(window.limit),
        f"x-ratelimit-remaining-{kind}": str(window.remaining),
        f"x-ratelimit-reset-{kind}": f"{window.reset_s:.3f}s",
    }


def _caller(tenant: Tenant, scope: Scope) -> str:
    return f"address:{_address(scope)}" if tenant is ANYONE else f"key:{tenant.name}"


def _address(scope: Scope) -> str:
    """Return the client's IPv4 address, or the /64 network that one IPv6 customer has."""
    client = scope.get("client")
    if client is None:
        return "local"
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # how a listener on `::` sees IPv4
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
