"""Records: the fields that requests may send, and the template that makes one text of them."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from embedding_service.settings.model import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator


class RecordField(Strict):
    """One field of a record, as requests send it."""

    type: Literal["text", "integer", "number", "mapping"] = "text"
    max_length: int | None = Field(default=None, ge=1, description="Characters of a text.")
    minimum: float | None = Field(default=None, description="Of a number.")
    maximum: float | None = Field(default=None, description="Of a number.")


class RecordSettings(Strict):
    """How a record becomes the text that is embedded.

    `template` holds parts such as `Title: {title}`, and groups of parts under a common beginning
    such as `{"Facts: ": ["{rooms} rooms", …]}`.
    """

    fields: dict[str, RecordField]
    template: tuple[str | dict[str, tuple[str, ...]], ...] = Field(min_length=1)
    entity_type: str = Field(default="entity", description="Of requests that do not say.")
    separator: str = Field(default=". ", description="Between parts.")
    group_separator: str = Field(default=", ", description="Within a group or a mapping.")

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        for part in self._parts():
            for _, name, _, _ in string.Formatter().parse(part):
                if name is not None and name not in self.fields:
                    raise ValueError(
                        f"template: {part!r} names {name!r}, which is none of fields; add it there"
                    )
        return self

    def _parts(self) -> Iterator[str]:
        for part in self.template:
            if isinstance(part, str):
                yield part
                continue
            for parts in part.values():
                yield from parts


PLAIN_RECORDS = RecordSettings(
    fields={"title": RecordField(), "description": RecordField()},
    template=("{title}", "{description}"),
)
