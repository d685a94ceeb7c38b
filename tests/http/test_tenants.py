"""Whose key it is: the models that it opens, and how keys change while requests are served."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.calls import computing_operations, embed, error_of, log_line, watch_engine
from tests.child import Child, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.conftest import RunningGateway

MODEL: dict[str, Any] = {
    "engine": "fake",
    "engine_args": {"outputs": ["dense", "sparse", "colbert", "hidden_states"]},
}
MODELS = [
    {**MODEL, "model_name": "open", "aliases": {"text-embedding-3-small": {}}},
    {**MODEL, "model_name": "closed", "aliases": {"also-closed": {}}},
]
KEYS = [
    {"name": "all", "key": "key-for-all"},
    {"name": "one", "key": "key-for-one", "models": ["open"]},
    {"name": "second", "key": "key-for-second", "models": ["closed"]},
    {"name": "by-alias", "key": "key-by-alias", "models": ["text-embedding-3-small"]},
]
OPERATIONS = computing_operations()
REQUESTS = [(o.path, o.example) for o in OPERATIONS if "model" in o.request.model_fields]
REQUESTS.append(("/v1/rerank", {"pairs": [{"query": "w1", "document": "w2"}]}))
# These mean the first model that can do it.
WITHOUT_MODEL = [(o.path, o.example) for o in OPERATIONS if "model" not in o.request.model_fields]


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway with two models and keys for both, for one, and for one's alias."""
    running = start_gateway(port=0, models=[{**m, "required": True} for m in MODELS], api_keys=KEYS)
    yield running
    running.stop()


def with_key(gateway: RunningGateway | Child, key: str) -> httpx.Client:
    return gateway.client(headers={"authorization": f"Bearer {key}"})


@pytest.mark.parametrize("key", ["key-for-one", "key-by-alias"])
@pytest.mark.parametrize("name", ["closed", "also-closed"])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_other_models_are_refused(
    gateway: RunningGateway,
    path: str,
    body: dict[str, Any],
    name: str,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key for one model gets 403 for another by any name on every route; nothing runs."""
    computed = watch_engine(gateway, "closed", monkeypatch)
    with with_key(gateway, key) as http:
        answer = http.post(path, json={"model": name, **body})
    assert (answer.status_code, "this key may not use closed" in answer.text, computed) == (
        403,
        True,
        [],
    )
    if path == "/v1/embeddings":
        error = error_of(answer, 403)
        assert (error["type"], error["param"], error["code"]) == (
            "permission_error",
            "model",
            "permission_denied",
        )


def test_figures_are_of_the_keys_models(gateway: RunningGateway) -> None:
    """A key for some models sees neither the others' counters, nor the host's name."""
    for key, names in (("all", {"open", "closed"}), ("one", {"open"}), ("second", {"closed"})):
        with with_key(gateway, f"key-for-{key}") as http:
            figures, stats = http.get("/ui/figures").json(), http.get("/stats").json()
        assert {each["name"] for each in figures["models"]} == names
        assert stats["models"].keys() == names
        assert (figures["instance"] == figures["process"]) is (key != "all")


@pytest.mark.parametrize(("path", "body"), WITHOUT_MODEL)
def test_routes_without_a_model_are_no_way_around(
    gateway: RunningGateway, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a request names no model, the one that is meant is refused to a key for another one."""
    computed = watch_engine(gateway, "open", monkeypatch)
    with with_key(gateway, "key-for-second") as http:
        answer = http.post(path, json=body)
    assert (answer.status_code, "this key may not use open" in answer.text, computed) == (
        403,
        True,
        [],
    )
    with with_key(gateway, "key-for-one") as http:
        assert http.post(path, json=body).status_code == 200


@pytest.mark.parametrize("key", ["key-for-all", "key-for-one", "key-by-alias"])
@pytest.mark.parametrize("name", ["open", "text-embedding-3-small"])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_its_own_model_is_served(
    gateway: RunningGateway, path: str, body: dict[str, Any], name: str, key: str
) -> None:
    """A model that a key is for answers by all of its names, whichever the key was given."""
    with with_key(gateway, key) as http:
        assert http.post(path, json={"model": name, **body}).status_code == 200


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("key-for-all", ["open", "text-embedding-3-small", "closed", "also-closed"]),
        ("key-for-one", ["open", "text-embedding-3-small"]),
        ("key-by-alias", ["open", "text-embedding-3-small"]),
    ],
)
def test_only_what_may_be_used_is_listed(
    gateway: RunningGateway, key: str, names: list[str]
) -> None:
    """/v1/models lists a key's own models; others are a 404 by name, as if they were not served."""
    with with_key(gateway, key) as http:
        assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == names
        for name in ("open", "text-embedding-3-small", "closed", "also-closed"):
            assert http.get(f"/v1/models/{name}").status_code == (200 if name in names else 404)


def test_an_unknown_model_stays_a_404(gateway: RunningGateway) -> None:
    """A model that is not served is not found, for every key; those that it may use are named."""
    with with_key(gateway, "key-for-one") as http:
        for answer in (embed(http, model="nobody", input="w1"), http.get("/v1/models/nobody")):
            error = error_of(answer, 404)
            assert error["code"] == "model_not_found"
            assert error["message"].endswith("See /v1/models: open.")


