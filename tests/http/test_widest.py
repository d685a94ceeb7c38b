"""No small request hurts: the widest body of every shape, at every route that takes one.

Routes and their fields come from the table of operations: one that is added is under this test. Each
body is as large as the limits let it be, and a few KB as gzip.
"""

from __future__ import annotations

import gzip
import json
import time
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args, get_origin

import httpx
import pytest
from pydantic import BaseModel

from embedding_service.http import batches
from tests.calls import computing_operations
from tests.conftest import PLAIN
from tests.deploy.cluster import run_nginx
from tests.measured import Measured
from tests.service.test_slices import byte_level, wordpiece

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.measured import Taken

    Place = tuple[str | int, ...]

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

BODY_BYTES = 32 << 20  # as shipped: `max_body_bytes`
CALLBACK_S = 0.05
REFUSED_CPU_S = 1.0
GROWTH_BYTES = 300 << 20
DEADLINE_S = 4.0
HEADERS = {"content-type": "application/json", "x-request-timeout-ms": str(int(1000 * DEADLINE_S))}
CODINGS = ["plain", "gzip"]
TRIES = 3  # before a missed bar counts: others use the same cores
# Before bodies were counted, `/livez` waited for 13 s.
SILENT_S = 0.25
# Records with a field of every type, one of them twice in the text.
RECORDS = {
    "fields": {
        "title": {},
        "facts": {"type": "mapping"},
        "rooms": {"type": "integer"},
        "price": {"type": "number"},
    },
    "template": ["{title}", "{facts}", {"In all: ": ["{rooms} rooms", "{price}", "{facts}"]}],
}
BATCHES = batches.dialect(SimpleNamespace(store=None))  # type: ignore[arg-type]
OPERATIONS = [
    *computing_operations(records=RECORDS),
    *(each for each in BATCHES.operations if each.request is not None),
]
NAMES = [f"{each.path} {each.summary}" for each in OPERATIONS]


def filled(unit: str, beginning: str = "", end: str = "") -> bytes:
    """Return as many units as a body has room for."""
    raw = unit.encode()
    count = (BODY_BYTES - 4096) // len(raw)
    return beginning.encode() + raw * count + end.encode()


