"""The fields of a request: validated strictly, refused in one sentence that names the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_service.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_ECHOED_CHARACTERS = 100
_MOST_MESSAGE_CHARACTERS = 1000

# Enums are read from their string values; everything else has to have its type.
Lax = Field(strict=False)


class Fields(BaseModel):
    """Base of every request: no value is converted; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


FieldsT = TypeVar("FieldsT", bound=Fields)


def read_fields(model: type[FieldsT], tree: Mapping[str, object]) -> tuple[FieldsT, list[str]]:
    """Validate `tree`; return the fields and the names that `model` does not know.

    Raises `InvalidRequest` about the first wrong field.
    """
    try:
        fields = model.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error, tree) from None
    return fields, [name for name in tree if name not in model.model_fields]


def _refusal(error: ValidationError, tree: Mapping[str, object]) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    missing = first["type"] == "missing"
    name = _path(first["loc"], tree, missing=missing)
    message = first["msg"].removeprefix("Value error, ")
    if missing:
        message = "this field is required"
    if name:
        message = f"{name}: {message}"
    return InvalidRequest(message[:_MOST_MESSAGE_CHARACTERS], param=name)


def _path(location: tuple[int | str, ...], tree: object, *, missing: bool) -> str | None:
    """Return `field`, `field[3]` or `field[3].name` from pydantic's location.

    That location also names the members of unions that pydantic tried, which are in no body.
    """
    path = ""
    last = len(location) - 1
    for place, part in enumerate(location):
        if isinstance(part, int) and isinstance(tree, list):
            path, tree = f"{path}[{part}]", tree[part]
        elif isinstance(tree, dict) and (part in tree or (missing and place == last)):
            name = field_name(str(part))
            path, tree = f"{path}.{name}" if path else name, tree.get(part)
    return path or None


def field_name(name: str) -> str:
    """Return the name of a field as a message may show it, whatever a client called it."""
    return printable(name) or "the body"


def printable(text: str) -> str:
    """Return the beginning of a client's text with nothing in it but printable ASCII."""
    text = text[:MOST_ECHOED_CHARACTERS]
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def header_list(names: Iterable[str]) -> str:
    """Return names as one header value; a long list ends in "..."."""
    text = ", ".join(map(printable, names))
    if len(text) <= MOST_ECHOED_CHARACTERS:
        return text
    return text[:MOST_ECHOED_CHARACTERS].rpartition(", ")[0] + ", ..."
