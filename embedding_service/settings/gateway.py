"""The only place where a setting exists, beside those of a model, which are in `options.py`; one frozen tree.

`configuration.py` reads it. Never imports the engine, the core or the API.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from embedding_service.settings.model import EngineOptions, ModelOptions, Strict, comma_separated
from embedding_service.settings.presets import PLAIN_RECORDS, OldVariables, Preset, RecordSettings
from embedding_service.types import Truncate

ENV_PREFIX = "EMBEDDING_"


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _check_rate(rate: str) -> str:
    if not re.fullmatch(r"[1-9]\d* ?/ ?([1-9]\d* ?)?(second|minute|hour|day)s?", rate):
        raise ValueError("a rate is written like 100/minute or 5000/2 hours")
    return rate


def _check_proxy(value: str) -> str:
    if value != "*":
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f"{value!r} is neither an address nor a network") from None
    return value


def _yaml_off(value: object) -> object:
    """Read YAML's `off`, which is a boolean, as the word that was meant."""
    return "off" if value is False else value


Rate = Annotated[str, AfterValidator(_check_rate)]
Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(comma_separated)]


class KeySettings(Strict):
    """A key and what it may do; a bare string is a key that may do everything."""

    name: str | None = Field(None, min_length=1, max_length=64, description="Whose it is, in logs; limits are by name.")
    key: SecretStr = Field(description="The key, or `sha256:HEX` of it.")
    models: tuple[str, ...] | None = Field(None, min_length=1, description="Models it may use; default: all.")
    requests: Rate | None = Field(None, description="Instead of rate_limit_requests.")
    tokens: Rate | None = Field(None, description="Instead of rate_limit_tokens.")

    @model_validator(mode="before")
    @classmethod
    def _read_bare_key(cls, value: object) -> object:
        entry = {"key": value} if isinstance(value, str | SecretStr | int | float) else value
        if isinstance(entry, dict):
            if isinstance(entry.get("key"), int | float):
                raise ValueError("a key is text; put it in quotes, or YAML takes it for a number")  # noqa: TRY004
            if not entry.keys() <= cls.model_fields.keys():  # unnamed, since it may be a key that stands there
                raise ValueError(f"an entry has {', '.join(cls.model_fields)} and nothing else")
        return entry

    @field_validator("key")
    @classmethod
    def _keep_only_the_digest(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not text:
            raise ValueError("a key must not be empty; it would let everybody in")
        if not text.startswith("sha256:"):
            return SecretStr("sha256:" + hashlib.sha256(text.encode()).hexdigest())
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", text):
            raise ValueError("sha256: must be followed by the 64 hexadecimal digits of a key's digest")
        return key

    @property
    def digest(self) -> bytes:
        """The sha256 of the key."""
        return bytes.fromhex(self.key.get_secret_value().removeprefix("sha256:"))


class Settings(ModelOptions, BaseSettings):
    """Everything that can be set. Top-level model options describe the one model, or are defaults for `models`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, protected_namespaces=(), env_ignore_empty=True
    )
    yaml_tree: ClassVar[dict[str, Any]] = {}

    models: tuple[ModelOptions, ...] = Field((), description="Several models behind one address.")

    preset: Preset | None = Field(None, description="The system to stand in for; its file is in config/drop-in/.")
    environment: OldVariables = Field(
        default_factory=dict, description="That system's variables, and the settings that they stand for."
    )
    service_name: str = Field("embedding-service", description="What the service calls itself.")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8890, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of host and port.")
    workers: Literal[1] = Field(1, description="Gateway processes; scale with `replicas` or several instances.")
    api_keys: Annotated[tuple[KeySettings, ...], NoDecode, BeforeValidator(comma_separated)] = Field(
        (), description="Keys that clients may send: `KEY`, `sha256:HEX` of it, or with name, models and limits."
    )
    api_keys_file: Path | None = Field(
        None, description="More of them, read again on SIGHUP; default: systemd's credential `embedding-keys`."
    )
    api_keys_env: Strings = Field(("API_TOKEN", "API_KEY"), description="Variables that may hold one more key each.")
    rate_limit_requests: Rate | None = Field(None, description="For each key, or address where there are none.")
    rate_limit_tokens: Rate | None = Field(None, description="The same for tokens that have to be computed.")
    rate_limit_paths: dict[str, Rate] = Field(
        default_factory=dict, description="Path → rate of requests there, in place of rate_limit_requests."
    )
    redis_url: SecretStr | None = Field(
        None, description="redis:// or rediss://: limits and cache are shared by all instances that use it."
    )
    redis_prefix: str = Field("embedding:", description="What the names of our keys in Redis begin with.")
    allow_anonymous: bool = Field(False, description="Serve other hosts without any key.")
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_proxy)], ...], NoDecode, BeforeValidator(comma_separated)
    ] = Field((), description="Addresses or networks whose X-Forwarded-For is believed; `*` for all.")
    cors_origins: Strings = Field((), description="Origins that browsers may call from.")
    docs: Annotated[Literal["open", "key", "off"], BeforeValidator(_yaml_off)] = Field(
        "open", description="Who sees /docs and /openapi.json."
    )
    metrics: Annotated[Literal["open", "loopback", "key", "off"], BeforeValidator(_yaml_off)] = Field(
        "loopback", description="Who sees /metrics; loopback: this machine without a key, others with one."
    )
    otlp_endpoint: str | None = Field(
        None, pattern="^https?://", description="Where traces go (OTLP over HTTP), such as http://localhost:4318."
    )
    unknown_model: Literal["reject", "serve_default"] = Field("reject", description="What a foreign model name gets.")
    echo_model: bool = Field(default=False, description="Answers name the model as the request did.")
    default_truncate: Truncate = Field(Truncate.ERROR, description="For over-long inputs of requests that do not say.")
    model_checksum: Literal["settings", "legacy"] = Field(
        "settings", description="legacy: md5 of the name and dimensions only, as matching-service had it."
    )
    records: RecordSettings = Field(PLAIN_RECORDS, description="The fields of records and their text.")
    sparse_token_mapping: Literal["tokenizer", "hash"] = Field(
        "tokenizer", description="Indices of sparse vectors: token ids, or hashes of them."
    )
    sparse_index_space: int = Field(1 << 20, ge=1, description="Hashed indices lie below this.")
    runtime_dir: Path | None = Field(None, description="Where sockets live (mode 0700); default: a fresh one.")

    max_inputs: int = Field(2048, ge=1, description="Inputs in one request.")
    max_text_characters: int | None = Field(None, ge=1, description="Characters of one text.")
    max_concurrent_requests: int | None = Field(None, ge=1, description="Requests computed or waiting at a time.")
    max_request_tokens: int = Field(300_000, ge=1, description="Tokens in one request.")
    max_body_bytes: int = Field(32 << 20, ge=1024, description="Request body, after inflation.")
    max_response_bytes: int = Field(256 << 20, ge=1024, description="Answer to one request.")
    max_inflight_response_bytes: int = Field(1 << 30, ge=1024, description="Answers being computed or sent.")
    cache_max_bytes: int = Field(256 << 20, ge=0, description="Results kept in memory; 0 keeps none.")
    cache_max_entries: int | None = Field(None, ge=1, description="Results kept at most, whatever their size.")
    cache_ttl_s: float = Field(3600, gt=0, description="How long a result is kept.")
    cache_isolation: Literal["none", "tenant"] = Field(
        "none", description="tenant: nobody can tell from an answer's speed what others have asked."
    )
    cache_shared: bool = Field(True, description="With redis_url: keep results there, too.")
    max_queued_tokens: int = Field(2_000_000, ge=1, description="Tokens admitted and not yet computed, per model.")
    request_timeout_s: float = Field(30, gt=0, description="Longest that a request may take.")
    header_timeout_s: float = Field(10, gt=0, description="Longest that a request's headers may take to arrive.")
    body_timeout_s: float = Field(15, gt=0, description="Longest pause while a body arrives.")
    send_timeout_s: float = Field(60, gt=0, description="Longest that a client may leave a piece of its answer unread.")
    drain_timeout_s: float = Field(30, ge=0, description="Longest that accepted requests may take after SIGTERM.")
    drain_grace_s: float = Field(
        1, ge=0, description="After SIGTERM, new requests hear 503 for so long before the port closes."
    )
    keep_alive_s: float = Field(75, gt=0, description="Idle connections; above nginx's 60 s, or it sees 502s.")

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the names are pydantic-settings'
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over environment; the file is merged underneath in `load`."""
        return init_settings, env_settings, _YamlTree(settings_cls, cls.yaml_tree)

    @model_validator(mode="before")
    @classmethod
    def _hand_down_defaults(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Give every entry of `models` the engine options that stand at the top level."""
        entries = data.get("models")
        if isinstance(entries, list):
            shared = {name: data[name] for name in EngineOptions.model_fields if name in data}
            data = {**data, "models": [{**shared, **e} if isinstance(e, dict) else e for e in entries]}
        return data

    @model_validator(mode="after")
    def _check_as_a_whole(self) -> Self:
        if not (self.has_keys or self.allow_anonymous):
            if self.preset == "emb-infer-bge-m3":
                raise ValueError("API_TOKEN: it has to be set; this preset does not start without a token")
            if not (self.uds or _is_loopback(self.host)):
                raise ValueError(
                    f"host: {self.host} can be reached from other machines; set api_keys or api_keys_file, "
                    "or allow_anonymous: true if that is what you want"
                )
        taken: dict[str, str] = {}
        for model in self.served_models:
            for name in (model.model_name, *model.aliases):
                if name in taken:
                    raise ValueError(f"aliases: {name!r} names both {taken[name]} and {model.model_name}")
                taken[name] = model.model_name
        for device, share in self.device_shares().items():
            if share > 1 + 1e-9:
                raise ValueError(
                    f"gpu_memory_utilization: the models and replicas on {device} ask for {share:.0%} of it; "
                    "lower theirs or spread them with devices"
                )
        return self

    @property
    def keys_path(self) -> Path | None:
        """The file of keys: the one that is set, else systemd's credential if there is one."""
        if self.api_keys_file is not None:
            return self.api_keys_file
        credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "embedding-keys")
        return credential if credential.is_file() else None

    @property
    def has_keys(self) -> bool:
        """Whether anything names a key."""
        in_environment = any(os.environ.get(name, "").strip() for name in self.api_keys_env)
        return bool(self.api_keys or self.keys_path or in_environment)

    def device_shares(self) -> dict[str, float]:
        """Return which share of each device's memory all replicas on it will take together."""
        shares: dict[str, float] = {}
        for model in self.served_models:
            for replica in range(model.replicas):
                for device in model.devices_of(replica):
                    shares[device] = shares.get(device, 0.0) + model.gpu_memory_utilization
        return shares

    @property
    def served_models(self) -> tuple[ModelOptions, ...]:
        """The models to serve, the default one first."""
        if self.models:
            return self.models
        return (ModelOptions.model_construct(**{name: getattr(self, name) for name in ModelOptions.model_fields}),)

    def effective(self) -> dict[str, Any]:
        """Return the whole tree as plain values, secrets masked."""
        own = {name for name in type(self).model_fields if name not in ModelOptions.model_fields and name != "models"}
        tree = self.model_dump(mode="json", include=own)
        return {**tree, "models": [model.model_dump(mode="json") for model in self.served_models]}


class _YamlTree(PydanticBaseSettingsSource):
    """The parsed configuration file as a pydantic-settings source."""

    def __init__(self, settings_cls: type[BaseSettings], tree: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self.tree = tree

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return self.tree.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.tree


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
