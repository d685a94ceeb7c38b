"""The vectors as they should be: transformers in float32, text by text, in a process of its own.

python -m benchmarks.reference MODEL-FOLDER mean|cls|last < TEXTS.json > VECTORS.npy
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.texts import ROOT

if TYPE_CHECKING:
    from benchmarks.models import Model


def vectors(model: Model, texts: list[str]) -> np.ndarray:
    """Return the texts' vectors (texts, dimension), normalised."""
    command = [sys.executable, "-m", "benchmarks.reference", str(model.path), model.pooling]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(texts).encode(), stdout=subprocess.PIPE, check=True
    )
    return np.load(io.BytesIO(done.stdout))


def main() -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder, pooling = Path(sys.argv[1]), sys.argv[2]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows = []
    for text in json.load(sys.stdin):
        ids = torch.tensor([tokenizer.encode(text).ids], device=device)
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        row = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        rows.append(torch.nn.functional.normalize(row, dim=0).cpu().numpy())
    np.save(sys.stdout.buffer, np.stack(rows))


if __name__ == "__main__":
    main()
