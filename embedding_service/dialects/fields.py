"""The fields of a request: validated strictly, refused in one sentence that names the field."""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from embedding_service.errors import InvalidRequest
from embedding_service.service.checks import check_total
from embedding_service.settings.space_ids import IDS_PATTERN, read_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

MOST_ECHOED_CHARACTERS = 100
_MOST_MESSAGE_CHARACTERS = 1000
_ABOUT = ("title", "description", "default")
_FLAGS = {"true": True, "True": True, "false": False, "False": False}
# Of a longer one pydantic makes copies before it is refused, and a name is hashed on the event
# loop: 8,300,000 characters took 0.15 s and 130 MB, or 0.05 s there.
_LONGEST_WORD = 1 << 18
_NAMES = frozenset({"model", "prompt_name"})
_MOST_IGNORED = 100  # no client of another system sends more fields that we do not have

# Enums are read from their string values; everything else has to have its type.
Lax = Field(strict=False)


class Limits(NamedTuple):
    """How long lists may be: of items, and of token ids."""

    items: int
    tokens: int


def _failing_fast(schema: Any) -> Any:
    """Return a schema whose lists, however deep they are, stop at the first error."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_failing_fast, schema))
    if not isinstance(schema, dict):
        return schema
    copied = {name: _failing_fast(part) for name, part in schema.items()}
    return {**copied, "fail_fast": True} if copied.get("type") == "list" else copied


class BareFields(BaseModel):
    """Base of requests for no vectors, and of parts: nothing is converted, unknown is ignored.

    Null in an optional field is the same as leaving it out, for every dialect: clients in typed
    languages send all their fields.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have lists end at their first wrong item: 300,000 errors are 1 GB."""
        schema: CoreSchema = _failing_fast(handler(source))
        return schema

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, tree: object) -> object:
        if not isinstance(tree, dict) or not any(value is None for value in tree.values()):
            return tree
        return {
            name: value for name, value in tree.items() if value is not None or cls._needs(name)
        }

    @classmethod
    def _needs(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and field.is_required()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Document that every optional field takes null."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        for name in properties.keys() - set(required):
            properties[name] = _nullable(properties[name])
        return reference


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return a field's schema with null among what it takes."""
    kinds = schema.get("anyOf")
    if kinds is not None:
        return (
            schema if {"type": "null"} in kinds else {**schema, "anyOf": [*kinds, {"type": "null"}]}
        )
    about: JsonSchemaValue = {name: schema[name] for name in _ABOUT if name in schema}
    own = {name: value for name, value in schema.items() if name not in about}
    return {**about, "anyOf": [own, {"type": "null"}]}


def _read_flag(value: object) -> object:
    """Read the words that some clients send in place of booleans."""
    return _FLAGS.get(value, value) if isinstance(value, str) else value


def _no_empty(value: object) -> object:
    return None if value == "" else value


def _no_zero(value: object) -> object:
    return None if value == 0 and type(value) is int else value


def _read_spaces(value: object) -> object:
    """Return the digits of the ids, from a list or a text of them with commas."""
    ids = [value] if isinstance(value, str) else value
    if isinstance(ids, list) and all(isinstance(id_, str) for id_ in ids):
        return read_ids(*ids)
    raise ValueError("must be the id of a vector space, or a list of ids")


_IDS = {"type": "string", "pattern": IDS_PATTERN}
_IDS_SCHEMA = {"anyOf": [_IDS, {"type": "array", "items": _IDS, "minItems": 1}]}
SpaceIds = Annotated[
    frozenset[str],
    BeforeValidator(_read_spaces, json_schema_input_type=str | list[str]),
    WithJsonSchema(_IDS_SCHEMA),
]


class Fields(BareFields):
    """Base of requests for vectors, in every dialect."""

    require_vector_space: SpaceIds | None = Field(
        None, description="Spaces (`NAME@HEX`) that the vectors may be in; else 409."
    )


# RAGFlow's client of Xinference sends "true".
Flag = Annotated[bool, BeforeValidator(_read_flag)]
# "" means the default (LiteLLM), as does 0 for a count (vLLM).
EmptyIsNone = BeforeValidator(_no_empty)
ZeroIsNone = BeforeValidator(_no_zero)


