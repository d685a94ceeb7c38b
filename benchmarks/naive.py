"""FastAPI and `LLM.embed` in one process, as one writes it first: each request computed alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import engine, minimal

if TYPE_CHECKING:
    from vllm import EmbeddingRequestOutput


def main() -> None:
    arguments = engine.arguments(Path(sys.argv[1]), one_process=True)
    from vllm import LLM

    llm = LLM(**arguments)

    async def embed(texts: list[str]) -> list[EmbeddingRequestOutput]:
        return llm.embed(texts, use_tqdm=False)  # blocks the loop: `LLM` is not thread-safe

    minimal.serve(embed, port=int(sys.argv[2]))


if __name__ == "__main__":
    main()
