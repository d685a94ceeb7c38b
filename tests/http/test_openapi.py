"""The OpenAPI document: snapshotted, valid, and true of what the server takes and sends.

After a wanted change, write the snapshot anew with `python -m tests.http.test_openapi` and read its
diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator

from embedding_service.http.app import DIALECTS
from embedding_service.settings.gateway import Settings
from tests.calls import embed, routes_of
from tests.conftest import FAKE, RunningGateway
from tests.http.test_strict import WRONG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from embedding_service.dialects.errors import ErrorShape

SNAPSHOT = Path(__file__).with_name("openapi.json")
OF_TEI = {  # of one operation among several at its path
    *("x-compute-time", "x-compute-type", "x-compute-characters", "x-compute-tokens"),
    *("x-total-time", "x-queue-time", "x-inference-time", "x-tokenization-time"),
}
UNDOCUMENTED = {"/metrics", "/docs", "/openapi.json", "/ping"}


def written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


@pytest.fixture(scope="module")
def http(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of a model with all three kinds of vector."""
    gateway = start_gateway(**FAKE, engine_args={"outputs": ["dense", "sparse", "colbert"]})
    with gateway.client() as client:
        yield client
    gateway.stop()


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    """Return the document that the server hands out."""
    return dict(http.get("/openapi.json").json())


def test_the_document_is_as_it_was(document: dict[str, Any]) -> None:
    """The API changes only with its snapshot (`python -m tests.http.test_openapi` writes it)."""
    assert written(document) == SNAPSHOT.read_text(encoding="utf-8")


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """It is OpenAPI 3.1 with unique operation ids, and its schemas are JSON Schema."""
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from references(item)


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    """No reference dangles, and neither a schema nor a header is left over."""
    components = document["components"]
    defined = {
        f"#/components/{kind}/{x}" for kind in ("schemas", "headers") for x in components[kind]
    }
    assert set(references(document)) == defined


def test_every_route_is_documented(document: dict[str, Any], fake: RunningGateway) -> None:
    """The application serves the paths that the document describes, and no others."""
    served = {path.replace(":path}", "}") for path, _ in routes_of(fake.gateway)}
    of_pages = {path for path in served if path.startswith(("/docs/", "/ui"))}
    assert served - UNDOCUMENTED - of_pages == set(document["paths"])


def test_every_answer_has_a_schema(document: dict[str, Any]) -> None:
    """No answer is documented as just any object."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            for kind in schema.get("anyOf", [schema]):
                assert kind.keys() == {"$ref"} or kind["items"], path


def shapes_at(path: str, method: str) -> list[ErrorShape]:
    """Return how the dialects that answer there write errors."""
    dialects = [entry(Settings(**FAKE)) if callable(entry) else entry for entry in DIALECTS]
    mounted = [(dialect, operation) for dialect in dialects for operation in dialect.operations]
    return [
        operation.errors or dialect.errors
        for dialect, operation in mounted
        if (operation.path, operation.method) == (path, method)
    ]


def test_no_status_that_is_never_sent_is_documented(document: dict[str, Any]) -> None:
    """FastAPI's own 422 is not in the document, as the server answers wrong requests with 400."""
    known = {"200", "400", "401", "403", "404", "413", "429", "500", "503", "504"}
    for name, path in document["paths"].items():
        for method, operation in path.items():
            shapes = shapes_at(name, method.upper())
            of_dialects = {str(status) for shape in shapes for status in shape.responses()}
            assert operation["responses"].keys() <= known | of_dialects, name


def validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )


