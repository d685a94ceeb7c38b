"""Canaries: a worker that does not come near the pinned vectors gets no requests."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service import canary
from embedding_service.engine import examination
from embedding_service.engine.states import State
from embedding_service.errors import BadConfiguration, DeadlineExceeded, ModelNotLoaded, NoModelLeft
from embedding_service.service import canaries, examiner
from embedding_service.service.canaries import TEXTS, Direction
from embedding_service.service.lifecycle import PULSE_S
from embedding_service.types import Output
from embedding_service.worker import fake as engine
from tests.calls import embed, error_of
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedding_service.types import Floats
    from tests.conftest import RunningGateway

    Start = Callable[..., RunningGateway]

ALL = {"outputs": ["dense", "sparse", "colbert"]}
KEY = "secret"


@pytest.fixture(scope="module")
def pinned(start_gateway: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a running server's vectors."""
    path = tmp_path_factory.mktemp("canaries") / "canaries.json"
    gateway = start_gateway(**FAKE, api_keys=[KEY], engine_args=ALL)
    canary.pin_server(f"{gateway.url}/v1", path, name=None, key=KEY)
    return path


class Fault:
    """Rows that are wrong in some workers: `wrong` tells by the number of the worker's thread."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.wrong: Callable[[int], bool] = lambda _: False

    def rows(self, ids: list[int], outputs: frozenset[Output]) -> dict[Output, Floats]:
        """Stand in for the fake engine's."""
        me = threading.current_thread()
        if me not in self.threads:
            self.threads.append(me)
        rows = {output: engine.fake_vectors(ids, output) for output in outputs}
        if self.wrong(self.threads.index(me)) and Output.DENSE in rows:
            rows[Output.DENSE] = rows[Output.DENSE] + np.float32(0.01)
        return rows


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    """Return what breaks engines."""
    found = Fault()
    monkeypatch.setattr(engine.FakeBackend, "_rows", lambda _, *asked: found.rows(*asked))
    yield found
    found.wrong = lambda _: False


def states(gateway: RunningGateway) -> list[State]:
    return gateway.gateway.service.models.default.engine.states


def logged(gateway: RunningGateway, event: str) -> list[dict[str, Any]]:
    return [line for line in gateway.log if line["event"] == event]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_was_pinned_passes(start_gateway: Start, pinned: Path) -> None:
    """The same model passes under another build and another name, and the metric has its cosine."""
    content = json.loads(pinned.read_bytes())
    assert len(content["texts"]) == len(set(TEXTS)) == 64
    assert {*content["texts"][0]["vectors"]} == {"dense", "sparse", "colbert"}
    gateway = start_gateway(**FAKE, engine_args=ALL, max_batch_size=7, canary_file=pinned)
    (line,) = logged(gateway, "canaries_passed")
    assert line["cosine"] == pytest.approx(1)
    assert 0 <= line["seconds"] < 60
    with gateway.client() as http:
        text = http.get("/metrics").text
        assert embed(http, input="w1").headers["x-vector-space"] == content["space"]
    metric = re.search(r'embedding_canary_cosine{model="fake",replica="0"} (.+)', text)
    assert metric is not None
    assert float(metric[1]) == pytest.approx(1)


@pytest.mark.parametrize(
    "change",
    [
        {"engine_args": {**ALL, "prompts": {"query": "w7 "}}},  # a prompt
        {"engine_args": {**ALL, "prompts": {"document": "w7 "}}},
        {"engine_args": ALL, "max_model_len": 20},  # a length at which texts are cut
        {"engine_args": ALL, "model_name": "e5", "aliases": {}},  # a family
    ],
)
def test_what_counts_into_the_space_fails(
    start_gateway: Start, pinned: Path, change: dict[str, Any]
) -> None:
    """A start at which no replica passes ends with status 4 and one line."""
    with pytest.raises(ModelNotLoaded, match="no replica passes") as caught:
        start_gateway(**{**FAKE, **change, "canary_file": pinned})
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_other_numbers_fail(start_gateway: Start, pinned: Path, fault: Fault) -> None:
    """Also those of the same space: a broken device has the right files."""
    fault.wrong = lambda _: True
    gateway = start_gateway(**FAKE, engine_args=ALL, canary_file=pinned, wait=False)
    gateway.wait_ended()
    assert isinstance(gateway.error, ModelNotLoaded)
    (line,) = logged(gateway, "examination_failed")
    assert line["cosine"] < line["threshold"] == 0.99999
    assert logged(gateway, "engine_died") == []


