"""Batches as their users make them: files of lines, and what becomes of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(name: str, body: dict[str, Any] | None = None, url: str = EMBEDDINGS) -> dict[str, Any]:
    """Return a line that embeds one word, or does what `body` says."""
    body = body or {"model": "fake", "input": f"w1 {name}"}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def lines(count: int) -> list[dict[str, Any]]:
    """Return so many lines, each with an id of its own."""
    return [line(f"line-{number}") for number in range(count)]


def jsonl(entries: Iterable[Any]) -> bytes:
    """Return the content of a file."""
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def upload(http: httpx.Client, content: bytes) -> str:
    """Upload a file; return its id."""
    files, data = {"file": ("in.jsonl", content)}, {"purpose": "batch"}
    answer = http.post("/v1/files", files=files, data=data)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def start(http: httpx.Client, content: bytes, endpoint: str = EMBEDDINGS, **more: Any) -> str:
    """Make a batch of a file's content; return its id."""
    made = http.post(
        "/v1/batches",
        json={
            "input_file_id": upload(http, content),
            "endpoint": endpoint,
            "completion_window": "24h",
            **more,
        },
    )
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def state(http: httpx.Client, batch: str) -> dict[str, Any]:
    """Return a batch as it is."""
    answer = http.get(f"/v1/batches/{batch}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait(
    http: httpx.Client, batch: str, *statuses: str, done: int = 0, timeout_s: float = 60
) -> dict[str, Any]:
    """Return a batch once it has one of these statuses (else has ended), and so many lines."""
    until = time.monotonic() + timeout_s
    while True:
        found = state(http, batch)
        counts = found["request_counts"]
        settled = counts["completed"] + counts["failed"]
        if found["status"] in (statuses or ENDED) and settled >= done:
            return found
        assert found["status"] not in ENDED, found
        assert time.monotonic() < until, found
        time.sleep(0.05)


def results(http: httpx.Client, file_id: str | None) -> dict[str, dict[str, Any]]:
    """Return the lines of an output or error file by their ids, each of which is there once."""
    if file_id is None:
        return {}
    rows = map(json.loads, http.get(f"/v1/files/{file_id}/content").text.splitlines())
    found = list(rows)
    counts = Counter(row["custom_id"] for row in found)
    assert set(counts.values()) <= {1}, counts.most_common(3)
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        assert row.keys() == {"id", "custom_id", "response", "error"}
    return {row["custom_id"]: row for row in found}
