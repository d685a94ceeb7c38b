"""The ceiling: vLLM's offline `LLM.embed` with the gateway's engine settings, on token ids, without
any server.

Reads one JSON job a line and answers each with a line: `{"embed": [[id …] …], "batch": texts a
call}` with `{"texts_per_s": …}`, and `{"rate": {what benchmarks.rates.measure takes, but the
dtype}}` with `{"flop_per_s": …}`: the matrix products run on the same threads as the model, in its
dtype.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import engine, rates

if TYPE_CHECKING:
    from vllm import LLM


def embed(llm: LLM, job: dict) -> float:
    """Return texts per second."""
    from vllm import PoolingParams

    prompts = [{"prompt_token_ids": ids} for ids in job["embed"]]
    began = time.perf_counter()
    for start in range(0, len(prompts), job["batch"]):
        batch = prompts[start : start + job["batch"]]
        llm.embed(batch, use_tqdm=False, pooling_params=PoolingParams(task="embed"))
    return len(prompts) / (time.perf_counter() - began)


def main() -> None:
    arguments = engine.arguments(Path(sys.argv[1]), one_process=True)
    from vllm import LLM

    llm = LLM(**arguments)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "rate" in job:
            answer = {"flop_per_s": rates.measure(dtype=arguments["dtype"], **job["rate"])}
        else:
            answer = {"texts_per_s": embed(llm, job)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
