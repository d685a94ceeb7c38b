"""Hostile bodies: a small 400 or 413 that names the field, never a 5xx, never an echo."""

from __future__ import annotations

import gzip
import json
import socket
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_service.dialects.openai import EmbeddingsRequest
from tests.calls import JSON, MOST_ERROR_BYTES, embed, error_of, log_line, post, vectors_of
from tests.conftest import FAKE
from tests.http.test_json_body import ECHOES, LONG, MOST_ECHOED, NOT_STRICT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

MOST_BYTES = 4096
VALID = b'{"model":"fake","input":"w1"}'


@pytest.fixture(scope="module")
def http(fake: RunningGateway) -> Iterator[httpx.Client]:
    """Return one client for the whole module: properties send hundreds of requests."""
    with fake.client() as client:
        yield client


@pytest.fixture(scope="module")
def small(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of a gateway that reads bodies of 4,096 bytes at most."""
    gateway = start_gateway(**FAKE, max_body_bytes=MOST_BYTES, body_timeout_s=0.5)
    with gateway.client() as client:
        yield client
    gateway.stop()


@pytest.mark.parametrize(("body", "param"), NOT_STRICT.values(), ids=NOT_STRICT)
def test_what_is_not_strict_json_is_a_400(
    http: httpx.Client, body: bytes, param: str | None
) -> None:
    """A body that is not one strict JSON object gets a 400 that names the field where there is one."""
    error = error_of(post(http, body), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


NOT_STRINGS: list[Any] = [True, 0, 1, 1.5, [], ["a"], {}]
NOT_BOOLEANS: list[Any] = [0, 1, 1.0, "true", "", [], {}]
WRONG: dict[str, list[Any]] = {
    "input": [
        *(
            None,
            True,
            1,
            1.5,
            {},
            [],
            "",
            [None],
            [True],
            [1.5],
            [{}],
            [""],
            [[]],
            ["a", ""],
            ["a", 1],
            [1, "a"],
        ),
        *(
            [1, True],
            [[1], "a"],
            ["a", [1]],
            [[1], []],
            [[True]],
            [[1.0]],
            [["a"]],
            [-1],
            [[1, -1]],
            [2**31],
            [10**30],
        ),
        *(["a", None], [[1], None], [[[1]]], {"text": "a"}, [{"text": "a"}]),
    ],
    "model": [None, *NOT_STRINGS],
    "encoding_format": ["FLOAT", "base-64", *NOT_STRINGS],
    "dimensions": [True, False, 0, -1, 1.0, 31.5, "32", 10**12, 10**100, 1e300, [], [32], {}],
    "user": NOT_STRINGS,
    "instruction": NOT_STRINGS,
    "input_type": ["", "Query", "search_query", *NOT_STRINGS],
    "prompt_name": ["", "query", *NOT_STRINGS],
    "truncate": ["", "RIGHT", "end", *NOT_STRINGS],
    "normalize": NOT_BOOLEANS,
    "embed_dtype": ["", "float64", "INT8", *NOT_STRINGS],
    "return_dense": NOT_BOOLEANS,
    "return_sparse": NOT_BOOLEANS,
    "return_colbert": NOT_BOOLEANS,
    "truncation_side": ["", "Left", "end", *NOT_STRINGS],
    "require_vector_space": ["", "name", "m@xyz", "m@abc", [], [1], 3, {}, True],
    "truncate_prompt_tokens": [0, -2, 1, 2**31 + 1, 1.5, "8", True, []],
}


def test_every_field_is_covered() -> None:
    """The table of wrong values knows every field that a request may have."""
    assert set(WRONG) == set(EmbeddingsRequest.model_fields)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_a_400_about_its_field(http: httpx.Client, field: str, value: Any) -> None:
    """A value of a wrong type or outside its set is refused by its field; none is converted."""
    error = error_of(embed(http, **{"input": "w1", field: value}), 400)
    assert error["param"] is not None
    assert error["param"].partition("[")[0] == field


@pytest.mark.parametrize("field", [field for field in WRONG if None not in WRONG[field]])
def test_null_means_absent(http: httpx.Client, field: str) -> None:
    """Null in an optional field is the same as leaving it out."""
    assert embed(http, input="w1", **{field: None}).status_code == 200


def test_a_missing_input_is_a_400(http: httpx.Client) -> None:
    """A request without `input` is told that the field is required."""
    error = error_of(embed(http), 400)
    assert error["param"] == "input"
    assert "required" in error["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_an_unknown_content_type_is_a_400(http: httpx.Client, kind: str) -> None:
    """A body that calls itself anything but JSON is refused with the reason."""
    assert "content-type" in error_of(post(http, VALID, content_type=kind), 400)["message"]


def test_a_body_without_a_content_type_is_json(http: httpx.Client) -> None:
    """Clients that leave the content type out are understood."""
    assert http.post("/v1/embeddings", content=VALID).status_code == 200


LONG_FIELDS: dict[str, dict[str, Any]] = {
    "model": {"model": LONG},
    "prompt_name": {"prompt_name": LONG},
    "encoding_format": {"encoding_format": LONG},
    "input_type": {"input_type": LONG},
    "truncate": {"truncate": LONG},
    "instruction": {"instruction": LONG},
    "an object as input": {"input": {LONG: LONG}},
    "an item of the wrong type": {"input": ["w1", {LONG: LONG}]},
    "a number": {"dimensions": LONG},
}


@pytest.mark.parametrize("fields", LONG_FIELDS.values(), ids=LONG_FIELDS)
def test_a_refused_field_is_not_sent_back(http: httpx.Client, fields: dict[str, Any]) -> None:
    """However long the value at fault is, at most 200 characters of it come back."""
    response = embed(http, **{"input": "w1", **fields})
    error_of(response, 404 if "model" in fields else 400)
    assert response.text.count("Q") <= MOST_ECHOED


@pytest.mark.parametrize("text", ECHOES.values(), ids=ECHOES)
def test_a_refused_body_is_not_sent_back(http: httpx.Client, text: str) -> None:
    """Keys and stray words of a broken body are cut before they are quoted."""
    response = post(http, text.encode())
    error_of(response, 400)
    assert response.text.count("Q") <= MOST_ECHOED


def test_long_names_do_not_grow_the_log(http: httpx.Client, fake: RunningGateway) -> None:
    """A model name of 100 kB makes neither the answer nor its log line long."""
    response = embed(http, model=LONG, input="w1")
    error_of(response, 404)
    assert len(str(log_line(fake, response))) < 1000


def test_an_unknown_path_or_method_is_not_sent_back(http: httpx.Client) -> None:
    """A long path is cut in its 404."""
    response = http.get("/" + "Q" * 10_000)
    error_of(response, 404)
    assert response.text.count("Q") <= MOST_ECHOED


@pytest.mark.parametrize("host", ["[", "a:b:c", "", "\xff"])
def test_a_strange_host_is_no_server_error(fake: RunningGateway, host: str) -> None:
    """No Host header can break an answer."""
    address = fake.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
        connection.sendall(
            f"GET /nowhere HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
        status = int(connection.makefile("rb").readline().split()[1])
    assert status in (400, 404)


# Hypothesis finds the fake engine's words in the source, and they do as they say.
plain = st.text(max_size=20).filter(lambda text: "fault-" not in text)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | plain
    | st.sampled_from(
        [
            "fake",
            "w1",
            "base64",
            "float",
            "query",
            "left",
            "chunk_mean",
            "int8",
            32,
            10**40,
            "\ud800",
        ]
    )
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
trees = st.dictionaries(
    st.sampled_from([*WRONG, "unknown"]) | st.text(max_size=8), values, max_size=4
)
complete = trees.map(lambda tree: {"model": "fake", "input": "w1", **tree})
documents = st.one_of(values, trees, complete).map(lambda tree: json.dumps(tree).encode())


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Return a JSON document in which some bytes were replaced, removed or put in."""
    body = bytearray(draw(documents))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(body)


@settings(max_examples=300, deadline=None)
@given(st.one_of(documents, broken(), st.binary(max_size=50)))
def test_no_body_is_a_server_error(http: httpx.Client, body: bytes) -> None:
    """Whatever is sent gets vectors, or a small client error in the envelope."""
    response = post(http, body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error_of(response, response.status_code)


@settings(max_examples=100, deadline=None)
@given(plain.filter(bool))
def test_any_text_embeds(http: httpx.Client, text: str) -> None:
    """Every string of valid code points gets one vector."""
    assert vectors_of(embed(http, input=text)).shape == (1, 32)


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", " ", "\n", "\ufeff", "\ufffe", "\U0010ffff", "e\u0301", "\u202e", "\x7f"]
)
def test_strange_characters_embed(http: httpx.Client, text: str) -> None:
    """NUL, blanks, byte order marks, non-characters and controls are text like any other."""
    assert vectors_of(embed(http, input=text)).shape == (1, 32)


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "raw"])
def test_all_of_unicode_embeds(http: httpx.Client, *, ascii_only: bool) -> None:
    """One text with every valid code point embeds, whether written as escapes or as UTF-8."""
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    body = json.dumps({"model": "fake", "input": text}, ensure_ascii=ascii_only).encode()
    assert vectors_of(post(http, body)).shape == (1, 32)


