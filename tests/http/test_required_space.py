"""Every answer with vectors says in which space they are, and none is given in another one than is
required: in every dialect, in its own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from embedding_service.dialects.fields import Fields
from embedding_service.dropin.presets import PRESETS
from embedding_service.http.app import DIALECTS
from embedding_service.settings.gateway import Settings
from tests.calls import embed, error_of
from tests.conftest import FAKE, client_of
from tests.dialects.test_null import SETTINGS
from tests.dropin.conftest import preset_settings, start_preset  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from embedding_service.dialects.dialect import Dialect, Operation
    from tests.conftest import RunningGateway

HEADER = "x-require-vector-space"
FIELD = "require_vector_space"
OTHER = "other@0123456789ab"
PLAIN = Settings(**FAKE)
BAD = ("", "nonsense", "a@12", f"{OTHER} {OTHER}")


def _operations(entries: Any, settings: Settings) -> Iterator[Operation]:
    """Yield the operations that may compute vectors and have an example."""
    for entry in entries:
        dialect: Dialect = entry(settings) if callable(entry) else entry
        for operation in dialect.operations:
            if operation.request is not None and issubclass(operation.request, Fields):
                yield operation


CASES = [(op.path, op.example) for op in _operations(DIALECTS, PLAIN) if op.example]


http = client_of(**SETTINGS)


def ids(http: httpx.Client) -> dict[str, str | None]:
    """Return the space of every name of every model."""
    entries = http.get("/v1/models").json()["data"]
    return {entry["id"]: entry["vector_space"] and entry["vector_space"]["id"] for entry in entries}


def check(http: httpx.Client, path: str, body: dict[str, Any], own: str) -> None:
    """Send a request with its own space and with another one, in header and body."""
    assert http.post(path, json=body).headers["x-vector-space"] == own
    for required in (
        own,
        f"{OTHER}, {own}",
        own.rpartition("@")[2].upper(),
        f"renamed@{own[-12:]}",
    ):
        answer = http.post(path, json=body, headers={HEADER: required})
        assert (answer.status_code, answer.headers["x-vector-space"]) == (200, own)
        answer = http.post(path, json={**body, FIELD: required})
        assert (answer.status_code, answer.headers["x-vector-space"]) == (200, own)
        assert FIELD not in answer.headers.get("x-ignored-fields", "")
    for answer in (
        http.post(path, json=body, headers={HEADER: OTHER}),
        http.post(path, json={**body, FIELD: [OTHER]}),
        http.post(path, json={**body, FIELD: own}, headers={HEADER: OTHER}),
    ):
        assert answer.status_code == 409, answer.text
        assert answer.headers["x-should-retry"] == "false"
        assert own in answer.text
        assert OTHER.rpartition("@")[2] in answer.text
    for bad in BAD:
        for answer in (
            http.post(path, json=body, headers={HEADER: bad}),
            http.post(path, json={**body, FIELD: bad}),
        ):
            assert answer.status_code in (400, 422), answer.text
            assert (HEADER if HEADER in answer.request.headers else FIELD) in answer.text
            assert "must be right" not in answer.text


@pytest.fixture(scope="module")
def alone(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of a gateway that has the embedder only, which scores, too."""
    gateway = start_gateway(**{**SETTINGS, "models": SETTINGS["models"][:1]})
    with gateway.client() as client:
        yield client


