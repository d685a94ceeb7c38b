"""The smallest /v1/embeddings there can be: what `naive` and `async_llm` put around vLLM."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def serve(embed: Callable[[list[str]], Awaitable[list[Any]]], *, port: int) -> None:
    """Answer until the process ends; `embed` returns vLLM's pooling results."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> JSONResponse:
        body = await request.json()
        results = await embed(body["input"])
        vectors = [
            result.outputs.embedding
            if hasattr(result.outputs, "embedding")
            else result.outputs.data.tolist()
            for result in results
        ]
        if body.get("encoding_format") == "base64":
            vectors = [
                base64.b64encode(np.asarray(vector, np.float32).tobytes()).decode()
                for vector in vectors
            ]
        data = [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(vectors)
        ]
        tokens = sum(len(result.prompt_token_ids) for result in results)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse(
            {"object": "list", "model": body["model"], "data": data, "usage": usage}
        )

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    os._exit(0)  # vLLM's atexit hooks can hang
