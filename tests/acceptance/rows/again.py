"""Checkpoints that sentence-transformers 6.2 has loaded and saved again, in its own new layout."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.acceptance.table import ROWS, like

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import Step

# fmt: off

# By the class that loads them. Those of repositories with code of their own are left out.
AGAIN = {
    "SentenceTransformer": (
        *("arctic-m-v1.5", "bge-m3", "bge-multilingual-gemma2", "bge-small-en", "dense-leakyrelu"),
        *("do-lower-case", "e5-mistral", "embeddinggemma", "gte-modernbert"),
        *("gte-multilingual-native", "include-prompt-false", "jina-v3-hf", "layer-norm"),
        *("multi-qa-distilbert", "mxbai-large", "no-modules-bert", "no-modules-qwen2"),
        *("nomic-native", "paraphrase-multilingual-minilm", "qwen3-embedding", "ru-en-rosberta"),
        *("saved-with-mlm-head", "sentence-camembert", "transformer-in-subfolder", "truncate-dim"),
        *("weightedmean-without-prompt", "wrapped-ernie", "wrapped-eurobert")),
    "CrossEncoder": (
        *("bge-reranker-base", "camembert-reranker", "gte-multilingual-reranker-native"),
        *("gte-reranker-modernbert", "llama-types", "lower-case-pairs", "modernbert-types"),
        *("ms-marco-electra", "ms-marco-minilm", "qwen3-reranker-finetuned", "two-labels")),
    "SparseEncoder": ("splade-distil", "splade-sum-log1p", "splade-v3")}


def saved_again(loader: str) -> Step:
    """Load a checkpoint and save it in its place."""

    def make(path: Path) -> None:
        import sentence_transformers

        model = getattr(sentence_transformers, loader)(str(path), device="cpu")
        saved = path.with_name(path.name + ".saved")
        model.save(str(saved), create_model_card=False)
        shutil.rmtree(path)
        saved.rename(path)

    return make


for loader, names in AGAIN.items():
    for name in names:
        row = ROWS[name]
        like(
            f"again-{name}",
            name,
            saved_again(loader),
            hub=f"{row.hub}-again",
            kind=row.kind.removesuffix("-lower"),  # its tokenizer lower-cases now
        )
