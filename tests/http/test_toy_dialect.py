"""A dialect is one file: this one defines its own, mounts it, and gets all that the others have."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from embedding_service import server
from embedding_service.dialects import embedding
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, Sends
from embedding_service.dialects.errors import ErrorShape
from embedding_service.dialects.fields import Fields
from embedding_service.http.app import DIALECTS, create_app
from embedding_service.types import EmbedJob, Field
from tests.calls import raw_vector
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway


class ToyRequest(Fields):
    sentences: list[str]
    width: int | None = None


class ToyError(BaseModel):
    oops: str


async def embed(request: Request[ToyRequest]) -> Answer:
    fields = request.fields
    job = EmbedJob(None, list(fields.sentences), dimensions=fields.width, normalize=False)
    answer = await embedding.compute(request, job)
    return Answer.json({"rows": list(answer.dense)})


NAMES = {Field.INPUT: "sentences", Field.DIMENSIONS: "width"}
SHAPES: dict[str, Any] = {
    "handle": embed,
    "example": {"sentences": ["Hello"]},
    "request": ToyRequest,
    "response": list[list[float]],
    "names": NAMES,
}
ERRORS = ErrorShape(
    ToyError, lambda failure: (418, {"oops": f"{failure.param}: {failure.message}"})
)
TOY = Dialect(
    "Toy",
    ERRORS,
    (
        Operation(path="/toy", summary="Embed sentences", **SHAPES),
        Operation(path="/v1/embeddings", summary="The same", when=Sends("sentences"), **SHAPES),
    ),
)


@pytest.fixture(scope="module")
def http(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client with a key, of a gateway that speaks the toy dialect too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "create_app", partial(create_app, dialects=(*DIALECTS, TOY)))
        gateway = start_gateway(
            **FAKE, unknown_model="serve_default", api_keys=["key"], max_inputs=3
        )
    with gateway.client(headers={"x-api-key": "key"}) as client:
        yield client
    gateway.stop()


@pytest.mark.parametrize("path", ["/toy", "/v1/embeddings"])
def test_it_answers(http: httpx.Client, path: str) -> None:
    """Its operation computes, also at a path that it shares with OpenAI's dialect."""
    answer = http.post(path, json={"sentences": ["w1"], "colour": "blue"})
    assert answer.json() == {"rows": [pytest.approx(raw_vector("w1").tolist(), rel=1e-6)]}
    assert answer.headers["x-request-id"]


def test_the_other_dialect_stays(http: httpx.Client) -> None:
    """A body without its field means OpenAI's dialect as before, errors included."""
    assert http.post("/v1/embeddings", json={"input": "w1"}).json()["object"] == "list"
    assert http.post("/v1/embeddings", json={"input": 7}).json()["error"]["param"] == "input"


@pytest.mark.parametrize("path", ["/toy", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"sentences": 7}, "sentences: "),
        ({"sentences": []}, "sentences: sentences must not be an empty list"),
        ({"sentences": ["w1"], "width": 7}, "width: "),
        ({"sentences": ["w1 " * 600]}, "sentences[0]: "),
        ({"sentences": ["w1"] * 4}, "sentences: sentences has 4 items"),
    ],
)
def test_its_errors_are_its_own(
    http: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    """Errors of the fields, the model and the limits have its shape and its names."""
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json().keys()) == (418, {"oops"})
    assert answer.json()["oops"].startswith(words)


def test_it_has_keys_and_deadlines(http: httpx.Client) -> None:
    """Without a key, and after the client's deadline, it refuses in its shape."""
    keyless = http.post("/toy", json={"sentences": ["w1"]}, headers={"x-api-key": "wrong"})
    late = http.post(
        "/toy", json={"sentences": ["w1 fault-slow"]}, headers={"x-request-timeout-ms": "50"}
    )
    assert keyless.json().keys() == late.json().keys() == {"oops"}
    assert "Incorrect API key" in keyless.text


def test_it_is_documented(http: httpx.Client) -> None:
    """The OpenAPI document has its path, body and errors; a shared path has both bodies."""
    document = http.get("/openapi.json").json()
    content = document["paths"]["/toy"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ToyRequest"}
    assert {"ToyRequest", "ToyError"} <= document["components"]["schemas"].keys()
    shared = document["paths"]["/v1/embeddings"]["post"]
    assert shared["tags"] == ["OpenAI", "Toy"]
    assert len(shared["requestBody"]["content"]["application/json"]["schema"]["anyOf"]) == 2


def test_two_that_nothing_tells_apart_are_refused() -> None:
    """A second operation at a path needs a predicate, or the start fails and names both dialects."""
    from embedding_service.http.routes import RouteTable

    twin = Dialect("Twin", ERRORS, TOY.operations[:1])
    with pytest.raises(ValueError, match="Toy and Twin"):
        RouteTable([TOY, twin], default_errors=ERRORS)