def test_the_other_replicas_serve_on(start_gateway: Start, pinned: Path, fault: Fault) -> None:
    """One that fails gets no request, and no restart."""
    fault.wrong = lambda worker: worker == 1
    gateway = start_gateway(**FAKE, engine_args=ALL, canary_file=pinned, replicas=3)
    assert states(gateway) == [State.READY, State.QUARANTINED, State.READY]
    right = engine.fake_vectors([0, 101, 1], Output.DENSE)[0]
    right /= np.linalg.norm(right)
    with gateway.client() as http:
        for _ in range(6):
            vector = embed(http, input="w1").json()["data"][0]["embedding"]
            np.testing.assert_allclose(vector, right, rtol=1e-5)
        assert http.get("/readyz").json()["models"]["fake"][1] == "quarantined"
        text = http.get("/metrics").text
    assert 'embedding_replicas{model="fake",state="quarantined"} 1.0' in text
    assert 'embedding_worker_restarts_total{model="fake",replica="1"} 0.0' in text


@pytest.mark.parametrize("cured", [True, False])
def test_a_ready_replica_is_examined_now_and_then(
    start_gateway: Start,
    pinned: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cured: bool,
) -> None:
    """One restart is tried; where it does not help the replica is quarantined, and comes back by
    itself when it passes again. Caches do not hide it, and nothing of it is a death.
    """
    monkeypatch.setattr(examination, "EVERY_S", 0.1)
    settings = {**FAKE, "engine_args": ALL, "canary_file": pinned, "cache_max_bytes": 1 << 20}
    gateway = start_gateway(**settings)
    replica = gateway.gateway.service.models.default.engine.replicas[0]
    with gateway.client() as http:
        for text in TEXTS[:3]:
            assert embed(http, input=text).status_code == 200
        fault.wrong = (lambda worker: worker == 0) if cured else (lambda _: True)
        expected = State.READY if cured else State.QUARANTINED
        wait_for(lambda: replica.generation == 2 and replica.state is expected)
        time.sleep(0.5)
        assert replica.generation == 2, "restarted again and again"
        assert embed(http, input="w9").status_code == (200 if cured else 503)
        if not cured:
            message = error_of(http.get("/readyz"), 503)["message"]
            assert message == "not ready; gateway: ready; fake: quarantined; try again shortly"
        fault.wrong = lambda _: False
        wait_for(lambda: replica.state is State.READY)
        assert embed(http, input="w9").status_code == 200
    assert replica.generation == 2
    assert logged(gateway, "engine_died") == []
    assert gateway.stop() == 0