def test_the_default_model_is_refused_as_well(start_gateway: Callable[..., RunningGateway]) -> None:
    """Where foreign names mean the first model, a key for another one does not reach it that way."""
    keys = [{"name": "one", "key": "secret", "models": ["closed"]}]
    running = start_gateway(port=0, models=MODELS, api_keys=keys, unknown_model="serve_default")
    with with_key(running, "secret") as http:
        for name in ("nobody", None):
            assert error_of(embed(http, model=name, input="w1"), 403)["code"] == "permission_denied"
    running.stop()


def test_the_log_says_who_asked(gateway: RunningGateway) -> None:
    """Each line of the access log has the name of the key, and never the key."""
    with with_key(gateway, "key-for-one") as http:
        answers = [embed(http, model=name, input="w1") for name in ("open", "closed")]
    assert [log_line(gateway, answer)["key"] for answer in answers] == ["one", "one"]
    assert "key-for-one" not in str(gateway.log)


@pytest.mark.parametrize(("isolation", "hits"), [("none", "1/1"), ("tenant", None)])
def test_tenants_and_the_cache(
    start_gateway: Callable[..., RunningGateway],
    monkeypatch: pytest.MonkeyPatch,
    isolation: str,
    hits: str | None,
) -> None:
    """With `cache_isolation: tenant` another's text is computed anew; without, it is shared."""
    running = start_gateway(
        port=0, models=MODELS, api_keys=KEYS, cache_max_bytes=1 << 20, cache_isolation=isolation
    )
    computed = watch_engine(running, "open", monkeypatch)
    with with_key(running, "key-for-all") as one, with_key(running, "key-for-one") as other:
        first = embed(one, model="open", input="w1")
        assert "x-cache" not in first.headers
        assert embed(one, model="open", input="w1").headers["x-cache"] == "1/1"
        again = embed(other, model="open", input="w1")
        assert again.headers.get("x-cache") == hits
        assert again.json()["data"] == first.json()["data"]
        assert embed(other, model="open", input="w1").headers["x-cache"] == "1/1"
    assert computed == ([1] if hits else [1, 1])
    running.stop()


class Steady(threading.Thread):
    """Sends requests one after another with one key, and keeps what went wrong."""

    def __init__(self, child: Child, key: str) -> None:
        super().__init__(daemon=True)
        self.http = with_key(child, key)
        self.statuses: list[int] = []
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Send until told to end."""
        with self.http:
            while not self.ended.is_set():
                self.statuses.append(embed(self.http, input="w1").status_code)

    def wait_for_more(self, count: int = 20) -> None:
        """Return once so many more requests have been answered."""
        sent = len(self.statuses)
        wait_until(lambda: len(self.statuses) >= sent + count or not self.is_alive())
        assert self.is_alive()


@pytest.mark.process
def test_keys_change_under_load(tmp_path: Path) -> None:
    """After SIGHUP the new key works and the old one is a 401; other keys have no failures."""
    path = tmp_path / "keys.yaml"
    path.write_text("- {name: stays, key: staying}\n- {name: goes, key: going}\n", encoding="utf-8")
    child = Child(tmp_path, "--api-keys-file", str(path))
    load = [Steady(child, "staying") for _ in range(2)]
    try:
        with with_key(child, "going") as old, with_key(child, "coming") as new:
            load[0].wait_for_more()
            assert (embed(old, input="w1").status_code, embed(new, input="w1").status_code) == (
                200,
                401,
            )
            path.write_text(
                "- {name: stays, key: staying}\n- {name: comes, key: coming}\n", encoding="utf-8"
            )
            assert embed(new, input="w1").status_code == 401, "keys are read when told to"
            child.process.send_signal(signal.SIGHUP)
            assert child.wait_for("reloaded")[0]["keys"] == 2
            assert (embed(old, input="w1").status_code, embed(new, input="w1").status_code) == (
                401,
                200,
            )
            load[0].wait_for_more()

            path.write_text("- [coming", encoding="utf-8")
            child.process.send_signal(signal.SIGHUP)
            (failed,) = child.wait_for("reload_failed")
            assert (failed["level"], str(path) in failed["reason"]) == ("error", True)
            assert "coming" not in failed["reason"]
            assert (embed(old, input="w1").status_code, embed(new, input="w1").status_code) == (
                401,
                200,
            )
            for _ in range(50):  # as a careless script might
                child.process.send_signal(signal.SIGHUP)
                time.sleep(0.002)
            load[0].wait_for_more()
        for thread in load:
            thread.ended.set()
            thread.join(60)
        assert {status for thread in load for status in thread.statuses} == {200}
    finally:
        for thread in load:
            thread.ended.set()
        assert child.end() == 0


def test_the_cache_of_all_is_not_cleared_by_one(gateway: RunningGateway) -> None:
    """Only a key for all models may forget what belongs to all of them."""
    with with_key(gateway, "key-for-one") as http:
        assert error_of(http.post("/cache/clear"), 403)["code"] == "permission_denied"
    with with_key(gateway, "key-for-all") as http:
        assert http.post("/cache/clear").status_code == 200
