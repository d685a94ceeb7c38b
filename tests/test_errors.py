"""The error tree is what its drawing says, and every error can be answered."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from embedding_service import errors
from embedding_service.dialects.dialect import Dialect
from embedding_service.dialects.errors import OPENAI, ErrorShape
from embedding_service.dropin.presets import PRESETS
from embedding_service.errors import ServiceError, StartupError
from embedding_service.http import problems
from embedding_service.http.app import DIALECTS
from embedding_service.http.exchange import Exchange
from embedding_service.service.call import Call
from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.responses import Response


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def drawing() -> dict[str, tuple[int, str, int]]:
    """Return name → (number, rest of the line, depth) as drawn at the top of errors.py."""
    rows = re.findall(r"^([│ ]*)[├└]── (\w+) +(\d+) *(.*)$", errors.__doc__ or "", re.MULTILINE)
    return {name: (int(number), rest, len(indent) // 4) for indent, name, number, rest in rows}


SERVICE_ERRORS = sorted(subclasses(ServiceError), key=lambda kind: kind.__name__)
SHAPES = [
    *{dialect.errors for dialect in DIALECTS if isinstance(dialect, Dialect)},
    *{preset.errors for preset in PRESETS.values() if preset.errors},
]
STARTUP_ERRORS = sorted(subclasses(StartupError), key=lambda kind: kind.__name__)


def test_the_drawing_is_complete() -> None:
    """Every error is drawn, and nothing is drawn that does not exist."""
    assert {kind.__name__ for kind in SERVICE_ERRORS + STARTUP_ERRORS} == set(drawing())


@pytest.mark.parametrize("kind", SERVICE_ERRORS)
def test_statuses_and_codes_are_as_drawn(kind: type[ServiceError]) -> None:
    """Each error has the status and the code of its line, and hangs where it is drawn."""
    status, rest, depth = drawing()[kind.__name__]
    code = rest.split()[0]
    assert kind.status == status
    assert kind.code == code
    assert kind.__mro__.index(ServiceError) == depth + 1


@pytest.mark.parametrize("kind", STARTUP_ERRORS)
def test_exit_codes_are_as_drawn(kind: type[StartupError]) -> None:
    """Each start-up error ends the process with the status of its line; 0 and 1 mean other things."""
    assert kind.exit_code == drawing()[kind.__name__][0]
    assert kind.exit_code > 1


def test_exit_codes_tell_causes_apart() -> None:
    """No two start-up errors share an exit status."""
    assert len({kind.exit_code for kind in STARTUP_ERRORS}) == len(STARTUP_ERRORS)


def answered(error: ServiceError, shape: ErrorShape) -> Response:
    return problems.respond(error, Exchange("id", 0.0, Call(0.0), shape))


@pytest.mark.parametrize("kind", SERVICE_ERRORS)
def test_every_error_has_an_answer(kind: type[ServiceError]) -> None:
    """Each error becomes an answer with its status and a type, in OpenAI's envelope."""
    response = answered(kind("why", param="input", retry_after_s=1.2), OPENAI)
    assert response.status_code == kind.status
    assert response.headers["retry-after"] == "2"
    assert kind.type in bytes(response.body).decode()


@pytest.mark.parametrize("kind", SERVICE_ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_dialect_can_write_every_error(kind: type[ServiceError], shape: ErrorShape) -> None:
    """Each dialect and preset has a status and a body of its documented shape for each error."""
    response = answered(kind("why", retry_after_s=1.2), shape)
    assert response.status_code >= 400
    assert response.headers["retry-after"] == "2"
    body = json.loads(response.body)
    assert "why" in response.body.decode()
    if not (kind is errors.RateLimited and shape is PRESETS["matching-service"].errors):
        shape.model.model_validate(body, strict=True, extra="forbid")


def test_fields_have_the_names_of_a_dialect() -> None:
    """An error about inputs names them as the dialect calls them, in message and `param`."""
    error = errors.InvalidRequest(f"{Field.INPUT}[3] is wrong", param=f"{Field.INPUT}[3]")
    assert error.worded({Field.INPUT: "texts"}) == ("texts[3] is wrong", "texts[3]")
    assert (error.message, error.param) == ("input[3] is wrong", "input[3]")


@pytest.mark.parametrize("kind", SERVICE_ERRORS)
def test_no_error_has_a_status_that_sdks_misread(kind: type[ServiceError]) -> None:
    """No 408, 415, 422 or 424 on these routes, and only a 409 that says not to retry."""
    assert kind.status not in (408, 415, 422, 424)
    if kind.status == 409:
        assert kind.code == "vector_space_mismatch"
        assert kind.should_retry is False


def test_a_code_may_be_given_by_cause() -> None:
    """One error's code does not change its class."""
    assert errors.InvalidRequest("why", code="by_cause").code == "by_cause"
    assert errors.InvalidRequest("why").code == "invalid_value"
