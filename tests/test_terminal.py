"""The start on a terminal: a line for each stage, a bar for downloads, and what to do next."""

from __future__ import annotations

import re
from typing import Any

import pytest
import structlog

from embedding_service.telemetry import _Seldom
from embedding_service.terminal import Story, bar

UP = "\x1b[1A\x1b[2K"
ANSI = re.compile(r"\x1b\[\d*[a-zA-Z]")


@pytest.fixture
def story() -> Story:
    """Return a renderer that writes other events as their names."""
    return Story(lambda _, __, event: f"<{event['event']}>", "9.9")


def told(story: Story, event: str, level: str = "info", **facts: Any) -> str:
    line: str = story(None, level, {"event": event, "level": level, **facts})
    return line


def plain(line: str) -> str:
    return ANSI.sub("", line)


def test_a_start_reads_as_a_story(story: Story) -> None:
    """Each event is a line with its facts and its time."""
    assert plain(told(story, "listening", address="127.0.0.1:1")) == (
        "embedding-service 9.9 listens on 127.0.0.1:1"
    )
    assert plain(told(story, "loading", model="m", replicas=2)) == "\nm, 2 replicas"
    stage = told(
        story,
        "engine_stage",
        stage="warm-up",
        seconds=1.25,
        detail="cache",
        memory_bytes=2_000_000_000,
        device_memory_bytes=3_000_000_000,
    )
    assert re.fullmatch(
        r"  ✓ warm-up +1.2 s   cache, 2,000 MB of memory, 3.0 GB of the device", plain(stage)
    )
    loaded = told(
        story,
        "loaded",
        outputs="dense,sparse",
        dimension=4,
        max_tokens=8192,
        dtype="bfloat16",
        device="cuda",
        seconds=3.0,
    )
    assert plain(loaded).endswith(
        "bfloat16 on cuda, up to 8,192 tokens, 4 dimensions, dense, sparse"
    )
    ready = plain(
        told(story, "ready", seconds=4.0, url="http://h", curl="curl x", docs="http://h/docs")
    )
    assert ready.index("Ready after 4.0 s") < ready.index("http://h/docs") < ready.index("curl x")


def test_lines_about_waiting_are_written_over(story: Story) -> None:
    """A bar moves in its place, and never over a line that should stay."""
    download = {"detail": "…", "done_bytes": 5_000_000, "total_bytes": 10_000_000}
    first, second = (told(story, "engine_progress", **download) for _ in range(2))
    assert not first.startswith(UP)
    assert second.startswith(UP)
    assert " 50%  5 of 10 MB" in second
    assert told(story, "engine_stage", stage="model files", seconds=1.0).startswith(UP)
    assert not told(story, "still_loading", waiting_for="warm-up", seconds=10).startswith(UP)
    assert told(story, "still_loading", waiting_for="warm-up", seconds=20).startswith(UP)
    told(story, "another")
    assert not told(story, "engine_progress", **download).startswith(UP)


def test_a_bar_stays_while_there_is_one(story: Story) -> None:
    """A download of a minute is a bar from its beginning to its end, and says nothing besides."""
    told(story, "engine_progress", detail="…", done_bytes=5_000_000, total_bytes=10_000_000)
    with pytest.raises(structlog.DropEvent):
        told(story, "still_loading", waiting_for="model files", seconds=10)
    assert plain(told(story, "engine_stage", stage="model files", seconds=1.0)).endswith(" 1.0 s")


def test_other_events_are_as_they_were(story: Story) -> None:
    """Warnings and errors are not a story's, but for sentences about the settings."""
    assert told(story, "redis_left_alone", level="warning") == "<redis_left_alone>"
    for event in ("environment", "no_api_key"):
        assert plain(told(story, event, level="warning", detail="X is not read")) == (
            "Note: X is not read"
        )
    assert told(story, "loaded", level="error") == "<loaded>"
    assert plain(told(story, "engine_progress", detail="using the cache")) == "    using the cache"


REQUEST: dict[str, Any] = {
    "timestamp": "2026-01-02T03:04:05Z",
    "method": "POST",
    "path": "/v1/embeddings",
    "status": 200,
    "seconds": 0.0123,
    "client": "127.0.0.1",
    "id": "abc",
}


def test_a_request_is_a_short_line(story: Story) -> None:
    """A request has its time, status, path and facts; an error has the id to look for, too."""
    line = plain(told(story, "request", **REQUEST, texts=4))
    assert re.fullmatch(r"\d\d:\d\d:05  200  POST /v1/embeddings  12 ms, texts 4", line)
    assert plain(told(story, "request", **REQUEST | {"status": 503})).endswith("12 ms, id abc")


def test_a_client_cannot_write_to_the_terminal(story: Story) -> None:
    """Characters that a terminal would obey are escaped, in a path as in a name."""
    line = told(story, "request", **REQUEST | {"path": "/\x1b[2J"}, model="a\nb")
    assert "\x1b[2J" not in line
    assert "\n" not in line
    assert r"'/\x1b[2J'" in line


def test_the_end_is_told(story: Story) -> None:
    """A stop says how many requests it waits for."""
    assert told(story, "draining", in_flight=2) == "\nStopping; 2 requests are answered first"
    assert told(story, "draining", in_flight=0) == "\nStopping"
    assert told(story, "stopped") == "Stopped"


@pytest.mark.parametrize(("done", "total"), [(0, 0), (0, 10), (20, 10)])
def test_a_bar_never_breaks(done: int, total: int) -> None:
    """A model of unknown size, and one of which more lay there, have a bar."""
    assert re.match(r"[█░]+ +\d+%", bar(done, total))


def test_a_log_has_fewer_lines_about_a_download() -> None:
    """Elsewhere than on a terminal, a download is told of every ten seconds; all else always."""
    seldom = _Seldom()
    assert seldom(None, "info", {"total_bytes": 1})
    with pytest.raises(structlog.DropEvent):
        seldom(None, "info", {"total_bytes": 1})
    assert seldom(None, "info", {"event": "ready"}) == {"event": "ready"}
