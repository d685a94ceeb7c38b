"""Random module files on one BERT: what we compute from them, and what sentence-transformers does.

`python -m tests.worker.recipes SEED COUNT` writes one JSON line for each checkpoint: its recipe,
and the least cosine and the largest relative difference of lengths over all texts and prompts, or
why it was refused. The transformer is transformers' own on both sides: all else is ours, from the
files to the vector.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertModel

from embedding_service.families import plan
from embedding_service.families.checkpoint import ModelRefused
from embedding_service.families.models.sentence_pooler import SentencePooler
from embedding_service.families.recipe import ACTIVATIONS, MODES
from embedding_service.service.prompts import Encoder
from embedding_service.service.vectors import shape_dense
from embedding_service.settings.model import ModelOptions
from embedding_service.types import EmbedJob, Truncate
from embedding_service.worker.fake import FakeBackend
from embedding_service.worker.tokens import lower_case
from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import BERT
from tests.acceptance.steps import ST, H, dump, listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.types import Floats

TEXTS = [
    "Hello, world",
    "HELLO World, Mixed CASE Text; NASA and IBM met in New York.",
    "a",
    "café naïve Быстрая лиса 敏捷的",
    " ".join(f"word{i} the fox" for i in range(30)),
]
PROMPTS = {"query": "query: ", "document": "Passage, TITLE none: ", "empty": ""}
# Not in the files that we know, and sentence-transformers does not stumble over them.
STRANGERS = (
    ("1_Pooling/config.json", {"pooling_mode_median_tokens": True}),
    ("sentence_bert_config.json", {"query_length": 8}),
    ("config_sentence_transformers.json", {"query_prefix": "[Q] "}),
)


def transformer(folder: Path) -> None:
    """Write a cased BERT and its tokenizer."""
    torch.manual_seed(7)
    BERT.but(tok=toks.bert(lower=False))(folder)


class Files:
    """Random module files."""

    def __init__(self, folder: Path, source: random.Random) -> None:
        self.folder = folder
        self.source = source
        self.modules = [("", ST + "Transformer"), ("1_Pooling", ST + "Pooling")]

    def write(self) -> dict[str, Any]:
        """Write them all; return what is in them."""
        source = self.source
        modes = source.sample(sorted(MODES), source.choice([1, 1, 1, 2, 3]))
        pooling = {
            "embedding_dimension": H,
            "pooling_mode": modes,
            "include_prompt": source.random() < 0.6,
        }
        dump(self.folder / "1_Pooling/config.json", pooling)
        width = H * len(modes)
        for _ in range(source.choice([0, 0, 1, 2, 3])):
            width = self._step(width)
        dump(self.folder / "modules.json", listed(*self.modules))
        told = {
            "max_seq_length": source.choice([24, 64, 512]),
            "do_lower_case": source.random() < 0.4,
        }
        dump(self.folder / "sentence_bert_config.json", told)
        main: dict[str, Any] = {
            "prompts": PROMPTS,
            "default_prompt_name": source.choice([None, "query"]),
        }
        if source.random() < 0.2:
            main["truncate_dim"] = 24
        dump(self.folder / "config_sentence_transformers.json", main)
        return {"modes": modes, **pooling, **told, **main, "modules": [t for _, t in self.modules]}

    def _step(self, width: int) -> int:
        kind = self.source.choice(["Dense", "Dense", "LayerNorm", "Normalize", "Dropout"])
        place = f"{len(self.modules)}_{kind}"
        self.modules.append((place, ST + kind))
        if kind == "LayerNorm":
            dump(self.folder / place / "config.json", {"dimension": width})
            state = {"norm.weight": torch.rand(width) + 0.5, "norm.bias": torch.randn(width)}
            save_file(state, str(self.folder / place / "model.safetensors"))
        elif kind == "Dense":
            return self._dense(place, width)
        return width

    def _dense(self, place: str, width: int) -> int:
        outputs = self.source.choice([32, 48, width])
        names = sorted(ACTIVATIONS - {"GLU", "PReLU"})  # which change the width, and have a weight
        config = {
            "in_features": width,
            "out_features": outputs,
            "bias": self.source.random() < 0.5,
            "activation_function": f"torch.nn.modules.activation.{self.source.choice(names)}",
        }
        if config["activation_function"].endswith(".Identity"):
            config["activation_function"] = "torch.nn.modules.linear.Identity"
        state = {"linear.weight": torch.randn(outputs, width) * 0.3}
        if config["bias"]:
            state["linear.bias"] = torch.randn(outputs) * 0.3
        dump(self.folder / place / "config.json", config)
        save_file(state, str(self.folder / place / "model.safetensors"))
        return outputs


class Ours:
    """The way of a text through our own code, but for the transformer."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        found = plan.make(str(folder), plan.Wishes(name="random/model"))
        assert found.recipe is not None
        self.recipe = found.recipe
        self.pooler = SentencePooler(found.recipe)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if found.recipe.lower_case:
            lower_case(tokenizer.backend_tokenizer)
        options = ModelOptions(
            engine="fake",
            model_name="random/model",
            engine_args={"prompts": found.prompts},
            max_model_len=max_tokens,
            token_ids="native",
        )
        facts = FakeBackend(options).facts(None)
        self.encoder = Encoder(
            type(facts)(
                **{
                    **{f: getattr(facts, f) for f in facts.__struct_fields__},
                    "pools_prompts": found.recipe.include_prompt,
                    "default_prompt_name": found.default_prompt_name,
                }
            ),
            tokenizer.backend_tokenizer.to_str().encode(),
            options,
        )
        self.model = BertModel.from_pretrained(folder).eval()

    def vectors(self, prompt_name: str | None) -> Floats:
        """Return (texts, width) as our pooler leaves them, and as `normalize` makes them."""
        job = EmbedJob(None, list(TEXTS), prompt_name=prompt_name, truncate=Truncate.RIGHT)
        prepared = self.encoder.prepare(
            job, self.encoder.prompts.prefix(job, None), max_total=10**9
        )
        with torch.no_grad():
            hidden = torch.cat(
                [
                    self.model(torch.tensor(ids[None].astype(np.int64))).last_hidden_state[0]
                    for ids in prepared.ids
                ]
            )
            skipped = prepared.boundaries or [0] * len(prepared.ids)
            rows = self.pooler.vectors(hidden, list(map(len, prepared.ids)), skipped).numpy()
        return shape_dense(rows, dimensions=None, normalize=self.recipe.normalizes)


