"""The two ids of a model: which setting, fact and file they depend on, and that none is forgotten.

Deny-lists: a new option, fact or setting has to be added here, and counts into the space unless
`engine/identity.py` or this page says why it does not.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from msgspec import structs

from embedding_service.engine import identity as names
from embedding_service.engine.identity import LoadedModel
from embedding_service.engine.pool import ModelEngine
from embedding_service.engine.protocol import ModelFacts
from embedding_service.service import canaries
from embedding_service.service.canaries import Direction
from embedding_service.service.models import ModelRegistry
from embedding_service.settings.gateway import Settings
from embedding_service.settings.model import ModelOptions
from embedding_service.settings.space_ids import read_ids
from embedding_service.types import Output
from embedding_service.worker.fake import FakeBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.service.vector_space import VectorSpace

    SpaceOf = Callable[..., VectorSpace]

SPACE, BUILD, NEITHER = "space", "build", "neither"
# For each option of a model another value, and what it changes.
OPTIONS: dict[str, tuple[Any, str]] = {
    "engine": ("fake", NEITHER),
    "device": ("cuda", BUILD),
    "devices": ((1,), NEITHER),
    "replicas": (2, NEITHER),
    "dtype": ("bfloat16", BUILD),
    "tensor_parallel_size": (2, BUILD),
    "gpu_memory_utilization": (0.3, NEITHER),
    "max_model_len": (100, SPACE),
    "max_batch_size": (7, BUILD),
    "batch_timeout_ms": (1.0, NEITHER),
    "enforce_eager": (True, BUILD),
    "revision": ("abc", SPACE),
    "trust_remote_code": (True, SPACE),
    "engine_args": ({"quantization": "fp8"}, SPACE),
    "startup_timeout_s": (1.0, NEITHER),
    "model_name": ("other", SPACE),
    "model_path": ("FOLDER", SPACE),
    "aliases": ({"alias": {"input_type": "query"}}, NEITHER),
    "task": ("embed", NEITHER),
    "score_label": ("relevant", SPACE),
    "required": (True, NEITHER),
    "instruction_template": ("{instruction}: ", SPACE),
    "default_instruction": ("find", SPACE),
    "matryoshka": (True, SPACE),
    "calibration_file": ("RANGES", SPACE),
    "canary_file": ("CANARIES", NEITHER),
    "expected_dimension": (32, NEITHER),
    "token_ids": ("native", SPACE),
}
FACTS: dict[str, tuple[Any, str]] = {
    "architecture": ("Other", BUILD),
    "model_type": ("other", BUILD),
    "outputs": (("dense", "sparse"), BUILD),
    "dimension": (33, SPACE),
    "max_tokens": (7, SPACE),
    "vocab_size": (7, SPACE),
    "pooling": ("MEAN", SPACE),
    "dtype": ("bfloat16", BUILD),
    "device": ("cuda", BUILD),
    "revision": ("abc", NEITHER),
    "weights": ("other", SPACE),
    "engine_version": ("1", BUILD),
    "prompts": ({"query": "q: "}, SPACE),
    "default_prompt_name": ("query", SPACE),
    "matryoshka": ((8,), SPACE),
    "family": ("nomic-v1.5", SPACE),
    "normalizes": (True, SPACE),
    "pools_prompts": (False, SPACE),
    "cuts_left": (True, SPACE),
}
# Of the gateway's settings those that decide what is read of a text, or what a number means.
SETTINGS: dict[str, dict[str, Any]] = {
    "default_truncate": {"default_truncate": "left"},
    "records": {"records": {"fields": {"a": {}}, "template": ["{a}"]}},
    "over_long_texts": {"over_long_texts": "cut", "max_text_characters": 10},
}
# All others: addresses, keys, limits, times, memory, names, logs, and `models` itself.
SETTINGS_WITHOUT_EFFECT = {
    "allow_anonymous", "api_keys", "api_keys_env", "api_keys_file", "body_timeout_s",
    "cache_isolation", "cache_max_bytes", "cache_max_entries", "cache_shared", "cache_ttl_s",
    "cors_origins", "docs", "drain_grace_s", "drain_timeout_s", "echo_model", "environment", "file_ttl_s",
    "header_timeout_s", "host", "keep_alive_s", "log_format", "log_level",
    "max_batches", "max_batch_lines", "max_body_bytes", "max_body_values", "max_files",
    "max_file_bytes", "max_stored_bytes", "max_concurrent_requests", "max_inflight_body_bytes",
    "max_inflight_response_bytes", "max_inputs", "max_queued_tokens", "max_request_tokens",
    "max_response_bytes", "metrics", "model_checksum", "models", "otlp_endpoint", "port",
    "preset", "rate_limit_paths", "rate_limit_requests", "rate_limit_tokens", "redis_prefix",
    "redis_url", "request_timeout_s", "root_path", "runtime_dir", "send_timeout_s",
    "service_name", "state_dir", "trusted_proxies", "ui", "uds", "unknown_model", "workers",
}  # fmt: skip
# These count together with another one; each has a test below.
SETTINGS_TOGETHER = {"max_text_characters", "sparse_token_mapping", "sparse_index_space"}


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpaceOf:
    """Return the space of a model with some options, as its worker would have loaded it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, ranges = tmp_path / "model", tmp_path / "ranges.json"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    ranges.write_text(json.dumps({"min": [0] * 32, "max": [1] * 32}))
    pinned = tmp_path / "canaries.json"
    vectors = [{Output.DENSE: Direction.of([1.0])}] * len(canaries.asked())
    canaries.write(pinned, canaries.pin(vectors, model="m", space="s", build="b", dtype="float32"))

    def of(
        facts: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **options: Any
    ) -> VectorSpace:
        chosen = {"engine": "fake", "model_name": "plain", **options}
        chosen |= {"model_path": str(folder)} if options.get("model_path") == "FOLDER" else {}
        chosen |= {"calibration_file": ranges} if "calibration_file" in options else {}
        chosen |= {"canary_file": pinned} if "canary_file" in options else {}
        return _open(ModelOptions(**chosen), facts or {}, Settings(**(settings or {})), tmp_path)

    return of