# In place of a field's value: what fills a body with values, levels, names, characters or tokens.
SHAPES: dict[str, Any] = {
    "objects": lambda: filled("{},", "[", "{}]"),
    "lists": lambda: filled("[],", "[", "[]]"),
    "texts": lambda: filled('"",', "[", '""]'),
    "numbers": lambda: filled("1,", "[", "1]"),
    "long numbers": lambda: filled("9" * 4000 + ",", "[", "1]"),
    "long fractions": lambda: filled("0." + "9" * 4000 + ",", "[", "1]"),
    "nulls": lambda: filled("null,", "[", "null]"),
    "just enough objects": lambda: b"[" + b"{}," * 140_000 + b"{}]",
    "just enough lists": lambda: b"[" + b"[]," * 210_000 + b"[]]",
    "an object of many names": lambda: many_names(100_000),
    "records": lambda: filled(
        '{"entity_id":"","query":"w","document":"w","text":"w"},', "[", "{}]"
    ),
    "levels": lambda: b"[" * (BODY_BYTES // 2 - 2048) + b"]" * (BODY_BYTES // 2 - 2048),
    "a long text": lambda: filled("a", '"', '"'),
    "a text of words": lambda: filled("the fox ", '"', '"'),
    "an astral text": lambda: filled("a", '"😀', '"'),
    "escapes": lambda: filled("\\n", '"', '"'),
    "commas in a text": lambda: filled(",[{:", '"', '"'),
    "ideographs": lambda: b'"' + "漢".encode() * 2_390_000 + b'"',
    "marks": lambda: b'"' + b"!" * 2_390_000 + b'"',
    "special tokens": lambda: b'"' + b"<|im_start|>[SEP]" * 20_000 + b'"',
    "letters of many letters": lambda: b'"' + "ﷺ".encode() * 2_390_000 + b'"',
    "many long texts": lambda: many_texts("漢" * 1160),
    "many texts of words": lambda: many_texts("the fox " * 140),
    "as many tokens as may be": lambda: many_texts("fox " * 500, count=590),
    "a long instruction": lambda: b'"' + b"the quick fox " * 900 + b'"',
}


def many_texts(text: str, count: int = 2040) -> bytes:
    """Return as many texts as a request may have, or so many."""
    return json.dumps([text] * count, ensure_ascii=False).encode()


def many_names(count: int) -> bytes:
    return json.dumps(dict.fromkeys(map(str, range(count)), 1)).encode()


@cache
def raw(shape: str) -> bytes:
    found: bytes = SHAPES[shape]()
    return found


def places(operation: Any) -> list[Place]:
    """Return every place of a body: its fields, those within them, and one that is unknown."""
    return [*dict.fromkeys(within(operation.request)), ("unknown",)]


def within(kind: Any, path: Place = ()) -> Iterator[Place]:
    """Yield the places in a value of a type: a field, an item's field, a mapping's value."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield (*path, name)
            yield from within(field.annotation, (*path, name))
    elif get_origin(kind) is dict:
        yield (*path, "x")
    else:
        inner = (*path, 0) if get_origin(kind) is list else path
        for each in get_args(kind):
            yield from within(each, inner)


def body(operation: Any, place: Place, shape: str) -> bytes:
    """Return the operation's example with one value as wide as can be."""
    tree = json.loads(json.dumps(operation.example))
    inner = tree
    for name, following in pairwise(place):
        if isinstance(name, int):
            inner[:] = inner[:1] if inner and isinstance(inner[0], dict) else [{}]
        else:
            kind = list if isinstance(following, int) else dict
            if not isinstance(inner.get(name), kind):
                inner[name] = kind()
        inner = inner[name]
    inner[place[-1]] = "HERE"
    written = json.dumps(tree).encode()
    return written.replace(b'"HERE"', raw(shape))


MODEL: dict[str, Any] = {"engine": "fake", "model_name": "widest", "required": True}


def tokenizer_file(folder: Path) -> dict[str, Any]:
    """Return the options of a model that gives everything and reads as MiniLM does."""
    path = folder / "widest.json"
    path.write_text(wordpiece().to_str(), encoding="utf-8")
    outputs = ["dense", "sparse", "colbert", "hidden_states"]
    return {"engine_args": {"outputs": outputs, "tokenizer": str(path)}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Return a gateway with the limits that are shipped, and tokenizers of two families."""
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    reranker = folder / "reranker.json"
    reranker.write_text(byte_level(unused=50).to_str(), encoding="utf-8")
    scores = {"outputs": ["score"], "tokenizer": str(reranker)}
    models = [
        {**MODEL, **tokenizer_file(folder)},
        {**MODEL, "model_name": "qwen3-reranker", "engine_args": scores},
    ]
    running = Measured(
        port=0, unknown_model="serve_default", models=models, records=RECORDS, state_dir=str(folder)
    )
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def http(gateway: Measured) -> Iterator[httpx.Client]:
    """Return a client whose requests have a deadline."""
    with httpx.Client(**PLAIN | {"base_url": gateway.url, "headers": HEADERS}) as client:
        yield client


def troubles(answer: httpx.Response, elapsed_s: float, taken: Taken, grown: int) -> list[str]:
    """Return the bars that a request has missed."""
    refused = answer.status_code not in (200, 504)
    found = {
        f"status {answer.status_code}": answer.status_code >= 500 and answer.status_code != 504,
        f"answered after {elapsed_s:.2f} s": elapsed_s > DEADLINE_S + 0.5,
        f"a callback of {taken.callback_s:.3f} s of CPU": taken.callback_s > CALLBACK_S,
        f"the event loop silent for {taken.silent_s:.3f} s of CPU": taken.silent_s > SILENT_S,
        f"refused after {taken.cpu_s:.2f} s of CPU": refused and taken.cpu_s > REFUSED_CPU_S,
        f"grew by {grown >> 20} MB": grown > GROWTH_BYTES + len(answer.content),
        f"{taken.reserved_bytes} bytes stay reserved": taken.reserved_bytes > 0,
    }
    return [words for words, is_true in found.items() if is_true]


def send(
    gateway: Measured, http: httpx.Client, operation: Any, widest: bytes, *, coding: str
) -> list[str]:
    """Send a body; return what it did to the gateway that it should not, at every try."""
    missed: list[str] = []
    for _ in range(TRIES):
        if not (missed := send_once(gateway, http, operation, widest, coding=coding)):
            break
        http.post("/cache/clear")
    return missed


def send_once(
    gateway: Measured, http: httpx.Client, operation: Any, widest: bytes, *, coding: str
) -> list[str]:
    """Send a body; return the bars that it missed."""
    before = gateway.take()
    data, headers = widest, {}
    if coding == "gzip":
        data, headers = gzip.compress(widest, 1), {"content-encoding": "gzip"}
    began = time.monotonic()
    answer = http.post(operation.path, content=data, headers=headers)
    elapsed_s = time.monotonic() - began
    taken = gateway.take()
    return troubles(answer, elapsed_s, taken, taken.peak_bytes - before.peak_bytes)


def cases(number: int) -> Iterator[tuple[Place, str]]:
    """Yield a quarter of the shapes, each at one place.

    Over all operations every shape comes several times.
    """
    found = places(OPERATIONS[number])
    for place, shape in enumerate(list(SHAPES)[number % 4 :: 4]):
        yield found[(place + number) % len(found)], shape


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=NAMES)
def test_no_request_hurts(gateway: Measured, http: httpx.Client, number: int) -> None:
    """Whatever a body is full of, it costs little, keeps nobody waiting, and ends in time."""
    operation, found = OPERATIONS[number], {}
    for place, shape in cases(number):
        if missed := send(gateway, http, operation, body(operation, place, shape), coding="gzip"):
            found[shape, place] = missed
    assert found == {}


def test_the_answer_comes_at_the_deadline(gateway: Measured, http: httpx.Client) -> None:
    """A text that no slice can end, and a thread still reads, is answered at its deadline."""
    text = b'{"input":"' + "é".encode() * 2_390_000 + b'"}'
    gateway.take()
    answer = http.post("/v1/embeddings", content=text, headers={"x-request-timeout-ms": "400"})
    assert answer.status_code == 504
    assert gateway.take().cpu_s < 2.5  # 0.5 alone; read to its end the text takes 5


@pytest.mark.server
def test_no_request_hurts_behind_nginx(gateway: Measured, tmp_path: Path) -> None:
    """So it is through the shipped nginx, with a body of every shape, by turns plain and as gzip."""
    proxy = run_nginx(tmp_path, [int(gateway.url.rpartition(":")[2])])
    found = {}
    try:
        with proxy.client(headers=HEADERS) as http:
            for number, shape in enumerate(SHAPES):
                widest, coding = body(OPERATIONS[0], ("input",), shape), CODINGS[number % 2]
                if missed := send(gateway, http, OPERATIONS[0], widest, coding=coding):
                    found[shape] = missed
    finally:
        proxy.stop()
    assert found == {}


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_no_request_hurts_in_any_field(
    gateway: Measured, http: httpx.Client, operation: Any, coding: str
) -> None:
    """So it is in every field of every request, plain and as gzip."""
    found = {}
    for place in places(operation):
        for shape in SHAPES:
            widest = body(operation, place, shape)
            if missed := send(gateway, http, operation, widest, coding=coding):
                found[shape, place] = missed
    assert found == {}
