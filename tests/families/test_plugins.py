"""Which checkpoints our own architectures serve."""

from __future__ import annotations

import importlib
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from embedding_service.families import architectures, profiles

ROOT = Path(__file__).parents[2]


def replacement(name: str, **config: object) -> str | None:
    return architectures.replacement(config, profiles.find(model_name=name).replaces)


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        (
            "bge-reranker-v2-m3",
            "XLMRobertaForSequenceClassification",
            "EmbeddingServiceRobertaForSequenceClassification",
        ),
        ("intfloat/multilingual-e5-large", "XLMRobertaModel", architectures.ROBERTA),
        ("naver/splade-v3", "BertForMaskedLM", architectures.SPLADE),
        ("google-bert/bert-base-uncased", "BertForMaskedLM", None),
        ("naver/splade-v3-distilbert", "DistilBertForMaskedLM", None),
        ("BAAI/bge-large-en-v1.5", "BertModel", None),
    ],
)
def test_the_checkpoint_decides(name: str, architecture: str, expected: str | None) -> None:
    """The architecture in config.json chooses ours; a plain masked language model is no SPLADE."""
    assert replacement(name, architectures=[architecture]) == expected


def test_rotary_positions_are_left_alone() -> None:
    """jina-embeddings-v3 calls itself XLMRobertaModel and has no position embeddings to number."""
    assert (
        replacement("jina", architectures=["XLMRobertaModel"], position_embedding_type="rotary")
        is None
    )
    assert (
        replacement("jina", architectures=["XLMRobertaModel"], position_embedding_type="absolute")
        is not None
    )
    assert replacement("nameless") is None


@pytest.mark.engine
def test_the_entry_point_is_the_plugin() -> None:
    """The package tells vLLM of `register`, in pyproject.toml and as it is installed here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "vllm.general_plugins"
    ]
    (path,) = declared.values()
    module, _, function = path.partition(":")
    assert (
        getattr(importlib.import_module(module), function)
        is importlib.import_module("embedding_service.families.models.plugin").register
    )
    installed = importlib.metadata.entry_points(
        group="vllm.general_plugins", name="embedding_service"
    )
    assert {entry.value for entry in installed} == {path}, "install the project again"