@pytest.mark.parametrize(("path", "body"), CASES)
def test_every_operation(alone: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """Vectors, and scores that come of them, are in the space that is required, or there are none."""
    own = ids(alone)["m3"]
    assert own is not None
    check(alone, path, {**body, "model": "m3"}, own)


@pytest.mark.parametrize(("path", "body"), [case for case in CASES if "rerank" in case[0]])
def test_a_cross_encoder_has_no_space(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """A client that sends the header with all its requests may score with one."""
    assert ids(http)["cross"] is None
    answer = http.post(path, json={**body, "model": "cross"}, headers={HEADER: OTHER})
    assert answer.status_code == 200, answer.text
    assert "x-vector-space" not in answer.headers


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, start_preset: Callable[..., RunningGateway]) -> None:  # noqa: F811
    """So it is where a replaced system had paths of its own."""
    rates = {op.path: "999/second" for op in _operations(PRESETS[name].dialects(PLAIN), PLAIN)}
    gateway = start_preset(name, allow_anonymous=True, rate_limit_paths=rates)
    space = gateway.gateway.service.models.default.space
    own = [*_operations(PRESETS[name].dialects(gateway.settings), gateway.settings)]
    with gateway.client() as http:
        for operation in own:
            body = dict(operation.example or {})
            served = http.post(operation.path, json=body).status_code == 200  # or not by this model
            if served and space is not None:
                check(http, operation.path, body, str(space))


def test_models_tell_their_space(http: httpx.Client) -> None:
    """Both ids are listed with what they are made of, under each name."""
    entry, _ = http.get("/v1/models").json()["data"]
    told = entry["vector_space"]
    assert told.keys() == {"id", "build", "ingredients", "build_ingredients"}
    assert told["ingredients"]["weights"] == "m3@None"
    assert told["build_ingredients"]["dtype"] == "float32"
    assert http.get("/info").json()["vector_space"] == told
    assert http.get("/v1/models/m3").json()["vector_space"] == told


def test_aliases_and_input_types_share_their_models_space(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """Queries can search what documents have filled; another model behind an alias cannot."""
    models = [
        {"model_name": "e5", "aliases": {"ask": {"input_type": "query"}}},
        {"model_name": "b"},
    ]
    gateway = start_gateway(engine="fake", port=0, models=models)
    gateway.wait_loaded()
    with gateway.client() as http:
        known = {
            embed(http, input="w1", model=model, input_type=kind).headers["x-vector-space"]
            for model in ("e5", "ask")
            for kind in ("query", "document", None)
        }
        (space,) = known
        error = error_of(embed(http, input="w1", model="b", headers={HEADER: space}), 409)
    assert error["code"] == "vector_space_mismatch"
    assert (error["param"], error["type"]) == ("model", "invalid_request_error")


def test_nothing_is_computed_for_another_space(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """It is refused before a text is looked at: one that would be too long, or end the engine."""
    gateway = start_gateway(**FAKE)
    with gateway.client() as http:
        long = " ".join(["w1"] * 600)
        for text in (long, "fault-die"):
            error_of(embed(http, input=text, headers={HEADER: OTHER}), 409)
        stages = gateway.requests_logged()[-1]
        metrics = http.get("/metrics").text
    assert "tokens" not in stages
    assert 'stage="tokenize"' not in metrics
    assert 'embedding_errors_total{code="vector_space_mismatch"} 2.0' in metrics


def test_keys_may_require_a_space(start_gateway: Callable[..., RunningGateway]) -> None:
    """A key's own requirement holds beside that of the request."""
    with start_gateway(**FAKE).client() as http:
        own = embed(http, input="w1").headers["x-vector-space"]
    keys = [
        {"name": "right", "key": "k1", "require_vector_space": [own, OTHER]},
        {"name": "wrong", "key": "k2", "require_vector_space": OTHER},
        {"name": "free", "key": "k3"},
    ]
    with start_gateway(**FAKE, api_keys=keys).client() as http:
        for key, status in (("k1", 200), ("k2", 409), ("k3", 200)):
            sent = {"authorization": f"Bearer {key}"}
            assert embed(http, input="w1", headers=sent).status_code == status
            assert http.get("/v1/models", headers=sent).status_code == 200
        both = {"authorization": "Bearer k1", HEADER: OTHER}
        error_of(embed(http, input="w1", headers=both), 409)
    with pytest.raises(ValueError, match="is not the id of a vector space"):
        Settings(**FAKE, api_keys=[{"key": "k", "require_vector_space": "nonsense"}])
