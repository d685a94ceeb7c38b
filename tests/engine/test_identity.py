"""Which options make engines differ: every one that is not known to leave the numbers alone."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from embedding_service.engine import identity as names
from embedding_service.engine.identity import identity
from embedding_service.settings.model import ModelOptions
from embedding_service.worker.fake import FakeBackend

PLAIN = ModelOptions(engine="fake", model_name="plain")
FACTS = FakeBackend(PLAIN).facts(32)
# For each option another value. A new option has to be added here, and to those that count
# unless `engine/identity.py` says that its effect is none or to be seen in the facts.
OTHER: dict[str, Any] = {
    "engine": "vllm",
    "device": "cpu",
    "devices": (1,),
    "replicas": 2,
    "dtype": "bfloat16",
    "tensor_parallel_size": 2,
    "gpu_memory_utilization": 0.3,
    "max_model_len": 100,
    "max_batch_size": 7,
    "batch_timeout_ms": 1.0,
    "enforce_eager": True,
    "revision": "abc",
    "trust_remote_code": True,
    "engine_args": {"kv_cache_dtype": "fp8"},
    "startup_timeout_s": 1.0,
    "model_name": "other",
    "model_path": "/models/other",
    "aliases": {"alias": {}},
    "task": "embed",
    "score_label": "relevant",
    "required": True,
    "instruction_template": "{instruction}: ",
    "default_instruction": "find",
    "matryoshka": True,
    "calibration_file": "/ranges.json",
    "expected_dimension": 32,
    "token_ids": "native",
}
COUNTED = {
    "enforce_eager",
    "engine_args",
    "max_batch_size",
    "score_label",
    "tensor_parallel_size",
    "trust_remote_code",
}


def of(**options: Any) -> str:
    """Return the identity of an engine with other options that has found the same facts."""
    return identity(ModelOptions(**{"engine": "fake", "model_name": "plain", **options}), FACTS)


def test_every_option_is_on_one_side() -> None:
    """An option either is listed as without effect on the numbers, or counts."""
    assert set(OTHER) == set(ModelOptions.model_fields)
    assert set(ModelOptions.model_fields) - names.OPTIONS_WITHOUT_EFFECT == COUNTED
    assert set(ModelOptions.model_fields) > names.OPTIONS_WITHOUT_EFFECT
    assert names.OPTIONS_OF_ROUNDING < COUNTED


@pytest.mark.parametrize("name", OTHER)
def test_an_option_that_is_not_listed_counts(name: str) -> None:
    """Another value of it is another identity, unless it is without effect."""
    assert (of(**{name: OTHER[name]}) != identity(PLAIN, FACTS)) == (name in COUNTED)


@pytest.mark.parametrize("arguments", [{"step_s": 0.1}, {"hf_overrides": {}}, {"max_num_seqs": 4}])
def test_an_argument_that_nobody_listed_counts(arguments: dict[str, Any]) -> None:
    """Arguments of vLLM count, known or not, if only in the last digit."""
    assert of(engine_args=arguments) != of()


def test_arguments_about_memory_and_logs_do_not_count() -> None:
    """Those that are listed change nothing, alone or beside others."""
    harmless = dict.fromkeys(names.ARGUMENTS_WITHOUT_EFFECT, 1)
    assert of(engine_args=harmless) == of()
    assert of(engine_args={**harmless, "seed": 1}) == of(engine_args={"seed": 1})


@pytest.mark.parametrize("listed", [names.ARGUMENTS_WITHOUT_EFFECT, names.ARGUMENTS_OF_ROUNDING])
def test_what_is_listed_is_an_argument_of_vllm(listed: frozenset[str]) -> None:
    """No entry is misspelt, or left over from another version."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    source = Path(vllm.origin).with_name("engine") / "arg_utils.py"  # importing it takes seconds
    classes = {
        node.name: node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    fields = [node for node in classes["EngineArgs"].body if isinstance(node, ast.AnnAssign)]
    assert {ast.unparse(field.target) for field in fields} >= listed


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"dtype": "bfloat16"},
        {"pooling": "MEAN"},
        {"device": "cuda"},
        {"engine_version": "1"},
        {"max_tokens": 7},
    ],
)
def test_facts_count(change: dict[str, Any]) -> None:
    """An engine that found other weights, another format, device or version is another one."""
    assert identity(PLAIN, structs.replace(FACTS, **change)) != identity(PLAIN, FACTS)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": {"query": "q: "}},
        {"folder": "/elsewhere"},
        {"family": "e5"},
        {"matryoshka": (8,)},
        {"normalizes": True},
    ],
)
def test_prompts_and_places_do_not_count(change: dict[str, Any]) -> None:
    """Prompts are in the token ids already; a model is the same in another folder."""
    assert identity(PLAIN, structs.replace(FACTS, **change)) == identity(PLAIN, FACTS)