def test_a_replica_that_is_busy_stays(
    start_gateway: Start, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canaries that find no time under load say nothing about its vectors."""
    monkeypatch.setattr(examination, "EVERY_S", 0.05)
    gateway = start_gateway(**FAKE, engine_args=ALL, canary_file=pinned)

    async def late(*_: object) -> None:
        raise DeadlineExceeded("the inputs waited for too long")

    monkeypatch.setattr(examiner, "vectors", late)
    wait_for(lambda: len(logged(gateway, "not_examined")) > 1)
    assert states(gateway) == [State.READY]
    assert gateway.gateway.service.models.default.engine.replicas[0].generation == 1


def test_files_that_change_while_it_serves(start_gateway: Start, tmp_path: Path) -> None:
    """A worker that has loaded other files than the first would answer in another space. Once all
    have, the process ends, so that its supervisor starts it with the new files.
    """
    (tmp_path / "model.safetensors").write_text("weights")
    gateway = start_gateway(**FAKE, model_path=str(tmp_path), replicas=2)
    (tmp_path / "model.safetensors").write_text("other weights")
    gateway.workers["fake", 0].kill()
    wait_for(lambda: states(gateway) == [State.QUARANTINED, State.READY])
    assert "files have changed" in logged(gateway, "examination_failed")[0]["reason"]
    with gateway.client() as http:
        assert embed(http, input="w1").status_code == 200
    time.sleep(2 * PULSE_S)
    assert gateway.error is None
    gateway.workers["fake", 1].kill()
    gateway.wait_ended()
    assert isinstance(gateway.error, NoModelLeft)
    assert "files of fake have changed" in str(gateway.error)


@pytest.mark.parametrize("kind", ["dense", "score"])
def test_an_optional_model_that_fails_is_not_served(
    start_gateway: Start, pinned: Path, kind: str
) -> None:
    """It is not listed, its requests are told why, and the others are served."""
    sound = {"model_name": "sound", "gpu_memory_utilization": 0.2}
    wrong = {**sound, "model_name": "wrong", "canary_file": pinned}
    wrong |= {"engine_args": {"outputs": [kind], "dimension": 16}}
    gateway = start_gateway(engine="fake", port=0, models=[sound, wrong])
    wait_for(lambda: bool(logged(gateway, "model_not_loaded")))
    model = gateway.gateway.service.models.get("wrong")
    assert model is not None
    wait_for(lambda: model.engine.dead)
    with gateway.client() as http:
        assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == ["sound"]
        path, body = "/v1/embeddings", {"input": "w1"}
        if kind == "score":
            path, body = "/v1/rerank", {"query": "w1", "documents": ["w2"]}
        failed = error_of(http.post(path, json={"model": "wrong", **body}), 503)
        assert "could not be loaded" in failed["message"]
        assert embed(http, model="sound", input="w1").status_code == 200


def test_a_worker_that_ends_over_it_did_not_load(
    start_gateway: Start, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that the canaries end is told of as one that ended while it loaded."""
    warm_up = iter([False, False])  # one text, then a full step
    rows = engine.FakeBackend._rows

    def rows_then_die(
        self: engine.FakeBackend, ids: list[int], outputs: frozenset[Output]
    ) -> dict[Output, Floats]:
        if len(ids) > 3 and Output.SPARSE in outputs and next(warm_up, True):
            raise RuntimeError("the device is gone")
        return rows(self, ids, outputs)

    monkeypatch.setattr(engine.FakeBackend, "_rows", rows_then_die)
    gateway = start_gateway(**FAKE, engine_args=ALL, canary_file=pinned, wait=False)
    gateway.wait_ended()
    assert isinstance(gateway.error, ModelNotLoaded)
    assert "ended while it was examined" in str(gateway.error)


def _changed(pinned: Path, path: Path, change: Callable[[Any], object]) -> Path:
    tree = json.loads(pinned.read_bytes())
    change(tree)
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(canaries=2), "format 2"),
        (lambda tree: tree.update(texts=[]), "no texts"),
        (lambda tree: tree["texts"][3].update(vectors={}), "without a vector"),
        (lambda tree: tree["texts"][0]["vectors"]["dense"].update(values="AAA="), "damaged"),
        (lambda tree: tree["texts"][0]["vectors"]["dense"].update(values="AADAfw=="), "damaged"),
        (lambda tree: tree["texts"][0].update(vectors=7), "not a file of canaries"),
        (lambda tree: tree.pop("space"), "not a file of canaries"),
    ],
)
def test_a_damaged_file_is_one_line(
    pinned: Path, tmp_path: Path, change: Callable[[Any], object], words: str
) -> None:
    """It names the file, and how to make another one."""
    path = _changed(pinned, tmp_path / "bad.json", change)
    with pytest.raises(BadConfiguration, match=words) as caught:
        canaries.read(path)
    assert str(caught.value).startswith(f"canary_file: {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not JSON", b"[]", b"\xff"])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, or something else."""
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadConfiguration, match="canary pin` writes one"):
        canaries.read(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine_args": {"outputs": ["dense"]}}, "and this model has none"),
        ({"engine_args": {"outputs": ["score"]}}, "scores pairs"),
    ],
)
def test_a_file_of_another_kind_of_model(
    start_gateway: Start, pinned: Path, options: dict[str, Any], words: str
) -> None:
    """It cannot be compared with at all, and ends the start with a line that says why."""
    with pytest.raises(ModelNotLoaded, match=words):
        start_gateway(**FAKE, **options, canary_file=pinned)


def test_a_file_of_another_dimension(start_gateway: Start, pinned: Path, tmp_path: Path) -> None:
    """So it is with vectors of another size."""

    def cut(tree: Any) -> None:
        for text in tree["texts"]:
            text["vectors"] = {"dense": {"values": "AACAPw=="}}

    path = _changed(pinned, tmp_path / "cut.json", cut)
    with pytest.raises(ModelNotLoaded, match="1 dimensions, and this model has 32"):
        start_gateway(**FAKE, engine_args=ALL, canary_file=path)


def test_cosines() -> None:
    """Of vectors, also sparse ones whose places differ, and of nothing with nothing."""
    one, other = Direction.of([3.0, 4.0]), Direction.of([6.0, 8.0])
    assert canaries.cosine(one, other) == pytest.approx(1)
    assert canaries.cosine(one, Direction.of([4.0, -3.0])) == pytest.approx(0)
    sparse = Direction.of([1.0, 1.0], [3, 9])
    assert canaries.cosine(sparse, Direction.of([2.0], [9])) == pytest.approx(2**-0.5)
    assert canaries.cosine(sparse, Direction.of([2.0], [8])) == 0
    nothing = Direction.of([], [])
    assert (canaries.cosine(nothing, nothing), canaries.cosine(nothing, sparse)) == (1, 0)


def test_thresholds_are_those_of_the_coarser_format() -> None:
    """Pinned in float32, a bfloat16 build passes at bfloat16's, and the other way round."""
    assert canaries.threshold("float32", "float32") == 0.99999
    assert canaries.threshold("float32", "bfloat16") == canaries.threshold("bfloat16") == 0.999
    assert canaries.threshold("float16", "float32") == 0.9999
    assert canaries.threshold("float32", "of tomorrow") == 0.999
