"""Compare a running server with the references that `build` left.

Only numpy and the standard library, so that it runs beside any server.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Found = tuple[bool, str]  # whether it is right, and what was found
    Told = dict[str, Any]

SPARSE_BAR = 1e-4
SCORE_BAR = 1e-3
UNIT_BAR = 1e-3  # of lengths, in which vectors are normalised


class Server:
    """One model of a server."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model

    def post(self, path: str, **body: Any) -> tuple[int, Told]:
        """Return status and answer; `ignored` in it are the fields that it says it ignored."""
        data = json.dumps({"model": self.model, **body}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                ignored = (answer.headers.get("x-ignored-fields") or "").replace(" ", "")
                return answer.status, {**json.load(answer), "ignored": ignored.split(",")}
        except urllib.error.HTTPError as error:
            return error.code, {"error": reason(error.read())}

    def card(self) -> Told:
        """Return what the server's list says of the model."""
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=20) as answer:
                models = json.load(answer)["data"]
        except OSError:
            return {}
        return next((model for model in models if model["id"] == self.model), {})


def reason(body: bytes) -> str:
    """Return an error's message, whatever its shape is."""
    try:
        data = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    error = data.get("error", data) if isinstance(data, dict) else data
    return str(error.get("message", error) if isinstance(error, dict) else error)


def failed(status: int, answer: Told) -> Found:
    """Return what an error is."""
    return False, f"HTTP {status}: {answer['error'][:160]}"


# --- vectors ---


def embed_case(server: Server, data: Told, case: Told) -> Found:
    """Compare a request's vectors by cosine, and by length where nothing normalises them."""
    status, answer = embeddings(server, data, case)
    if status != 200:
        return failed(status, answer)
    ours = np.array([row["embedding"] for row in answer["data"]])
    theirs = np.array(case["vectors"])
    if ours.shape != theirs.shape:
        return False, f"shape {ours.shape[1:]} for {theirs.shape[1:]}"
    found = [near(ours, theirs, data["tolerance"])]
    if "input_type" in case["request"]:  # one that changes nothing is named, one that does is not
        named = "input_type" in answer["ignored"]
        note = "named in x-ignored-fields" if named else ""
        found.append((named == bool(case.get("ignored")), note))
    if case.get("exact"):
        found.append(lengths(ours, theirs, data["tolerance"]))
    return all(good for good, _ in found), ", ".join(note for _, note in found if note)


def embeddings(server: Server, data: Told, case: Told) -> tuple[int, Told]:
    """Ask for a case's vectors, and again with a cut, as sentence-transformers cuts in silence."""
    body = {"input": [data["long"]] if case.get("long") else data["texts"], **case["request"]}
    status, answer = server.post("embeddings", **body)
    too_long = status == 400 and "maximum context length" in answer["error"]
    if too_long and "truncate" not in body:
        return server.post("embeddings", truncate=data.get("side", "right"), **body)
    return status, answer


