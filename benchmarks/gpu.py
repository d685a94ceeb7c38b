"""Throughput on a GPU: the shapes of Qwen3-Embedding-0.6B and BGE-M3, random weights, through HTTP.

    python -m benchmarks.gpu [--out FOLDER] [any option of benchmarks.run]

One and two replicas of the gateway on one device, vLLM's server with the same engine settings,
`AsyncLLM` behind a minimal app, offline `LLM.embed`, and the measured matrix rate; texts of 50 and
of 512 tokens. Every server's vectors are first compared with transformers' in float32 on the same
device.
"""

from __future__ import annotations

import sys

from benchmarks import run

SERVERS = ["gateway", "gateway-2", "vllm", "async-llm"]
DEFAULTS = ["--servers", *SERVERS, "--device", "cuda", "--memory", "0.12"]
CELLS = ["1x1x50", "64x1x50", "64x1x512", "8x256x50", "8x64x512"]


def main() -> None:
    for model in ("qwen3-0.6b", "bge-m3"):
        run.main([*DEFAULTS, "--cells", *CELLS, "--model", model, *sys.argv[1:]])


if __name__ == "__main__":
    main()