TEXTS = ["w1", "w2 w3"]
ANSWERS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/embeddings", {"model": "fake", "input": TEXTS}),
    ("POST", "/embeddings", {"model": "fake", "input": TEXTS, "encoding_format": "base64"}),
    ("POST", "/v1/embeddings", {"model": "fake", "input": TEXTS, "embed_dtype": "int8"}),
    ("POST", "/v1/embeddings", {"model": "fake", "input": "w1 " * 600, "truncate": "right"}),
    ("POST", "/v1/embeddings", {"model": "fake", "input": "w1 " * 600, "truncate": "chunk_mean"}),
    (
        "POST",
        "/v1/embeddings",
        {"model": "fake", "input": TEXTS, "return_sparse": True, "return_colbert": True},
    ),
    (
        "POST",
        "/v1/embeddings",
        {"model": "fake", "input": TEXTS, "return_dense": False, "return_sparse": True},
    ),
    (
        "POST",
        "/v1/embeddings",
        {"model": "fake", "input": "w1", "return_colbert": True, "encoding_format": "base64"},
    ),
    ("POST", "/v1/embeddings", {"model": "fake", "input": ""}),
    ("POST", "/v1/embeddings", {"model": "nobody", "input": "w1"}),
    ("POST", "/v1/embeddings", {"model": "fake", "input": "fault-nan"}),
    ("POST", "/v1/sparse-embeddings", {"model": "fake", "input": TEXTS}),
    ("POST", "/v1/hybrid-embeddings", {"model": "fake", "input": TEXTS}),
    ("POST", "/", {"inputs": "w1"}),
    ("POST", "/embed", {"inputs": TEXTS}),
    ("POST", "/embed", {"inputs": []}),
    ("POST", "/embed", {"texts": TEXTS}),
    ("POST", "/embed", {"text": "w1"}),
    ("POST", "/embed_all", {"inputs": TEXTS}),
    ("POST", "/embed_sparse", {"inputs": TEXTS}),
    ("POST", "/similarity", {"inputs": {"source_sentence": "w1", "sentences": TEXTS}}),
    ("POST", "/similarity", {"inputs": {"source_sentence": "w1"}}),
    ("POST", "/tokenize", {"inputs": TEXTS}),
    ("POST", "/decode", {"ids": [[1, 101]]}),
    ("GET", "/info", None),
    (
        "POST",
        "/v2/embed",
        {"model": "fake", "texts": TEXTS, "embedding_types": ["float", "int8", "base64"]},
    ),
    ("POST", "/v2/embed", {"model": "fake", "texts": []}),
    ("POST", "/v1/embed", {"texts": TEXTS}),
    ("POST", "/v1/embed", {"texts": TEXTS, "embedding_types": ["int8"]}),
    ("POST", "/score", {"model": "fake", "text_1": "w1", "text_2": TEXTS}),
    ("POST", "/v1/score", {"model": "fake", "queries": "w1", "documents": []}),
    ("POST", "/prepare-and-embed", {"title": "w1"}),
    ("POST", "/prepare-and-embed", {}),
    ("POST", "/batch", {"items": [{"entity_id": "1", "title": "w1"}, {"entity_id": "1"}]}),
    ("POST", "/reindex-batch", {"entities": [{"entity_id": "1"}]}),
    ("POST", "/reindex", {"entity_id": "1", "entity_type": "flat", "title": "w1"}),
    ("GET", "/model-info", None),
    ("GET", "/cache/stats", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/{name}", None),
    ("GET", "/", None),
    ("GET", "/health", None),
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ANSWERS)
def test_answers_are_as_documented(
    http: httpx.Client, document: dict[str, Any], method: str, path: str, body: Any
) -> None:
    """Each answer has a status that the document has for its route, and fits that schema."""
    response = http.request(method, path.replace("{name}", "fake"), json=body)
    described = document["paths"][path][method.lower()]["responses"][str(response.status_code)]
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(response.json())
    told = {name for name in response.headers if name.startswith("x-")} - OF_TEI
    assert told <= described["headers"].keys()
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        known = document["components"]["schemas"][name].get("properties", {})
        sent = response.json()
        assert not isinstance(sent, dict) or sent.keys() <= known.keys(), (
            "the schema does not name every field"
        )


# JSON Schema calls 1.0 an integer.
LENIENT = [("dimensions", 1.0), ("input", [[1.0]])]
OF_THE_MODEL = [
    ("model", None),
    ("prompt_name", ""),
    ("prompt_name", "query"),
    ("truncate_prompt_tokens", 0),
    ("truncate_prompt_tokens", 1),
]  # wrong for the fake model only


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field, values in WRONG.items()
        for value in values
        if not any(
            (field, value) == known and type(value) is type(known[1])
            for known in LENIENT + OF_THE_MODEL
        )
    ],
)
def test_the_schema_refuses_what_the_server_refuses(
    document: dict[str, Any], field: str, value: Any
) -> None:
    """A request that is wrong in itself is wrong by its schema too."""
    request = {"model": "fake", "input": "w1", field: value}
    assert not validator(document, "EmbeddingsRequest").is_valid(request)


VALID: list[dict[str, Any]] = [
    {"input": "w1"},
    {"input": ["w1", "w2"], "user": "me", "encoding_format": None, "service_tier": "auto"},
    {"input": [1, 2], "dimensions": 32, "encoding_format": "base64"},
    {"input": [[1], [2, 3]], "truncate": "left", "normalize": False, "embed_dtype": "float16"},
    {"input": "w1", "return_dense": None, "return_sparse": True},
]


@pytest.mark.parametrize("fields", VALID)
def test_the_schema_takes_what_the_server_takes(
    http: httpx.Client, document: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A request that is served is valid by its schema."""
    assert embed(http, **fields).status_code == 200
    assert validator(document, "EmbeddingsRequest").is_valid({"model": "fake", **fields})


def test_errors_are_documented_where_they_happen(document: dict[str, Any]) -> None:
    """Every route with a body documents the errors of a body, in the envelope of its dialect."""
    for name, path in document["paths"].items():
        if "requestBody" in path.get("post", {}):
            responses = path["post"]["responses"]
            assert {"401", "404", "413", "429", "503"} <= responses.keys()
            errors = [response["content"] for status, response in responses.items() if status > "4"]
            schemas = set(references(errors))
            expected = {shape.model.__name__ for shape in shapes_at(name, "POST")}
            assert schemas == {f"#/components/schemas/{schema}" for schema in expected}, name


if __name__ == "__main__":
    gateway = RunningGateway(Settings(**FAKE))
    gateway.wait_ready()
    with gateway.client() as client:
        SNAPSHOT.write_text(written(client.get("/openapi.json").json()), encoding="utf-8")
    gateway.stop()
