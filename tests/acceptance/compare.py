"""Compare a running server with the references that `build` left: cosines, lengths, sparse weights, scores.

    python -m tests.acceptance compare BASE_URL OUT [NAME ...]  # the server knows NAME by its hub name

Only numpy and the standard library. One JSON line per family: {"name", "verdict", "cases": {case: what was found}}.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def post(url: str, body: dict) -> tuple[int, dict]:
    """Return status and answer; `ignored` in it are the fields that the server says it ignored."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            ignored = (answer.headers.get("x-ignored-fields") or "").replace(" ", "")
            return answer.status, {**json.loads(answer.read()), "ignored": ignored.split(",")}
    except urllib.error.HTTPError as error:
        text = error.read()
        try:
            data = json.loads(text)
            return error.code, {"error": data.get("error", data)}
        except ValueError:
            return error.code, {"error": text.decode()[:300]}


def cosine(a, b) -> np.ndarray:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return np.full(len(a), -2.0)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)


def embed_case(url, model, data, case) -> tuple[bool, str]:
    texts = [data["long"]] if case.get("long") else data["texts"]
    status, answer = post(
        f"{url}/v1/embeddings", {"model": model, "input": texts, **case["request"]}
    )
    refused = (
        status == 400
        and "maximum context length" in str(answer)
        and "truncate" not in case["request"]
    )
    if refused:  # sentence-transformers cuts in silence
        status, answer = post(
            f"{url}/v1/embeddings",
            {
                "model": model,
                "input": texts,
                "truncate": data.get("side", "right"),
                **case["request"],
            },
        )
    if status != 200:
        return False, f"HTTP {status}: {str(answer['error'].get('message', answer['error']))[:160]}"
    ours, theirs = np.array([d["embedding"] for d in answer["data"]]), np.array(case["vectors"])
    if ours.shape != theirs.shape:
        return False, f"shape {ours.shape[1:]} for {theirs.shape[1:]}"
    near = cosine(ours, theirs)
    worst = int(near.argmin())
    note = f"cos {near.min():.6f}" + (
        ""
        if near.min() >= data["tolerance"]
        else f" at text {worst}, {int((near < data['tolerance']).sum())}/{len(near)} differ"
    )
    good = near.min() >= data["tolerance"]
    if (
        "input_type" in case["request"]
    ):  # a type that changes nothing is named, one that does is not
        said = "input_type" in answer["ignored"]
        good = good and said == bool(case.get("ignored"))
        note += ", named in x-ignored-fields" if said else ""
    note += " (over-long ones refused, then cut)" if refused else ""
    if case.get("exact"):
        lengths = np.linalg.norm(ours, axis=1) / np.maximum(np.linalg.norm(theirs, axis=1), 1e-30)
        off = np.abs(lengths - 1).max()
        note += f", length ratio {lengths.min():.4f}..{lengths.max():.4f}"
        unit = abs(np.linalg.norm(theirs, axis=1) - 1).max() < 1e-3
        note += " (reference: unit, by its Normalize)" if unit else ""
        good = good and (
            unit or off < max(1e-3, 10 * (1 - data["tolerance"]))
        )  # where nothing normalises, lengths count
    elif case["request"].get("normalize") is not False:
        unit = abs(np.linalg.norm(theirs, axis=1) - 1).max() < 1e-3
        note += "" if unit else " (reference not unit)"
    return bool(good), note


def sparse_case(url, model, data, case) -> tuple[bool, str]:
    status, answer = post(
        f"{url}/v1/embeddings", {"model": model, "input": data["texts"], **case["request"]}
    )
    if status != 200:
        return False, f"HTTP {status}: {str(answer['error'].get('message', answer['error']))[:160]}"
    worst, keys = 0.0, 0
    for item, theirs in zip(answer["data"], case["weights"], strict=True):
        ours = item["sparse_embedding"]
        keys += len(set(ours) ^ set(theirs))
        worst = max(
            [worst, *(abs(ours.get(k, 0) - theirs.get(k, 0)) for k in set(ours) | set(theirs))]
        )
    return worst < 1e-4, f"largest difference {worst:.2e}, keys that differ {keys}"


