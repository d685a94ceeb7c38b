"""Settings are shown without secrets, whatever it is called and wherever it stands."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from embedding_service.errors import BadConfiguration
from embedding_service.settings import flags
from embedding_service.settings.gateway import Settings
from embedding_service.settings.masking import MASK, masked, masked_text, without_secrets

SECRET = "hunter2-Tr0ub4dor"


@pytest.mark.parametrize(
    "settings",
    [
        {"otlp_endpoint": f"https://user:{SECRET}@collector:4318"},
        {"otlp_endpoint": f"https://{SECRET}@collector:4318"},
        {"otlp_endpoint": f"https://collector:4318/x?api_key={SECRET}"},
        {"otlp_endpoint": f"https://collector:4318/?a=b&x-token={SECRET}&c=d"},
        {"redis_url": f"redis://:{SECRET}@redis:6379/0"},
        {"engine_args": {"hf_token": SECRET}},
        {"engine_args": {"hf-token": SECRET}},
        {"engine_args": {"load": {"inner": [{"password": SECRET}]}}},
        {"engine_args": {"API_KEY": SECRET}},
        {"engine_args": {"headers": {"x-any": SECRET}}},
        {"engine_args": {"download_dir": f"s3://{SECRET}@bucket/models"}},
        {"engine_args": {"anything": f"Bearer {SECRET}"}},
        {"engine_args": {"anything": "hf_" + "a1B2" * 8}},
        {"engine_args": {"passphrase": 20304050}},
        {"engine_args": {"args": ["--api-key", SECRET]}},
        {"engine_args": {"args": ["--model", "a", f"--token={SECRET}"]}},
        {"engine_args": {"args": [["-x", 1, "--hf-token", SECRET]]}},
        {"engine_args": {"args": f"--host a --api-key {SECRET} -v"}},
        {"engine_args": {"args": f"{{'a': 1, 'api_key': 'one {SECRET}'}}"}},
        {"engine_args": {"args": f"level: 3\napi-key: {SECRET}\n"}},
        {"engine_args": {"env": [f"HF_TOKEN={SECRET}"]}},
        {"engine_args": {"extra": f'{{"aws_secret_access_key":"{SECRET}"}}'}},
        {"engine_args": {"extra": f' [1, {{"a": {{"api-key": "{SECRET}"}}}}]'}},
        {"engine_args": {"extra": [f'{{"a": ["--password", "{SECRET}"]}}']}},
        {"models": [{"model_name": "a", "engine_args": {"token": SECRET}}]},
        {"cors_origins": [f"https://user:{SECRET}@example.org"]},
        {"model_path": f"https://user:{SECRET}@example.org/model"},
    ],
)
def test_no_secret_is_shown(settings: dict[str, Any]) -> None:
    """`check-config` prints what is in force, and no secret with it."""
    shown = yaml.safe_dump(Settings(**settings).effective())
    assert SECRET not in shown
    assert "20304050" not in shown
    assert "a1B2" not in shown
    assert "**********" in shown


def test_what_is_no_secret_is_shown() -> None:
    """Names that only sound like secrets, and plain values, are printed as they are."""
    plain = {
        "max_num_batched_tokens": 4096,
        "attention_backend": "TORCH_SDPA",
        "compilation_config": {"level": 3, "cudagraph_capture_sizes": [1, 2]},
        "enforce_eager": True,
        "args": ["--max-num-batched-tokens", 4096, "--dtype=half", "--max-tokens=5", "a b"],
        "json": '{"level":  3}',
    }
    settings = Settings(
        engine_args=plain, otlp_endpoint="http://localhost:4318", token_ids="native"
    )
    shown = settings.effective()
    assert shown["models"][0]["engine_args"] == plain
    assert shown["models"][0]["token_ids"] == "native"
    assert shown["otlp_endpoint"] == "http://localhost:4318"
    assert shown["sparse_token_mapping"] == "tokenizer"
    assert shown["max_request_tokens"] == 300_000


def test_masking_keeps_the_form() -> None:
    """Values keep their places, and texts what is around a secret."""
    assert masked_text("at redis://u:p@host:1/0 now") == "at redis://**********@host:1/0 now"
    assert masked({"a": [1, None, {"secret": None, "b": 2.5}]}) == {
        "a": [1, None, {"secret": None, "b": 2.5}]
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [SECRET],
        ["--host", "a", SECRET],
        ["--redis-url", "redis://:one", f"{SECRET}@host"],
        ["--trusted-proxies", f"[{SECRET}"],
    ],
)
def test_no_flag_shows_a_secret(arguments: list[str]) -> None:
    """Half of a password, or all of it, may stand where no flag should."""
    with pytest.raises(BadConfiguration) as caught:
        flags.read(arguments)
    assert SECRET not in str(caught.value)


def test_what_an_engine_says_of_its_arguments_shows_no_secret() -> None:
    """An error that quotes what it was given is told without what is hidden of that."""
    tree = {"hf_token": SECRET, "load": [{"password": "swordfish"}, "plain"], "level": 3}
    tree["json"] = '{"secret_key": "ofTheSea"}'
    text = f"input_value={{'hf_token': '{SECRET}', 'x': 'swordfish'}}, plain, 3 ofTheSea"
    assert without_secrets(text, tree) == (
        "input_value={'hf_token': '**********', 'x': '**********'}, plain, 3 **********"
    )


def test_names_of_arguments_are_no_tokens() -> None:
    """A refusal that tells which argument to set can be read; Hugging Face's tokens begin alike."""
    text = "set engine_args: {hf_overrides: {lora_adaptations: [text-matching]}}"
    assert without_secrets(text, {}) == text
    assert without_secrets("hf_overridesOfTheSea1234 is a token", {}) == f"{MASK} is a token"
