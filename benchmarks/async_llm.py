"""vLLM's `AsyncLLM` behind a minimal app: one engine process, requests batched together."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from benchmarks import engine, minimal

if TYPE_CHECKING:
    from vllm import PoolingRequestOutput


def main() -> None:
    arguments = engine.arguments(Path(sys.argv[1]))
    from vllm import PoolingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    tokenizer = Tokenizer.from_file(f"{arguments['model']}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    numbers = count()
    loaded: list[AsyncLLM] = []  # it has to be made inside the running loop

    async def one(ids: list[int]) -> PoolingRequestOutput:
        params = PoolingParams(task="embed")
        results = loaded[0].encode({"prompt_token_ids": ids}, params, str(next(numbers)))
        return [result async for result in results][-1]

    async def embed(texts: list[str]) -> list[PoolingRequestOutput]:
        if not loaded:
            loaded.append(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)))
        encodings = await asyncio.to_thread(tokenizer.encode_batch, texts)
        return await asyncio.gather(*(one(encoding.ids) for encoding in encodings))

    minimal.serve(embed, port=int(sys.argv[2]))


if __name__ == "__main__":  # its engine process imports this file again
    main()