FieldsT = TypeVar("FieldsT", bound=BareFields)
_NO_LIMITS = Limits(sys.maxsize, sys.maxsize)


def read_fields(
    model: type[FieldsT], tree: Mapping[str, object], limits: Limits = _NO_LIMITS
) -> tuple[FieldsT, list[str]]:
    """Validate `tree`; return the fields and the names that `model` does not know.

    Raises `InvalidRequest` about the first wrong field; lists that are too long are not looked at.
    """
    ignored = [name for name in tree if name not in model.model_fields]
    if len(ignored) > _MOST_IGNORED:
        raise InvalidRequest(
            f"the body has {len(ignored)} fields that are not known here, and no more than "
            f"{_MOST_IGNORED} are ignored; leave them out",
            param=field_name(ignored[0]),
        )
    _check_lengths(model, tree, limits)
    try:
        fields = model.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error, tree) from None
    return fields, ignored


def _check_lengths(
    model: type[BareFields], tree: Mapping[str, object], limits: Limits, path: str = ""
) -> None:
    """Raise `InvalidRequest` for what is too long: a list, or a text in place of a word.

    Also in inner models.
    """
    fields, words = model.model_fields, _words(model)
    for name, value in tree.items():
        if isinstance(value, list) and name in fields:
            _check_length(path + name, value, limits)
        elif isinstance(value, dict) and name in fields:
            for inner in _models(fields[name].annotation):
                _check_lengths(inner, value, limits, f"{path}{name}.")
        if name in words and _is_long(value):
            raise InvalidRequest(
                f"{path}{name}: none of its values has more than {_LONGEST_WORD} characters; send "
                "one that it takes",
                param=path + name,
            )


@cache
def _words(model: type[BareFields]) -> frozenset[str]:
    """Return the fields of which no value is a long text."""
    fields = model.model_fields.items()
    return frozenset(name for name, field in fields if name in _NAMES or _is_word(field.annotation))


def _is_long(value: object) -> bool:
    """Whether a value is, or has among its items, a text of which pydantic would make copies."""
    items = value if isinstance(value, list) else (value,)
    return any(isinstance(item, str) and len(item) > _LONGEST_WORD for item in items)


def _is_word(kind: Any) -> bool:
    """Whether no value of a kind is a text: numbers, flags, enumerations and lists of them."""
    if get_origin(kind) is Literal:
        return True
    parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    if parts:
        return all(map(_is_word, parts))
    return isinstance(kind, type) and issubclass(kind, Enum | int | float | NoneType)


def _models(annotation: Any) -> list[type[BareFields]]:
    """Return the models that a field may hold: itself, or those of a union."""
    kinds = [annotation, *get_args(annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BareFields)]


def _check_length(name: str, items: list[object], limits: Limits) -> None:
    """Raise `InvalidRequest` for too many items; a list that begins with a number has token ids."""
    if items and type(items[0]) is int:
        check_total(len(items), limits.tokens, param=name)
    elif len(items) > limits.items:
        raise InvalidRequest(
            f"{name} has {len(items)} items; this server takes at most {limits.items} a request: "
            "send fewer",
            param=name,
            code="too_many_inputs",
        )


def _refusal(error: ValidationError, tree: Mapping[str, object]) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    missing = first["type"] == "missing"
    name = _path(first["loc"], tree, missing=missing)
    message = first["msg"].removeprefix("Value error, ")
    if missing:
        message = "this field is required; add it"
    if name:
        message = f"{name}: {message}"
    code = "missing_required_parameter" if missing else None
    return InvalidRequest(message[:_MOST_MESSAGE_CHARACTERS], param=name, code=code)


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
    return text if _is_plain(text) else "".join(c if _is_plain(c) else "?" for c in text)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def header_list(names: Iterable[str]) -> str:
    """Return names as one header value; a long list ends in "..."."""
    text = ", ".join(map(printable, names))
    if len(text) <= MOST_ECHOED_CHARACTERS:
        return text
    return text[:MOST_ECHOED_CHARACTERS].rpartition(", ")[0] + ", ..."


def missing(field: str) -> InvalidRequest:
    """Return the error about a field that this request needs."""
    why = f"{field}: this field is required; add it"
    return InvalidRequest(why, param=field, code="missing_required_parameter")
