"""OpenVINO and onnxruntime as they are: their virtual environment, and the model exported for them.

    python -m benchmarks.runtimes FOLDER mean|cls ONNX-FILE

writes a checkpoint as ONNX: token ids and attention mask (texts, tokens) to normalised vectors
(texts, dimension). Torch and transformers are the project's, onnx is of the environment.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.models import SCRATCH
from benchmarks.texts import ROOT

if TYPE_CHECKING:
    from benchmarks.models import Model

NAMES = ("openvino", "onnxruntime")
VENV = SCRATCH / "runtimes"
PYTHON = VENV / "bin" / "python"


def command(name: str, model: Model, dtype: str) -> list[str]:
    """Return the program that runs a model in a runtime; what it needs is made once (3 minutes).

    Raises `CalledProcessError`.
    """
    _install()
    path = SCRATCH / "onnx" / f"{model.name}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        export = ["-m", "benchmarks.runtimes", str(model.path), model.pooling, str(unfinished)]
        subprocess.run([sys.executable, *export], cwd=ROOT, check=True, stdout=sys.stderr)
        unfinished.rename(path)
    return [str(PYTHON), "-m", "benchmarks.raw", name, str(path), dtype]


def _install() -> None:
    if (VENV / "complete").exists():
        return
    print("installing OpenVINO and onnxruntime into .bench/runtimes", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    pip = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    requirements = str(Path(__file__).with_name("runtimes-requirements.txt"))
    subprocess.run([*pip, "-r", requirements], check=True)
    (VENV / "complete").touch()


def main() -> None:
    folder, pooling, path = sys.argv[1:]
    sys.path += map(str, VENV.glob("lib/python*/site-packages"))  # behind the project's own
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.model(input_ids, attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weights).sum(1) / weights.sum(1)
            rows = {"mean": mean, "cls": states[:, 0]}[pooling]
            return torch.nn.functional.normalize(rows, dim=1)

    ids = torch.ones(2, 50, dtype=torch.long)
    sizes = {0: torch.export.Dim("texts", max=1024), 1: torch.export.Dim("tokens", max=512)}
    torch.onnx.export(
        Embedder(),
        (ids, torch.ones_like(ids)),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["vectors"],
        dynamic_shapes=(sizes, sizes),
        external_data=False,
    )


if __name__ == "__main__":
    main()