def near(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Found:
    """Compare directions."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(1) / np.maximum(norms, 1e-30)
    off = int((cosines < tolerance).sum())
    where = f" at text {int(cosines.argmin())}, {off}/{len(cosines)} differ" if off else ""
    return not off, f"cos {cosines.min():.6f}{where}"


def lengths(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Found:
    """Compare lengths, unless the reference's are 1 by its own Normalize."""
    right = np.linalg.norm(theirs, axis=1)
    ratio = np.linalg.norm(ours, axis=1) / np.maximum(right, 1e-30)
    unit = bool(np.abs(right - 1).max() < UNIT_BAR)
    close = bool(np.abs(ratio - 1).max() < max(UNIT_BAR, 10 * (1 - tolerance)))
    note = f"length ratio {ratio.min():.4f}..{ratio.max():.4f}"
    return unit or close, note + (" (reference: unit, by its Normalize)" if unit else "")


def sparse_case(server: Server, data: Told, case: Told) -> Found:
    """Compare weights by token id."""
    status, answer = server.post("embeddings", input=data["texts"], **case["request"])
    if status != 200:
        return failed(status, answer)
    worst, keys = 0.0, 0
    for item, theirs in zip(answer["data"], case["weights"], strict=True):
        ours = item["sparse_embedding"]
        keys += len(ours.keys() ^ theirs.keys())
        for key in ours.keys() | theirs.keys():
            worst = max(worst, abs(ours.get(key, 0) - theirs.get(key, 0)))
    return worst < SPARSE_BAR, f"largest difference {worst:.2e}, keys that differ {keys}"


# --- scores ---


def rerank_cases(server: Server, data: Told) -> Iterator[tuple[str, Found]]:
    """Compare logits, sigmoids and the order."""
    logits = np.array(data["logits"], float)
    if logits.shape[1] != 1:
        yield "raw_scores", (False, f"{logits.shape[1]} labels in the reference")
        return
    logits = logits[:, 0]
    sigmoids = 1 / (1 + np.exp(-logits))
    yield "raw_scores", scored(server, data, logits, raw_scores=True)
    yield "sigmoid", scored(server, data, sigmoids)
    if isinstance(data.get("cross_encoder"), list):
        note = likeness(data["cross_encoder"], logits, sigmoids)
        yield "CrossEncoder.predict gives", (True, note)
    yield "order", ordered(server, data, logits)


def scored(server: Server, data: Told, right: np.ndarray, **more: Any) -> Found:
    """Compare the scores of all pairs."""
    pairs = [{"query": query, "document": document} for query, document in data["pairs"]]
    status, answer = server.post("rerank", pairs=pairs, **more)
    if status != 200:
        return failed(status, answer)
    off = np.abs(np.array([row["relevance_score"] for row in answer["results"]], float) - right)
    where = f"at pair {int(off.argmax())} of {right.min():.2f}..{right.max():.2f}"
    return bool(off.max() < SCORE_BAR), f"largest difference {off.max():.2e} {where}"


def ordered(server: Server, data: Told, logits: np.ndarray) -> Found:
    """Compare the order of the first three documents, which have one query."""
    documents = [document for _, document in data["pairs"][:3]]
    status, answer = server.post("rerank", query=data["pairs"][0][0], documents=documents)
    if status != 200:
        return failed(status, answer)
    order = [row["index"] for row in answer["results"]]
    right = np.argsort(-logits[:3], kind="stable").tolist()
    return order == right, f"{order} for {right}"


def likeness(predicted: list[float], logits: np.ndarray, sigmoids: np.ndarray) -> str:
    """Say which of the two CrossEncoder.predict gives by default."""
    theirs = np.array(predicted, float).reshape(-1)
    both = {"raw_scores": logits, "sigmoid": sigmoids}
    which = [name for name, own in both.items() if np.abs(own - theirs).max() < SCORE_BAR]
    return ", ".join(which) or f"neither: {theirs[:3].tolist()}"


# --- what only has to answer, or must not ---


def positions(server: Server) -> Iterator[tuple[str, Found]]:
    """Send texts longer than the positions: a 400 or a cut, and the model answers afterwards."""
    for words, allowed in ((100, (200,)), (600, (200, 400)), (20, (200,))):
        status, answer = server.post("embeddings", input="the " * words)
        yield (
            f"{words} words",
            (status in allowed, f"HTTP {status} {answer.get('error', '')[:120]}"),
        )


def unserved(server: Server, data: Told) -> Iterator[tuple[str, Found]]:
    """Expect errors: whatever it serves is not what the checkpoint was made for."""
    for path, body in (
        ("embeddings", {"input": data["texts"][:2]}),
        ("rerank", {"query": "a", "documents": ["b", "c"]}),
    ):
        status, answer = server.post(path, **body)
        yield (
            f"serves /v1/{path}",
            (status != 200, f"HTTP {status} {answer.get('error', '')[:160]}"),
        )


def cases(server: Server, data: Told) -> Iterator[tuple[str, Found]]:
    """Yield each case's name, whether it is right, and what was found."""
    if "logits" in data:
        yield from rerank_cases(server, data)
    elif data["kind"] == "positions":
        yield from positions(server)
    elif not data["cases"]:
        yield from unserved(server, data)
    for case in data["cases"]:
        compare_case = sparse_case if "weights" in case else embed_case
        yield case["name"], compare_case(server, data, case)


def compare(url: str, data: Told) -> Told:
    """Return a row's verdict, its cases, and what the server says of the model."""
    server = Server(url, data["hub"])
    found = dict(cases(server, data))
    card = server.card()
    shown = ("dimension", "max_model_len", "outputs", "prompt_names", "matryoshka")
    return {
        "name": data["name"],
        "hub": data["hub"],
        "may_refuse": data["may_refuse"],
        "verdict": "RIGHT" if all(good for good, _ in found.values()) else "WRONG",
        "cases": {name: ("ok " if good else "OFF ") + note for name, (good, note) in found.items()},
        "card": {key: card.get(key) for key in shown},
        "max_seq_length": data.get("max_seq_length"),
    }


def read(out: Path, names: list[str]) -> list[Told]:
    """Return references that `build` left, all without names."""
    suffix = ".reference.json"
    found = names or sorted(path.name.removesuffix(suffix) for path in out.glob(f"*{suffix}"))
    missing = [name for name in found if not (out / f"{name}{suffix}").exists()]
    if missing or not found:
        raise SystemExit(f"not built into {out}: {', '.join(missing) or 'any row'}")
    return [json.loads((out / f"{name}{suffix}").read_text()) for name in found]


def compare_all(url: str, out: Path, names: list[str]) -> Iterator[Told]:
    """Yield the result of each row, all without names."""
    for data in read(out, names):
        yield compare(url, data)