def padded(size: int) -> bytes:
    return VALID + b" " * (size - len(VALID))


def test_a_body_at_the_limit_is_read(small: httpx.Client) -> None:
    """A body of exactly `max_body_bytes` is served."""
    assert post(small, padded(MOST_BYTES)).status_code == 200


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 100 * MOST_BYTES])
def test_a_body_over_the_limit_is_a_413(small: httpx.Client, size: int) -> None:
    """One byte more is refused, and the connection closed rather than read to its end."""
    response = post(small, padded(size))
    assert error_of(response, 413)["code"] == "request_too_large"
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("size", "status"), [(MOST_BYTES, 200), (MOST_BYTES + 1, 413), (20 * MOST_BYTES, 413)]
)
def test_the_limit_holds_for_chunked_bodies(small: httpx.Client, size: int, status: int) -> None:
    """A body whose length is not announced is counted while it arrives."""
    body = padded(size)
    pieces = (body[start : start + 1000] for start in range(0, size, 1000))
    response = small.post("/v1/embeddings", content=pieces, headers=JSON)
    assert "content-length" not in response.request.headers
    assert response.status_code == status


@pytest.mark.parametrize(
    ("size", "status"), [(MOST_BYTES, 200), (MOST_BYTES + 1, 413), (3 << 20, 413)]
)
def test_the_limit_holds_for_what_gzip_inflates_to(
    small: httpx.Client, size: int, status: int
) -> None:
    """A small gzip body that inflates beyond the limit is a 413, found without the rest."""
    body = gzip.compress(padded(size))
    assert len(body) < MOST_BYTES
    assert post(small, body, content_encoding="gzip").status_code == status


