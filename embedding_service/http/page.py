"""`/ui`: a page for trying the service and looking at it; its files lie in `page/`.

The files are static, open and served from memory: a browser sends no key when it opens an address.
All that they show comes from requests that need a key where keys are set.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, probe
from embedding_service.dialects.errors import OPENAI
from embedding_service.http import figures

if TYPE_CHECKING:
    from embedding_service.dialects.dialect import Handler

PATH = "/ui"
_SHELL = "index.html"
_DOCS = b' <a href="docs" id="docs">API documentation</a>'
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # ask each time, so that an upgrade shows at once: 304 is cheap
    "vary": "accept",  # `/` is JSON to programs
}


def dialect(routes: figures.Routes, *, shows_docs: bool) -> Dialect:
    """Return the operations; the figures count requests to `routes`."""
    folder = files(__package__) / "page"
    sources = {file.name: file.read_bytes() for file in folder.iterdir()}
    shell = sources.pop(_SHELL)
    if not shows_docs:
        shell = shell.replace(_DOCS, b"")
    served = [_operation(f"{PATH}/{name}", _file(name, body)) for name, body in sources.items()]
    operations = (_operation(PATH, _shell(shell)), *served)
    return Dialect("Page", OPENAI, (*operations, figures.operation(f"{PATH}/figures", routes)))


def _operation(path: str, handle: Handler) -> Operation:
    return probe(path, handle, "", documented=False)


def _shell(body: bytes) -> Handler:
    """Return what serves the page with the addresses of its files."""

    async def shell(request: Request[None]) -> Answer:
        return await _file(_SHELL, body.replace(b'"ui/', b'"' + _folder(request)))(request)

    return shell


def _folder(request: Request[None]) -> bytes:
    """Return where the files are as seen from the page.

    That is relative where no proxy's prefix is known, for one may have been taken off the path.
    """
    path, prefix = request.sent_path, request.prefix
    if prefix:
        return f"{prefix}{PATH}/".encode()
    is_folder = path.endswith("/") and path.rstrip("/").endswith(PATH)
    return b"" if is_folder else b"ui/"


def _file(name: str, body: bytes) -> Handler:
    media_type = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    tag = f'"{sha256(body).hexdigest()[:20]}"'
    headers = _HEADERS | {"etag": tag}

    async def file(request: Request[None]) -> Answer:
        if tag in request.known:  # a proxy that compresses makes it a weak one: W/"..."
            return Answer(b"", headers, 304, None)
        return Answer(body, headers, media_type=media_type)

    return file
