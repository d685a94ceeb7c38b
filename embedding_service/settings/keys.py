"""An API key with all that belongs to it. Only its digest is kept."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from embedding_service.settings.model import CommaSeparated, Strict
from embedding_service.settings.space_ids import read_ids

# No longer numbers: neither a float nor a date holds them, and each request would fail.
_RATE = r"[1-9][0-9]{0,14} ?(/|per) ?([1-9][0-9]{0,3} ?)?(second|minute|hour|day)s?"


def _check_rate(rate: object) -> object:
    if not (isinstance(rate, str) and re.fullmatch(_RATE, rate)):
        raise ValueError("expected a number per time, such as 100/minute or 5000/2 hours")
    return rate


def _check_spaces(ids: tuple[str, ...]) -> tuple[str, ...]:
    for id_ in ids:
        read_ids(id_)
    return ids


Rate = Annotated[
    str,
    BeforeValidator(_check_rate),
    WithJsonSchema({"type": "string", "pattern": f"^{_RATE}$", "examples": ["100/minute"]}),
]


class KeySettings(Strict):
    """A key with its name, models and rates; a bare string is a key that may do everything."""

    name: str | None = Field(
        None, min_length=1, max_length=64, description="Its owner, in logs; limits are by name."
    )
    key: SecretStr = Field(description="The key, or `sha256:HEX` of it.")
    models: tuple[str, ...] | None = Field(
        None, min_length=1, description="Models it may use; default: all."
    )
    requests: Rate | None = Field(None, description="Instead of rate_limit_requests.")
    tokens: Rate | None = Field(None, description="Instead of rate_limit_tokens.")
    require_vector_space: Annotated[CommaSeparated[str], AfterValidator(_check_spaces)] = Field(
        (), description="Vector spaces; a model of another gives it no vectors. Default: all."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_bare_key(cls, value: object) -> object:
        entry = {"key": value} if isinstance(value, str | SecretStr | int | float) else value
        if not isinstance(entry, dict):
            return entry
        if isinstance(entry.get("key"), int | float):
            why = "a key is text; put it in quotes, or YAML takes it for a number"
            raise ValueError(why)  # noqa: TRY004 - pydantic reports no TypeError
        if not entry.keys() <= cls.model_fields.keys():
            # The unknown field is not named: `SECRET: name` would put the key itself there.
            raise ValueError(
                f"an entry has {', '.join(cls.model_fields)} and nothing else; leave the rest out"
            )
        return entry

    @field_validator("key")
    @classmethod
    def _keep_only_the_digest(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not text:
            raise ValueError("a key must not be empty: it would let everybody in")
        if not text.startswith("sha256:"):
            return SecretStr("sha256:" + hashlib.sha256(text.encode()).hexdigest())
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", text):
            raise ValueError(
                "sha256: must be followed by the 64 hexadecimal digits of a key's digest"
            )
        return key

    @property
    def spaces(self) -> frozenset[str] | None:
        """The digits of the vector spaces that it requires, if it does."""
        ids = self.require_vector_space
        return read_ids(",".join(ids)) if ids else None

    @property
    def digest(self) -> bytes:
        """The sha256 of the key."""
        return bytes.fromhex(self.key.get_secret_value().removeprefix("sha256:"))
