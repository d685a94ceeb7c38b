"""The OpenAPI document: FastAPI's own, with the bodies that our operations read themselves."""

from __future__ import annotations

import inspect
from functools import reduce
from itertools import product
from operator import or_
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from embedding_service.http.routes import telling_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastapi import FastAPI
    from pydantic import BaseModel

    from embedding_service.dialects.errors import Responses
    from embedding_service.http.routes import Mounted, RouteTable

# Headers of answers that clients may read, and what each says.
_ALWAYS = {"x-request-id": "The request's own id, or the one that it was given; the log has it."}
_OF_ANSWERS = {
    "openai-processing-ms": "Milliseconds from the last header to the answer.",
    "x-vector-space": "The space of the vectors, NAME@HEX: only within one may they be compared.",
    "x-truncated-inputs": "The inputs that were cut, by their index.",
    "x-chunked-inputs": "The inputs that were computed in several chunks, by their index.",
    "x-cache": "How many of the inputs were known: 3/8.",
    "x-token-ids": "Whose token ids the inputs were read as.",
    "x-ignored-fields": "The fields of the request that changed nothing.",
}
_OF_ERRORS = {
    "x-error-code": "The error's code, as docs/errors.md has it.",
    "x-should-retry": "true if the same request may succeed later; OpenAI's SDKs obey.",
    "retry-after": "Seconds after which it is worth to try again.",
}
_RATES = [
    f"x-ratelimit-{figure}-{kind}"
    for figure, kind in product(("limit", "remaining", "reset"), ("requests", "tokens"))
]
EXPOSED = (*_ALWAYS, *_OF_ANSWERS, *_OF_ERRORS, *_RATES)  # to browsers
_SCHEMAS = "#/components/schemas/{model}"
_HEADERS = "#/components/headers/{name}"


def route_options(mounted: Sequence[Mounted]) -> dict[str, Any]:
    """Return the arguments of `FastAPI.add_api_route` that document operations at one path."""
    operations = [each.operation for each in mounted]
    first = operations[0]
    options: dict[str, Any] = {
        "summary": _summary(mounted),
        "response_model": reduce(or_, [operation.response for operation in operations]),
        "responses": _responses(mounted),
        "tags": list(dict.fromkeys(each.dialect.name for each in mounted)),
        "include_in_schema": first.documented,
        "name": first.handle.__name__,
    }
    if len(operations) == 1:
        options["description"] = inspect.cleandoc(first.handle.__doc__ or "")
    if first.request is not None:
        options["operation_id"] = first.id or _id(first.path)
        options["openapi_extra"] = _body(mounted)
    elif first.parameters:
        options["openapi_extra"] = {"parameters": list(first.parameters)}
    return options


def document(app: FastAPI, table: RouteTable) -> dict[str, Any]:
    """Return the document of everything that is served."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document["components"]["schemas"]
    for model in _request_models(table):
        schema = model.model_json_schema(ref_template=_SCHEMAS)
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    _add_headers(document)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]  # without configured keys none is needed
    return document


def _add_headers(document: dict[str, Any]) -> None:
    """Say which headers the answers of operations with a body have, and the errors of all."""
    document["components"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in (_ALWAYS | _OF_ANSWERS | _OF_ERRORS).items()
    }
    for path in document["paths"].values():
        for operation in path.values():
            of_success = _OF_ANSWERS if "requestBody" in operation else {}
            for status, response in operation["responses"].items():
                names = _ALWAYS | (of_success if status == "200" else _OF_ERRORS)
                response["headers"] = {name: {"$ref": _HEADERS.format(name=name)} for name in names}


def _request_models(table: RouteTable) -> Iterator[type[BaseModel]]:
    for resource in table:
        for mounted in resource.methods.values():
            yield from _models(mounted)


def _models(mounted: Sequence[Mounted]) -> list[type[BaseModel]]:
    requests = [each.operation.request for each in mounted]
    return [request for request in requests if request is not None]


def _summary(mounted: Sequence[Mounted]) -> str:
    for each in mounted:
        if each.operation.when is None:
            return each.operation.summary
    if len(mounted) == 1:
        return mounted[0].operation.summary
    return f"By field: {', '.join(telling_fields(mounted))}"


def _responses(mounted: Sequence[Mounted]) -> Responses:
    """Return the errors of all operations at one path; a status may have several shapes."""
    merged: Responses = {}
    for each in mounted:
        operation = each.operation
        own = operation.responses
        if own is None:
            own = each.errors.responses() if operation.request else {}
        for status, response in own.items():
            known = merged.get(status)
            models = response["model"] if known is None else known["model"] | response["model"]
            merged[status] = {**response, **(known or {}), "model": models}
    return merged


def _body(mounted: Sequence[Mounted]) -> dict[str, Any]:
    names = dict.fromkeys(model.__name__ for model in _models(mounted))
    references = [{"$ref": _SCHEMAS.format(model=name)} for name in names]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    content = {"schema": schema, "examples": _examples(mounted)}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _examples(mounted: Sequence[Mounted]) -> dict[str, Any]:
    """Return the example of each operation at one path."""
    return {
        f"{each.dialect.name} {each.operation.handle.__name__}": {"value": each.operation.example}
        for each in mounted
    }


def _id(path: str) -> str:
    return path.strip("/").replace("/", "_").replace("-", "_") or "root"
