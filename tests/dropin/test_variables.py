"""Every variable that a replaced system's documents name is read, or named at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embedding_service.dropin.presets import PRESETS
from embedding_service.settings.load import load
from tests.dropin.conftest import FILES, variables

if TYPE_CHECKING:
    from embedding_service.settings.gateway import Settings

# The variables in each system's documents, compose files and manifests, with a value that is not
# its default.
DOCUMENTED: dict[str, dict[str, str]] = {
    "qwen3-embedding": {
        "EMBEDDING_MODEL_NAME": "mine",
        "EMBEDDING_MODEL_PATH": "/srv/mine",
        "EMBEDDING_GPU_MEMORY_UTILIZATION": "0.7",
        "EMBEDDING_MAX_MODEL_LEN": "2048",
        "EMBEDDING_TENSOR_PARALLEL_SIZE": "2",
        "EMBEDDING_DTYPE": "bfloat16",
        "EMBEDDING_HOST": "127.0.0.1",
        "EMBEDDING_PORT": "9000",
        "EMBEDDING_WORKERS": "1",
        "EMBEDDING_MAX_BATCH_SIZE": "64",
        "EMBEDDING_BATCH_TIMEOUT_MS": "5",
        "EMBEDDING_LOG_LEVEL": "CRITICAL",
    },
    "embed": {"DEVICE": "cpu", "API_KEY": "secret"},
    "emb-infer-bge-m3": {
        "API_TOKEN": "secret",
        "MODEL_PATH": "/app/BGE-M3",
        "MODEL_NAME": "mine",
        "BATCH_SIZE": "16",
        "BATCH_TIMEOUT_MS": "50",
        "PROCESSING_CONCURRENCY": "4",
        "MAX_QUEUE_SIZE": "100",
        "MAX_BATCH_SIZE": "10",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json",
        "ALLOWED_ORIGINS": "https://a.example",
        "CUDA_VISIBLE_DEVICES": "0",
    },
    "bge-inference-service": {
        "SERVICE_NAME": "mine",
        "HOST": "127.0.0.1",
        "PORT": "9000",
        "LOG_LEVEL": "ERROR",
        "EMBEDDING_MODEL_NAME": "mine",
        "RERANKER_MODEL_NAME": "mine-too",
        "EMBEDDING_SIZE": "512",
        "DEVICE": "cpu",
        "USE_FP16": "false",
        "SPARSE_TOKEN_MAPPING": "hash",
        "SPARSE_INDEX_SPACE": "1000",
        "TOKENIZER_TRUST_REMOTE_CODE": "true",
        "MAX_TEXT_CHARS": "500",
        "MAX_BATCH_SIZE": "32",
        "INFERENCE_BATCH_SIZE": "128",
        "EMBEDDING_MICROBATCH_ENABLED": "true",
        "EMBEDDING_MICROBATCH_MAX_WAIT_MS": "5",
        "EMBEDDING_MICROBATCH_MAX_BATCH_TEXTS": "64",
        "EMBEDDING_MICROBATCH_QUEUE_MAXSIZE": "100",
        "OPENAI_DEFAULT_MODEL_ALIAS": "mine-three",
    },
    "matching-service": {
        "EMBEDDING_MODEL": "mine",
        "MAX_BATCH_SIZE": "64",
        "MAX_TEXT_LENGTH": "500",
        "MAX_CONCURRENT_REQUESTS": "3",
        "ENCODE_TIMEOUT_SECONDS": "9",
        "RATE_LIMIT": "7/minute",
        "RATE_LIMIT_BATCH": "3/minute",
        "CACHE_ENABLED": "false",
        "CACHE_TTL_SECONDS": "60",
        "CACHE_MAX_SIZE": "5",
        "ALLOWED_ORIGINS": "https://a.example",
        "API_KEY": "secret",
    },
    "tei": {  # `text-embeddings-router --help`
        "MODEL_ID": "mine",
        "REVISION": "abc",
        "TOKENIZATION_WORKERS": "2",
        "DTYPE": "float32",
        "SERVED_MODEL_NAME": "mine-too",
        "POOLING": "mean",
        "MAX_CONCURRENT_REQUESTS": "9",
        "MAX_BATCH_TOKENS": "100",
        "MAX_BATCH_REQUESTS": "8",
        "MAX_CLIENT_BATCH_SIZE": "7",
        "AUTO_TRUNCATE": "false",
        "DEFAULT_PROMPT_NAME": "query",
        "DEFAULT_PROMPT": "query: ",
        "DENSE_PATH": "2_Dense",
        "HF_API_TOKEN": "secret",
        "HF_TOKEN": "secret",
        "HUGGINGFACE_HUB_CACHE": "/data",
        "PORT": "80",
        "UDS_PATH": "/tmp/x",
        "PAYLOAD_LIMIT": "5000",
        "API_KEY": "secret",
        "JSON_OUTPUT": "true",
        "DISABLE_SPANS": "true",
        "OTLP_ENDPOINT": "http://localhost:4317",
        "OTLP_SERVICE_NAME": "mine",
        "PROMETHEUS_PORT": "9001",
        "CORS_ALLOW_ORIGIN": "https://a.example",
    },
}
# Read by libraries in the engine's process, which gets them as they are; keys by `api_keys_env`.
BY_OTHERS = {"CUDA_VISIBLE_DEVICES", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"}
ALREADY_SO = {"EMBEDDING_WORKERS"}  # only its default is taken
CASES = [(name, variable) for name, all_of in DOCUMENTED.items() for variable in all_of]


def read(name: str, **environ: str) -> tuple[Settings, list[str]]:
    """Return a preset's settings and warnings with these variables alone."""
    token = {"API_TOKEN": "a"} if name == "emb-infer-bge-m3" else {}
    with variables(token | environ):
        return load(FILES / f"{name}.yaml", presets=lambda: PRESETS)


@pytest.mark.parametrize(("name", "variable"), CASES)
def test_a_documented_variable_is_read_or_named(name: str, variable: str) -> None:
    """It changes a setting, is a key or the business of a library, or a warning names it."""
    plain, nothing = read(name)
    settings, warnings = read(name, **{variable: DOCUMENTED[name][variable]})
    assert nothing == []
    changed = settings.effective() != plain.effective()
    named = [line for line in warnings if line.startswith(f"{variable} ")]
    known = variable in plain.api_keys_env or variable in BY_OTHERS | ALREADY_SO
    assert changed + bool(named) + known == 1, warnings


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("qwen3-embedding", 8890),
        ("qwen3-reranker", 8891),
        ("embed", 8001),
        ("emb-infer-bge-m3", 8000),
        ("bge-inference-service", 8011),
        ("matching-service", 7860),
        ("tei", 3000),
    ],
)
def test_presets_listen_where_the_originals_did(name: str, port: int) -> None:
    """On the original's port of all addresses, without a key where it had none."""
    settings, _ = read(name)
    assert (settings.host, settings.port) == ("0.0.0.0", port)
    assert settings.allow_anonymous is (name != "emb-infer-bge-m3")


def test_all_presets_have_their_variables() -> None:
    """A new preset comes with the list of its documents' variables."""
    without_any = {"qwen3-reranker"}
    assert DOCUMENTED.keys() | without_any == PRESETS.keys()
