"""Run by test_litellm.py in a process of its own: LiteLLM leaves a loop and sockets open."""

from __future__ import annotations

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network for prices

import litellm


def main(url: str, key: str, texts: list[str]) -> None:
    """Print, as JSON, what LiteLLM made of each answer."""
    v1 = {"api_base": f"{url}/v1", "input": texts, "num_retries": 0}
    found: dict[str, object] = {}
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.embedding(
            model=f"{provider}/m3", api_key=key, encoding_format="float", **v1
        )
        found[provider] = [[item["embedding"] for item in answer.data], answer.usage.prompt_tokens]
    for provider, path in (
        ("hosted_vllm", ""),
        ("cohere", "/v2/rerank"),
        ("jina_ai", "/v1/rerank"),
    ):
        ask = {
            "query": "w1",
            "documents": texts,
            "top_n": 2,
            "api_base": url + path,
            "api_key": key,
        }
        answer = litellm.rerank(model=f"{provider}/cross", **ask)
        found[f"{provider}/rerank"] = [
            [result["index"], result["relevance_score"]] for result in answer.results
        ]
    for model, sent in (("nobody", key), ("m3", "wrong")):
        try:
            litellm.embedding(model=f"openai/{model}", api_key=sent, **v1)
        except (litellm.NotFoundError, litellm.AuthenticationError) as error:
            found[f"{model}, {'right' if sent == key else 'wrong'} key"] = type(error).__name__
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
