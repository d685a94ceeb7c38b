"""vLLM driven without the service's worker, in a process of its own: the tests of the model plugin.

`python -m tests.worker.direct JOB ANSWERS` reads the job as JSON and writes the answers as .npz.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch
    from vllm import LLMEngine

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300


Prompt = tuple[list[int], dict[str, Any]]  # token ids and the arguments of PoolingParams


@dataclass(frozen=True, slots=True)
class Batch:
    """The results: an array a prompt, and the arguments of the model and of our attention."""

    answers: list[npt.NDArray[np.float32]]
    calls: int
    tokens: int
    attended: int


def run(
    model: Path,
    batches: Sequence[Sequence[Prompt]],
    *,
    folder: Path,
    tensor_parallel_size: int = 1,
    **engine_args: Any,
) -> list[Batch]:
    """Send the batches through one engine, one after another, each prompt of a batch at once."""
    job, answers = folder / "job.json", folder / "answers.npz"
    settings = {"model": str(model), "tensor_parallel_size": tensor_parallel_size, **engine_args}
    job.write_text(json.dumps({"engine": settings, "batches": batches}))
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": cores if tensor_parallel_size == 1 else "0|1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "tests.worker.direct", str(job), str(answers)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"the engine process ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    with np.load(answers) as arrays:
        return [
            Batch(
                [arrays[f"{number}/{index}"] for index in range(len(batch))],
                *arrays[f"{number}/counts"].tolist(),
            )
            for number, batch in enumerate(batches)
        ]


def main(job_path: str, answers_path: str) -> None:
    """Serve one job: the child process."""
    from torch.nn.functional import scaled_dot_product_attention
    from vllm import EngineArgs, LLMEngine

    from embedding_service.families.models import plugin
    from embedding_service.worker import cpu_attention

    plugin.register()
    job = json.loads(Path(job_path).read_text())
    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.1,
        "max_num_seqs": 64,
    }
    engine = LLMEngine.from_engine_args(EngineArgs(**(defaults | job["engine"])))
    lengths: list[int] = []
    attended: list[int] = []

    def attend(queries: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        attended.append(queries.shape[0] * queries.shape[2])
        return scaled_dot_product_attention(queries, *arguments, **options)

    cpu_attention.scaled_dot_product_attention = attend
    if job["engine"]["tensor_parallel_size"] == 1:  # a hook cannot be sent to another process

        def count(_module: object, _args: object, kwargs: dict[str, Any], _output: object) -> None:
            lengths.append(len(kwargs["input_ids"]))

        engine.apply_model(lambda model: model.register_forward_hook(count, with_kwargs=True))
    results: dict[str, npt.NDArray[Any]] = {}
    for number, batch in enumerate(job["batches"]):
        lengths.clear()
        attended.clear()
        for index, answer in _serve(engine, batch).items():
            results[f"{number}/{index}"] = answer
        results[f"{number}/counts"] = np.array([len(lengths), sum(lengths), sum(attended)])
    np.savez(answers_path, allow_pickle=False, **results)


def _serve(engine: LLMEngine, batch: list[Prompt]) -> dict[int, npt.NDArray[np.float32]]:
    from vllm import PoolingParams, PoolingRequestOutput
    from vllm.inputs import TokensPrompt

    for index, (token_ids, params) in enumerate(batch):
        engine.add_request(
            str(index), TokensPrompt(prompt_token_ids=token_ids), PoolingParams(**params)
        )
    answers: dict[int, npt.NDArray[np.float32]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert isinstance(output, PoolingRequestOutput)
            answers[int(output.request_id)] = output.outputs.data.numpy()
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])
