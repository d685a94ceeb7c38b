"""Which checkpoints our own architectures serve."""

from __future__ import annotations

import importlib
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from embedding_service.families import architectures

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("classes", "architecture", "expected"),
    [
        (architectures.PAIRS, "XLMRobertaForSequenceClassification", architectures.ROBERTA_PAIRS),
        (architectures.PAIRS, "CamembertForSequenceClassification", architectures.ROBERTA_PAIRS),
        (architectures.DENSE, "XLMRobertaModel", architectures.ROBERTA),
        (architectures.DENSE, "DistilBertModel", architectures.DISTIL),
        (architectures.DENSE, "BertModel", None),
        (architectures.DENSE, "ElectraModel", None),
        (architectures.DENSE, "ElectraForPreTraining", architectures.HEADLESS),
        (architectures.DENSE, "NewForTokenClassification", "GteNewModel"),
        (architectures.SPARSE, "BertForMaskedLM", architectures.SPLADE),
        (architectures.SPARSE, "DistilBertForMaskedLM", architectures.DISTIL_SPLADE),
    ],
)
def test_the_architecture_decides(
    classes: dict[str, str], architecture: str, expected: str | None
) -> None:
    """The architecture in config.json chooses ours, by what the model gives."""
    assert architectures.replacement({"architectures": [architecture]}, classes) == expected


def test_rotary_positions_are_left_alone() -> None:
    """jina-embeddings-v3 calls itself XLMRobertaModel and has no position embeddings to number."""
    config = {"architectures": ["XLMRobertaModel"], "position_embedding_type": "rotary"}
    assert architectures.replacement(config, architectures.DENSE) is None
    config["position_embedding_type"] = "absolute"
    assert architectures.replacement(config, architectures.DENSE) == architectures.ROBERTA
    assert architectures.replacement({}, architectures.DENSE) is None


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
