"""`/docs` and `/openapi.json`; the page's assets come from this host, not from a CDN."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi.openapi.docs import get_swagger_ui_html

from embedding_service.dialects.dialect import Access, Answer, Dialect, Operation, Request, get
from embedding_service.dialects.errors import OPENAI

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from embedding_service.dialects.dialect import Handler

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}
_FOLDER = "/docs/assets"


def dialect(title: str, document: Callable[[], dict[str, Any]], access: Access) -> Dialect:
    """Return the operations that show `document`, which is made when it is first asked for."""
    cache: list[dict[str, Any]] = []
    making = asyncio.Lock()

    async def openapi(request: Request[None]) -> Answer:
        async with making:  # by one request: forty that came together kept all threads for 17 s
            if not cache:
                # In a thread: it is 0.2 s of work.
                run, deadline = request.service.threads.run, request.call.deadline
                cache.append(await run(document, deadline=deadline))
        servers = {"servers": [{"url": request.prefix}]} if request.prefix else {}
        return Answer.json(cache[0] | servers)

    async def page(request: Request[None]) -> Answer:
        return _page(title, request.prefix)

    def operation(path: str, handle: Handler) -> Operation:
        return get(path, handle, "", access=access, documented=False)

    return Dialect(
        "Documentation",
        OPENAI,
        (
            operation("/openapi.json", openapi),
            operation("/docs", page),
            *(operation(f"{_FOLDER}/{name}", _asset(name)) for name in _ASSETS),
        ),
    )


def _page(title: str, prefix: str) -> Answer:
    folder = prefix + _FOLDER
    html = get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title=title,
        swagger_js_url=f"{folder}/swagger-ui-bundle.js",
        swagger_css_url=f"{folder}/swagger-ui.css",
        swagger_favicon_url=f"{folder}/favicon.png",
    )
    return Answer(bytes(html.body), media_type="text/html; charset=utf-8")


def _asset(name: str) -> Handler:
    body = (files("fastapi_offline") / "static" / name).read_bytes()

    async def asset(request: Request[None]) -> Answer:  # noqa: ARG001
        return Answer(body, media_type=_ASSETS[name])

    return asset
