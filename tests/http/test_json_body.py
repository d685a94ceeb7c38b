"""Strict JSON, without a server: which bodies are read, and how the others are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.errors import InvalidRequest
from embedding_service.http.json_body import parse_object

MOST_ECHOED = 200


def refusal(body: bytes, content_type: str | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(body, content_type)
    return caught.value


def nested(levels: int) -> bytes:
    """Return an object whose field `input` makes it `levels` deep."""
    return b'{"input":' + b"[" * (levels - 1) + b"1" + b"]" * (levels - 1) + b"}"


NOT_STRICT: dict[str, tuple[bytes, str | None]] = {
    "NaN": (b'{"input":"a","dimensions":NaN}', "dimensions"),
    "Infinity": (b'{"dimensions":Infinity}', "dimensions"),
    "minus Infinity": (b'{"dimensions":-Infinity}', "dimensions"),
    "1e999": (b'{"dimensions":1e999}', "dimensions"),
    "-1e999 in a list": (b'{"input":[[1,-1e999]]}', "input"),
    "an integer of 5,000 digits": (
        b'{"input":"a","dimensions":' + b"9" * 5000 + b"}",
        "dimensions",
    ),
    "an integer of 301 digits": (
        b'{"input":"a","dimensions":[1,' + b"9" * 301 + b"]}",
        "dimensions",
    ),
    "a leading surrogate": (b'{"model":"a","input":"\\ud83d"}', "input"),
    "a trailing surrogate": (b'{"model":"a","input":["b","\\ude00"]}', "input"),
    "two leading surrogates": (b'{"input":"a","model":"\\ud83d\\ud83d"}', "model"),
    "Latin-1": (b'{"model":"a","input":"caf\xe9"}', "input"),
    "a surrogate in UTF-8": (b'{"input":"\xed\xa0\x80"}', "input"),
    "an overlong encoding": (b'{"input":"\xc0\x80"}', "input"),
    "beyond Unicode": (b'{"input":"\xf4\x90\x80\x80"}', "input"),
    "a duplicate key": (b'{"model":"a","input":"b","model":"a"}', "model"),
    "nine levels": (nested(9), "input"),
    "250 levels": (nested(250), "input"),
    "50,000 levels": (b"[" * 50_000, None),
    "nothing": (b"", None),
    "white space": (b" \n", None),
    "a list": (b"[]", None),
    "a string": (b'"input"', None),
    "null": (b"null", None),
    "two objects": (b"{}{}", None),
    "a comma too many": (b'{"input":"a",}', None),
    "a comment": (b'{"input":"a"}//', None),
    "single quotes": (b"{'input':'a'}", None),
    "a bare control character": (b'{"input":"\x00"}', None),
    "an unfinished string": (b'{"input":"a', None),
    "UTF-16": ('{"input":"a"}'.encode("utf-16"), None),
    "a byte order mark": (b'\xef\xbb\xbf{"input":"a"}', None),
}


@pytest.mark.parametrize(("body", "param"), NOT_STRICT.values(), ids=NOT_STRICT)
def test_refuses_what_is_not_strict_json(body: bytes, param: str | None) -> None:
    """Anything but one strict JSON object is refused, by the field at fault where there is one."""
    assert refusal(body).param == param


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"\\u0000"', "\0"),
        ('"\\ud83d\\ude00"', "😀"),
        ('"😀"', "😀"),
        ('"\\uffff"', "\uffff"),
        ("-0", 0),
        ("1E2", 100.0),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("9" * 300, 10**300 - 1),
        ('"' + "9" * 5000 + '"', "9" * 5000),
        ("null", None),
        (nested(8)[9:-1].decode(), [[[[[[[1]]]]]]]),
    ],
)
def test_reads_what_is_strict_json(text: str, value: Any) -> None:
    """Escapes, astral characters, long integers and eight levels are all fine."""
    assert parse_object(f'{{"a":{text}}}'.encode(), None) == {"a": value}


@given(
    st.dictionaries(
        st.text(),
        st.text() | st.integers() | st.booleans() | st.none() | st.lists(st.floats(-1e9, 1e9)),
    )
)
def test_reads_what_json_writes(tree: dict[str, Any]) -> None:
    """What Python's json module writes of finite values comes back equal, escaped or not."""
    for ascii_only in (True, False):
        assert (
            parse_object(json.dumps(tree, ensure_ascii=ascii_only).encode(), "application/json")
            == tree
        )


@pytest.mark.parametrize(
    "kind",
    [None, "", "application/json", "Application/JSON; charset=utf-8", "application/a.b+json"],
)
def test_takes_json_content_types(kind: str | None) -> None:
    """JSON may be called so in any case, with parameters, by a +json name, or not at all."""
    assert parse_object(b"{}", kind) == {}


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json", "x" * 9999],
)
def test_refuses_other_content_types(kind: str) -> None:
    """Other content types are refused by name, and a long name is not sent back whole."""
    error = refusal(b"{}", kind)
    assert "content-type" in error.message
    assert error.message.count("x") <= MOST_ECHOED


LONG = "Q" * 100_000
ECHOES = {
    "a long duplicate key": f'{{"{LONG}":1,"{LONG}":1}}',
    "a long key that is too deep": f'{{"{LONG}":[[[[[[[[[1]]]]]]]]]}}',
    "a long key of a number too large": f'{{"{LONG}":1e999}}',
    "a long key of a surrogate": f'{{"{LONG}":"\\ud800"}}',
    "a long word outside strings": LONG,
}


@pytest.mark.parametrize("text", ECHOES.values(), ids=ECHOES)
def test_echoes_little(text: str) -> None:
    """Of a hostile body, message and param together repeat at most 200 characters."""
    error = refusal(text.encode())
    assert (error.message + str(error.param)).count("Q") <= MOST_ECHOED