def compared(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Return how far we are from sentence-transformers."""
    ours = Ours(folder, told["max_seq_length"])
    model = SentenceTransformer(str(folder), device="cpu").eval()
    least, most = 1.0, 0.0
    for name in (None, *PROMPTS):
        theirs = model.encode(TEXTS, batch_size=1, prompt_name=name)
        mine = ours.vectors(name)
        lengths = np.linalg.norm(mine, axis=1), np.linalg.norm(theirs, axis=1)
        if mine.shape != theirs.shape:
            return {"shapes": [mine.shape, theirs.shape]}
        near = (mine * theirs).sum(1) / np.maximum(lengths[0] * lengths[1], 1e-30)
        least = min(least, float(near[lengths[1] > 1e-6].min(initial=1.0)))
        apart = np.abs(lengths[0] - lengths[1]).max() / max(1e-6, lengths[1].max())
        most = max(most, float(apart))
    return {"cosine": least, "length": most}


def checkpoints(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield the comparison of random checkpoints, every fifth with something that is not known."""
    with tempfile.TemporaryDirectory() as root:
        base = Path(root, "base")
        base.mkdir()
        transformer(base)
        for number in range(count):
            source = random.Random(seed + number)
            torch.manual_seed(seed + number)
            folder = Path(shutil.copytree(base, Path(root, str(number))))
            told = Files(folder, source).write()
            if number % 5 == 4:
                place, keys = source.choice(STRANGERS)
                dump(folder / place, json.loads((folder / place).read_text()) | keys)
                told["stranger"] = place
            try:
                yield {"told": told, **compared(folder, told)}
            except ModelRefused as error:
                yield {"told": told, "refused": str(error)}
            shutil.rmtree(folder)


if __name__ == "__main__":
    for line in checkpoints(int(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(line), flush=True)  # noqa: T201 - for the test