def _open(
    options: ModelOptions, facts: dict[str, Any], settings: Settings, folder: Path
) -> VectorSpace:
    backend = FakeBackend(options)
    engine = ModelEngine(
        options, folder=folder, start_lock=asyncio.Lock(), environ={}, log=structlog.get_logger()
    )
    found = structs.replace(backend.facts(32), **facts)
    engine.replicas[0].model = LoadedModel.of(options, found, backend.tokenizer_json)
    (served,) = ModelRegistry(settings, [engine])
    assert served.space is None, "said before it was known"
    served.open(settings)
    assert served.space is not None
    return served.space


def changed(one: VectorSpace, other: VectorSpace) -> str:
    """Tell which id differs; the space never does without being seen in the ingredients."""
    if one.hex != other.hex:
        assert one.ingredients != other.ingredients
        return SPACE
    return BUILD if one.build != other.build else NEITHER


@pytest.mark.parametrize("name", OPTIONS)
def test_options(space: SpaceOf, name: str) -> None:
    """Another value of an option is another space unless somebody has said that it is not."""
    value, expected = OPTIONS[name]
    assert changed(space(), space(**{name: value})) == expected


@pytest.mark.parametrize("name", FACTS)
def test_facts(space: SpaceOf, name: str) -> None:
    """So is another fact; number format, device, version and class of vLLM are the build."""
    value, expected = FACTS[name]
    assert changed(space(), space({name: value})) == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(space: SpaceOf, name: str) -> None:
    """So is what the gateway reads of a text."""
    assert changed(space(), space(settings=SETTINGS[name])) == SPACE


def test_nobody_is_forgotten() -> None:
    """Options, facts and settings that are new have to be put on one side."""
    assert set(OPTIONS) == set(ModelOptions.model_fields)
    assert set(FACTS) == {field.name for field in structs.fields(ModelFacts)}
    own = set(Settings.model_fields) - set(ModelOptions.model_fields)
    assert own == SETTINGS.keys() | SETTINGS_WITHOUT_EFFECT | SETTINGS_TOGETHER


def test_settings_that_count_together(space: SpaceOf) -> None:
    """A limit counts where texts are cut there, and indices where there are sparse vectors."""
    refused = space(settings={"max_text_characters": 10})
    assert changed(space(), refused) == NEITHER
    cut = {"over_long_texts": "cut", "max_text_characters": 10}
    longer = {**cut, "max_text_characters": 11}
    assert changed(space(settings=cut), space(settings=longer)) == SPACE
    hashed = {"sparse_token_mapping": "hash"}
    assert changed(space(), space(settings=hashed)) == NEITHER
    sparse = {"outputs": ("dense", "sparse")}
    assert changed(space(sparse), space(sparse, settings=hashed)) == SPACE
    fewer = {**hashed, "sparse_index_space": 100}
    assert changed(space(sparse, settings=hashed), space(sparse, settings=fewer)) == SPACE


def test_arguments_of_vllm(space: SpaceOf) -> None:
    """Those of memory and logs change neither id, those of speed the build, all others the space."""
    harmless = dict.fromkeys(names.ARGUMENTS_WITHOUT_EFFECT, 1)
    assert changed(space(), space(engine_args=harmless)) == NEITHER
    for name in names.ARGUMENTS_OF_BUILD:
        assert changed(space(), space(engine_args={name: 1})) == BUILD, name
    for name in ("seed", "hf_overrides", "kv_cache_dtype", "nobody_knows"):
        assert changed(space(), space(engine_args={**harmless, name: 1})) == SPACE, name


@pytest.mark.parametrize("listed", [names.ARGUMENTS_WITHOUT_EFFECT, names.ARGUMENTS_OF_BUILD])
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


def test_a_name_does_not_count(space: SpaceOf) -> None:
    """The same files under another name live in the same space, unless a family knows the name."""
    one, other = (
        space(model_path="FOLDER"),
        space(model_path="FOLDER", model_name="org/mine, née X"),
    )
    assert one.hex == other.hex
    assert str(other) == f"org/mine%2C%20n%C3%A9e%20X@{other.hex}"
    family = space(model_path="FOLDER", model_name="org/e5-mine")
    assert changed(one, family) == SPACE


def test_ids_stay_from_version_to_version(space: SpaceOf) -> None:
    """A version that gives the same model another id makes people embed everything again: this
    digest changes only together with the directions of vectors.
    """
    assert str(space()) == "plain@cfc4487d0fe1"


def test_ids_are_read_as_they_are_written(space: SpaceOf) -> None:
    """A list of ids is read with names or without; anything else is refused."""
    one, other = space(), space(model_name="other, too")
    assert read_ids(f" {one} ,{other}") == {one.hex, other.hex}
    assert read_ids(one.hex.upper()) == {one.hex}
    assert read_ids(f"other, too@{other.hex},{one.hex} , a@b@{one.hex},") == {one.hex, other.hex}
    without = ("", ",", ",,", "name@", "name@xyz", f"name@{one.hex[:-1]}", "é", "one,other")
    beside = (f"x,{one.hex}", f"{one},other", f"{one},,other@x", f"{one} {other}")
    for wrong in without + beside:
        with pytest.raises(ValueError, match="is not the id of a vector space"):
            read_ids(wrong)