@pytest.mark.parametrize("name", ["gzip", "GZIP"])
def test_gzip_bodies_are_read(http: httpx.Client, name: str) -> None:
    """A gzip body is the same request as the plain one."""
    response = post(http, gzip.compress(VALID), content_encoding=name)
    assert vectors_of(response).tolist() == vectors_of(post(http, VALID)).tolist()


def test_gzip_bodies_may_arrive_byte_by_byte(http: httpx.Client) -> None:
    """Inflation does not depend on how the network cuts the body."""
    pieces = (bytes([byte]) for byte in gzip.compress(VALID))
    headers = {**JSON, "content-encoding": "gzip"}
    assert http.post("/v1/embeddings", content=pieces, headers=headers).status_code == 200


COMPRESSED = gzip.compress(VALID)
BROKEN_GZIP = {
    "nothing": b"",
    "a header alone": COMPRESSED[:10],
    "half": COMPRESSED[: len(COMPRESSED) // 2],
    "all but the checksum": COMPRESSED[:-8],
    "a wrong checksum": COMPRESSED[:-8] + bytes(8),
    "plain JSON": VALID,
    "zlib": zlib.compress(VALID),
    "something behind the end": COMPRESSED + b"more",
    "two members": gzip.compress(VALID[:9]) + gzip.compress(VALID[9:]),
}


@pytest.mark.parametrize("body", BROKEN_GZIP.values(), ids=BROKEN_GZIP)
def test_broken_gzip_is_a_400(http: httpx.Client, body: bytes) -> None:
    """A gzip body that is cut off, damaged or not one whole member is refused as such."""
    assert "gzip" in error_of(post(http, body, content_encoding="gzip"), 400)["message"]


def test_bytes_behind_a_gzip_body_end_the_request(http: httpx.Client) -> None:
    """Bytes behind the end of a gzip body are refused rather than kept or left out."""
    pieces = iter([COMPRESSED, b"x" * 1000, b"x" * 1000])
    response = http.post(
        "/v1/embeddings", content=pieces, headers={**JSON, "content-encoding": "gzip"}
    )
    assert "gzip" in error_of(response, 400)["message"]


def test_gzip_that_inflates_to_nothing_is_counted(small: httpx.Client) -> None:
    """Compressed bytes count too: empty blocks cannot keep a request open for ever."""
    empty = gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * MOST_BYTES
    pieces = (empty[start : start + 500] for start in range(0, len(empty), 500))
    response = small.post(
        "/v1/embeddings", content=pieces, headers={**JSON, "content-encoding": "gzip"}
    )
    error_of(response, 413)


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "x" * 5000])
def test_other_encodings_are_a_400(http: httpx.Client, coding: str) -> None:
    """Encodings that are not read are refused, and their name is not sent back."""
    response = post(http, VALID, content_encoding=coding)
    assert "content-encoding" in error_of(response, 400)["message"]
    assert len(response.content) < MOST_ERROR_BYTES


def test_a_body_that_stops_arriving_is_a_400(small: httpx.Client) -> None:
    """A client that announces more than it sends is answered after `body_timeout_s`, and let go."""
    with socket.create_connection(
        (small.base_url.host, small.base_url.port), timeout=30
    ) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"body_timeout"' in answer
