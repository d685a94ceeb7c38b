"""The ceiling: vLLM's offline `LLM.embed` with the worker's settings, driven over standard input.

Reads JSON lines `{"prompts": [[token ids …] …], "batch": texts a call, "seconds": s}`, answers each with
`{"texts_per_s": …}`.
"""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    from embedding_service.configuration import load
    from embedding_service.engine.process import environment

    options = load(Path(sys.argv[1]))[0].served_models[0]
    os.environ.update(environment(options, replica=0))
    from vllm import LLM, PoolingParams

    from embedding_service.engine.location import resolve_model
    from embedding_service.engine.vllm_compat import engine_arguments

    args = engine_arguments(resolve_model(options), options, "cpu")
    names = ("dtype", "enforce_eager", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")
    arguments = {name: getattr(args, name) for name in names}
    llm = LLM(model=args.model, runner="pooling", enable_prefix_caching=False, disable_log_stats=True, **arguments)
    print(json.dumps({"ready": arguments}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        done, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < job["seconds"]:
            batch = [prompts[(done + i) % len(prompts)] for i in range(job["batch"])]
            llm.embed(batch, use_tqdm=False, pooling_params=PoolingParams(task="embed"))
            done += len(batch)
        print(json.dumps({"texts_per_s": done / seconds}), flush=True)


if __name__ == "__main__":
    main()