def rerank_cases(url, model, data) -> dict:
    pairs = [{"query": q, "document": d} for q, d in data["pairs"]]
    out = {}
    logits = np.array(data["logits"], float)
    status, answer = post(f"{url}/v1/rerank", {"model": model, "pairs": pairs, "raw_scores": True})
    if status != 200:
        return {
            "raw_scores": (
                False,
                f"HTTP {status}: {str(answer['error'].get('message', answer['error']))[:160]}",
            )
        }
    ours = np.array([r["relevance_score"] for r in answer["results"]], float)
    if logits.shape[1] != 1:
        return {
            "raw_scores": (
                False,
                f"{logits.shape[1]} labels in the reference, the gateway answered {ours.tolist()[:4]}",
            )
        }
    off = np.abs(ours - logits[:, 0])
    out["raw_scores"] = (
        bool(off.max() < 1e-3),
        f"largest difference {off.max():.2e} over logits {logits.min():.2f}..{logits.max():.2f}, at pair {int(off.argmax())}",
    )
    status, answer = post(f"{url}/v1/rerank", {"model": model, "pairs": pairs})
    ours = np.array([r["relevance_score"] for r in answer["results"]], float)
    off = np.abs(ours - 1 / (1 + np.exp(-logits[:, 0])))
    out["sigmoid"] = (bool(off.max() < 1e-3), f"largest difference {off.max():.2e}")
    if isinstance(data.get("cross_encoder"), list):
        theirs = np.array(data["cross_encoder"], float).reshape(-1)
        which = [
            n
            for n, v in (("raw_scores", logits[:, 0]), ("sigmoid", 1 / (1 + np.exp(-logits[:, 0]))))
            if np.abs(v - theirs).max() < 1e-3
        ]
        out["CrossEncoder.predict gives"] = (
            True,
            ", ".join(which) or f"neither: {theirs[:3].tolist()}",
        )
    documents = [d for _, d in data["pairs"][:3]]
    status, answer = post(
        f"{url}/v1/rerank", {"model": model, "query": data["pairs"][0][0], "documents": documents}
    )
    if status == 200:
        order = [r["index"] for r in answer["results"]]
        out["order"] = (order == np.argsort(-logits[:3, 0], kind="stable").tolist(), str(order))
    return out


def compare(url: str, data: dict) -> dict:
    model = data["hub"]
    cases = {}
    if "logits" in data:
        cases = rerank_cases(url, model, data)
    elif data["kind"] == "positions":  # sentence_bert_config.json promises more than the model has
        for n in (100, 600, 20):
            status, answer = post(f"{url}/v1/embeddings", {"model": model, "input": "the " * n})
            cases[f"{n} words"] = (
                status in ((200,) if n < 500 else (200, 400)),
                f"HTTP {status} {str(answer.get('error', ''))[:120]}",
            )
    else:
        for case in data["cases"]:
            cases[case["name"]] = (
                sparse_case(url, model, data, case)
                if "weights" in case
                else embed_case(url, model, data, case)
            )
        if not data[
            "cases"
        ]:  # nothing to compare with: whatever it serves is not what it was made for
            status, answer = post(
                f"{url}/v1/embeddings", {"model": model, "input": data["texts"][:2]}
            )
            cases["serves /v1/embeddings"] = (
                status != 200,
                f"HTTP {status} "
                + (
                    f"{len(answer['data'][0]['embedding'])} numbers"
                    if status == 200
                    else str(answer["error"])[:160]
                ),
            )
            status, answer = post(
                f"{url}/v1/rerank", {"model": model, "query": "a", "documents": ["b", "c"]}
            )
            cases["serves /v1/rerank"] = (
                status != 200,
                f"HTTP {status} " + str(answer.get("results", answer.get("error")))[:160],
            )
    verdict = "RIGHT" if all(good for good, _ in cases.values()) else "WRONG"
    card = {}
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=20) as answer:
            card = next((m for m in json.loads(answer.read())["data"] if m["id"] == model), {})
    except OSError:
        pass
    facts = {
        k: card.get(k)
        for k in ("dimension", "max_model_len", "outputs", "prompt_names", "matryoshka")
    }
    return {
        "name": data["name"],
        "hub": model,
        "may_refuse": data["may_refuse"],
        "verdict": verdict,
        "cases": {k: ("ok " if g else "OFF ") + n for k, (g, n) in cases.items()},
        "card": facts,
        "max_seq_length": data.get("max_seq_length"),
    }


def main(base: str, out: Path, names: list[str]) -> bool:
    """Compare families, all without names; tell whether all are right."""
    found = names or sorted(
        p.name.removesuffix(".reference.json") for p in out.glob("*.reference.json")
    )
    right = True
    for name in found:
        data = json.loads((out / f"{name}.reference.json").read_text())
        result = compare(base.rstrip("/").removesuffix("/v1"), data)
        right = right and result["verdict"] == "RIGHT"
        print(json.dumps(result, ensure_ascii=False), flush=True)
    return right
