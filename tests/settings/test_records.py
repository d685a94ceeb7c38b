"""Settings of records: a template holds only fields that there are."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from embedding_service.settings.records import RecordSettings


@pytest.mark.parametrize(
    "template", [["{titel}"], ["{title}", {"Facts: ": ["{rooms} rooms", "{aera} m²"]}]]
)
def test_a_template_names_known_fields(template: list[Any]) -> None:
    """A part that names no field is refused and quoted, also within a group."""
    fields = {"title": {}, "rooms": {"type": "integer"}}
    with pytest.raises(
        ValidationError, match=r"template: '\{(titel|aera)\}.*' names '(titel|aera)'"
    ):
        RecordSettings.model_validate({"fields": fields, "template": template})


def test_a_template_may_format_its_fields() -> None:
    """Formats, braces and plain text are Python's."""
    template = ["{{}} {price:,.0f}", "plain", {"Facts: ": ["{rooms!s}"]}]
    made = RecordSettings.model_validate(
        {"fields": {"price": {}, "rooms": {}}, "template": template}
    )
    assert made.template == (*template[:2], {"Facts: ": ("{rooms!s}",)})
