"""What the files in `config/drop-in/` can say beside the common settings: old variables, and the text of records."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Mapping

Preset = Literal[
    "qwen3-embedding", "qwen3-reranker", "embed", "emb-infer-bge-m3", "bge-inference-service", "matching-service", "tei"
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _variable(value: object) -> object:
    """Read the short forms of `environment`: a setting, several, or null for a variable without effect."""
    if isinstance(value, str | None):
        value = [value] if value else []
    return {"settings": value} if isinstance(value, list) else value


class OldVariable(_Part):
    """What a variable of a replaced system sets (`models.0.dtype`), with that system's words for the values."""

    settings: tuple[str, ...] = ()
    values: dict[str | bool, Any] = Field(default_factory=dict)

    def read(self, name: str, text: str) -> Any:
        """Return the setting's value. Raises `BadConfiguration` for a word that is not in `values`."""
        if not self.values:
            return text
        words = {str(word).lower(): value for word, value in self.values.items()}
        word = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}.get(
            text.lower(), text.lower()
        )
        if word not in words:
            raise BadConfiguration(f"{name} is {text!r}, and must be one of {', '.join(words)}")
        return words[word]


OldVariables = dict[str, Annotated[OldVariable, BeforeValidator(_variable)]]


class RecordField(_Part):
    """One field of a record, as requests send it."""

    type: Literal["text", "integer", "number", "mapping"] = "text"
    max_length: int | None = Field(default=None, ge=1, description="Characters of a text.")


class RecordSettings(_Part):
    """How a record becomes the text that is embedded; see `core.records`.

    `template` holds parts such as `Title: {title}` and groups such as `{"Facts: ": ["{rooms} rooms", …]}`.
    """

    fields: dict[str, RecordField]
    template: tuple[str | dict[str, tuple[str, ...]], ...] = Field(min_length=1)
    separator: str = Field(default=". ", description="Between parts.")
    group_separator: str = Field(default=", ", description="Within a group or a mapping.")

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        for part in self.template:
            for text in [part] if isinstance(part, str) else [text for texts in part.values() for text in texts]:
                for _, name, _, _ in string.Formatter().parse(text):
                    if name is not None and name not in self.fields:
                        raise ValueError(f"template: {text!r} names {name!r}, which is none of fields")
        return self


PLAIN_RECORDS = RecordSettings(
    fields={"title": RecordField(), "description": RecordField()}, template=("{title}", "{description}")
)


def apply_old_variables(tree: dict[str, Any], environ: Mapping[str, str], applied: dict[str, str]) -> list[str]:
    """Put the old variables that are set over the file's values, and note in `applied` which set what.

    Returns a warning for each that has no effect.
    """
    if not isinstance(tree.get("environment"), dict):
        return []
    ignored = []
    for name, variable in TypeAdapter(OldVariables).validate_python(tree["environment"]).items():
        text = environ.get(name, "").strip()
        if text and not variable.settings:
            ignored.append(f"{name} is set and has no effect any more")
        for setting in variable.settings if text else ():
            node: Any = tree
            *folders, last = setting.split(".")
            for folder in folders:
                node = node[int(folder)] if isinstance(node, list) else node.setdefault(folder, {})
            node[last] = variable.read(name, text)
            applied[setting] = name
    return ignored
