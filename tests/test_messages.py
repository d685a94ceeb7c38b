"""Every error has a documented code, and its message ends with what to do.

`python -m tests.test_messages` writes docs/errors.md from the classes in errors.py.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embedding_service.errors import BY_CAUSE, InvalidRequest, ServiceError, StartupError
from tests.messages import Message, messages
from tests.test_errors import SERVICE_ERRORS, STARTUP_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
NGINX = ROOT / "deploy" / "nginx" / "embedding-service.conf"
MESSAGES = messages()
# Verbs that tell somebody to do something, at the beginning of a clause.
DO = (
    "add|allow|ask|cancel|change|choose|compare|delete|end|free|give|leave|lower|make|mend|name|pin"
    "|percent-encode|put|raise|report|run|save|say|see|send|set|shorten|split|start|take|try|use|wait"
    "|write"
)
LAST = re.compile(
    rf"(?:^|[;:.,] |, or |, and |\()(?:or |and |please )?(?:{DO})\b(?:[^;.]|\.(?=\S))*\.?\)?$",
    re.IGNORECASE,
)
# These say what has to hold, and so what to do.
RULE = re.compile(
    r"\b(must|should|has to|have to|expected|is written like)\b|`embedding-service [\w ]+`"
)
VERBATIM = {
    "All fields are empty": "matching-service's own words",
    "x-require-vector-space: …": "goes on with the words of `settings/space_ids.py`",
}
# Places whose message is made of another's; that one is checked where it is made.
MADE_ELSEWHERE = {
    "dialects.fields": "pydantic's, about a field",
    "dropin.blank": "the replaced system's own words",
    "engine.generation": "the worker's reason",
    "http.auth": "a preset's, see dropin/preset.py",
    "http.dispatch": "that of a list of ids, about the header",
    "http.keys": "pydantic's, about an entry",
    "http.problems": "Starlette's",
    "service.canaries": "the system's or the decoder's, about a file",
    "settings.load": "pydantic's, about a setting",
    "settings.yaml_file": "the YAML reader's",
}
HEAD = """\
# Errors

Every error has a `code`, which stays as it is when the message changes. It is in the body where the dialect has a place
for it (`error.code` in OpenAI's envelope), and always in the header `x-error-code`, in `/metrics`
(`embedding_errors_total`) and in the log. The message is written for a person: it names the field, and its last words
say what to do. `param` names the field at fault.

OpenAI's SDKs try again by themselves after 429, 500, 503 and 504, unless `x-should-retry: false` tells them that this
would give the same. The statuses below are OpenAI's dialect; other dialects have the same codes with the statuses of
their own systems ([migration.md](migration.md)).

`python -m tests.test_messages` writes this page from `embedding_service/errors.py`.
"""


def summary(kind: type[Exception]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_answers(), *_nginx(), *_exits()])


def _answers() -> Iterator[str]:
    yield "## Answers\n\n| code | status | cause | remedy |\n|---|---|---|---|"
    kinds = sorted([*SERVICE_ERRORS, ServiceError], key=lambda kind: (kind.status, kind.code))
    for kind in kinds:
        cause = "A defect of the server." if kind is ServiceError else summary(kind)
        yield f"| `{kind.code}` | {kind.status} | {cause} | {kind.remedy} |"
        if kind is InvalidRequest:
            for code, (cause, remedy) in BY_CAUSE.items():
                yield f"| `{code}` | {kind.status} | {cause} | {remedy} |"
    yield ""


def _nginx() -> Iterator[str]:
    yield "## From nginx\n"
    yield "[deploy/nginx](../deploy/nginx/README.md) answers in the same envelope what never reached an instance.\n"
    yield "| code | status | message |\n|---|---|---|"
    for status, message, code in re.findall(
        r"^ +(\d+|default) +'.*\"message\":\"(.+?)\".*\"code\":\"(\w+)\"",
        NGINX.read_text(),
        re.MULTILINE,
    ):
        yield f"| `{code}` | {status.replace('default', 'others')} | {message} |"
    yield ""


def _exits() -> Iterator[str]:
    yield "## Exit statuses\n"
    yield "The last line on standard error says why. 0 is an end by SIGTERM or Ctrl-C.\n"
    yield "| status | cause | remedy |\n|---|---|---|"
    for kind in sorted(STARTUP_ERRORS, key=lambda kind: kind.exit_code):
        yield f"| {kind.exit_code} | {summary(kind)} | {kind.remedy} |"
    yield ""


def test_the_page_is_up_to_date() -> None:
    """docs/errors.md is what the code says; `python -m tests.test_messages` writes it."""
    assert PAGE.read_text("utf-8") == page()


@pytest.mark.parametrize("kind", [*SERVICE_ERRORS, *STARTUP_ERRORS], ids=lambda kind: kind.__name__)
def test_every_error_has_a_remedy_of_its_own(kind: type[ServiceError | StartupError]) -> None:
    """A new class of errors says its cause and what to do, in sentences."""
    assert summary(kind).endswith(".")
    assert "remedy" in vars(kind)
    assert kind.remedy.endswith(".")


def test_codes_are_documented_once() -> None:
    """No two errors of different meaning share a code, and none has a code that no page knows."""
    own = {kind.code: kind.status for kind in (ServiceError, *SERVICE_ERRORS)}
    assert all(own[kind.code] == kind.status for kind in SERVICE_ERRORS)
    assert not BY_CAUSE.keys() & set(own)
    given = {message.code for message in MESSAGES if message.code} - {"EMPTY", "code"}
    assert given <= BY_CAUSE.keys() | set(own)
    used = given | {"empty_input", "missing_required_parameter"}
    assert used - {"internal_error"} == BY_CAUSE.keys(), "a code that nothing has"


def test_messages_are_found() -> None:
    """The walk below sees errors that are raised, returned, and made by a function."""
    assert len(MESSAGES) > 100
    texts = {message.text for message in MESSAGES}
    assert "the request body must be a JSON object" in texts
    assert "you must provide a model parameter" in texts
    assert {"BadConfiguration", "Overloaded", "PortInUse"} <= {one.kind for one in MESSAGES}


def unhelpful(message: Message) -> bool:
    text = message.text or ""
    return text not in VERBATIM and not (LAST.search(text) or RULE.search(text))


def test_every_message_ends_with_what_to_do() -> None:
    """The last words of a message are the next step."""
    wrong = [
        (message.place, message.text)
        for message in MESSAGES
        if message.text is not None and re.search(r"\w", message.text) and unhelpful(message)
    ]
    assert wrong == []


def test_messages_without_text_are_known() -> None:
    """A message that the test above cannot read stands in a module that is named with its reason."""
    unread = {
        message.place.partition(":")[0]
        for message in MESSAGES
        if message.text is None or not re.search(r"\w", message.text)
    }
    assert unread == MADE_ELSEWHERE.keys()


@pytest.mark.parametrize(
    "text",
    ["the input is too long", "there is no such model", "… has … items; at most … are taken"],
)
def test_the_check_would_find_a_bare_complaint(text: str) -> None:
    """A message that only complains is found."""
    assert unhelpful(Message("InvalidRequest", text, None, "nowhere"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
