"""All settings of a gateway, as one frozen tree; those of a model are in `model`.

`load` reads it from file, environment and flags. Never imports the engine, the service or HTTP.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from embedding_service.settings.keys import KeySettings, Rate
from embedding_service.settings.masking import masked
from embedding_service.settings.model import CommaSeparated, EngineOptions, ModelOptions
from embedding_service.settings.old_variables import OldVariables
from embedding_service.settings.records import PLAIN_RECORDS, RecordSettings
from embedding_service.types import Json, Truncate

ENV_PREFIX = "EMBEDDING_"
_VALUES_AN_INPUT = 64


def _log_level(value: object) -> object:
    """Read a level in any case, and by the names that other programs have for it."""
    if not isinstance(value, str):
        return value
    return OTHER_LEVELS.get(value.lower(), value.lower())


def _only_one(workers: int) -> int:
    if workers != 1:
        raise ValueError("one gateway process serves all engines; set `replicas` for more of those")
    return workers


def _check_proxy(value: str) -> str:
    if value != "*":
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(
                f"{value!r} is neither an address nor a network; write 10.0.0.1 or 10.0.0.0/8"
            ) from None
    return value


def _yaml_off(value: object) -> object:
    """Read YAML's `off`, which is a boolean, as the word that was meant."""
    return "off" if value is False else value


# Of Python's logging, uvicorn and TEI. Nothing here is logged above `error`.
OTHER_LEVELS = {"critical": "error", "fatal": "error", "warn": "warning", "trace": "debug"}


def _check_endpoint(value: str) -> str:
    try:
        _ = urlsplit(value).port
    except ValueError:
        raise ValueError("it is not a URL; percent-encode a password in it") from None
    return value


MetricsAccess = Literal["open", "loopback", "key", "off"]
LogLevel = Literal["debug", "info", "warning", "error"]
Proxy = Annotated[str, AfterValidator(_check_proxy)]


class Settings(ModelOptions, BaseSettings):
    """Everything that can be set.

    Model options at the top level describe the only model, or are defaults for `models`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        case_sensitive=True,  # of names in files and flags; `load` reads variables in either case
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    models: tuple[ModelOptions, ...] = Field((), description="Several models behind one address.")

    preset: str | None = Field(
        None, description="The system to replace; config/drop-in/ has a file for each."
    )
    environment: OldVariables = Field(
        {}, description="The replaced system's variables, and the settings that each one sets."
    )
    service_name: str = Field("embedding-service", description="The service's name for itself.")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8890, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of host and port.")
    workers: Annotated[int, AfterValidator(_only_one)] = Field(
        1, description="Gateway processes; scale with `replicas` or several instances."
    )
    api_keys: CommaSeparated[KeySettings] = Field(
        (), description="Keys: `KEY`, `sha256:HEX` of it, or with name, models and limits."
    )
    api_keys_file: Path | None = Field(
        None, description="File of keys, reread on SIGHUP; default: systemd's `embedding-keys`."
    )
    api_keys_env: CommaSeparated[str] = Field(
        ("API_TOKEN", "API_KEY"), description="Variables that may hold one more key each."
    )
    rate_limit_requests: Rate | None = Field(
        None, description="Requests of each key, or of each address where there are no keys."
    )
    rate_limit_tokens: Rate | None = Field(
        None, description="Tokens to be computed, counted in the same way."
    )
    rate_limit_paths: dict[str, Rate] = Field(
        {}, description="Rates of requests to single paths, in place of rate_limit_requests."
    )
    redis_url: SecretStr | None = Field(
        None, description="redis:// or rediss://; limits and cache are shared by all who use it."
    )
    redis_prefix: str = Field("embedding:", description="Beginning of all our names in Redis.")
    allow_anonymous: bool = Field(False, description="Serve other machines without any key.")
    trusted_proxies: CommaSeparated[Proxy] = Field(
        (), description="Addresses or networks whose X-Forwarded-For is believed; `*` for all."
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[\w.~-]+)*/?$",
        description="Path under which a proxy serves this, if it sends no X-Forwarded-Prefix.",
    )
    cors_origins: CommaSeparated[str] = Field(
        (), description="Origins that browsers may call from."
    )
    docs: Annotated[Literal["open", "key", "off"], BeforeValidator(_yaml_off)] = Field(
        "open", description="Access to /docs and /openapi.json."
    )
    ui: Annotated[Literal["open", "off"], BeforeValidator(_yaml_off)] = Field(
        "open", description="The page at /ui; what it asks for needs a key as ever."
    )
    metrics: Annotated[MetricsAccess, BeforeValidator(_yaml_off)] = Field(
        "loopback", description="Access to /metrics; loopback: other hosts need a key."
    )
    otlp_endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = Field(
        None,
        pattern="^https?://",
        description="Address that traces go to (OTLP over HTTP), such as http://localhost:4318.",
    )
    unknown_model: Literal["reject", "serve_default"] = Field(
        "reject", description="Refuse requests for other models, or give them to the default one."
    )
    echo_model: bool = Field(False, description="Answers name the model as the request did.")
    default_truncate: Truncate = Field(
        Truncate.ERROR, description="Treatment of over-long inputs in requests that do not say."
    )
    model_checksum: Literal["settings", "legacy"] = Field(
        "settings",
        description="Contents of a model's checksum; legacy: md5 of name and dimensions only.",
    )
    records: RecordSettings = Field(
        PLAIN_RECORDS,
        description="Fields of records, and the template that makes one text of them.",
    )
    sparse_token_mapping: Literal["tokenizer", "hash"] = Field(
        "tokenizer", description="Indices of sparse vectors: token ids, or hashes of them."
    )
    sparse_index_space: int = Field(1 << 20, ge=1, description="Hashed indices lie below this.")
    runtime_dir: Path | None = Field(
        None, description="Folder for sockets (mode 0700); default: a fresh one."
    )

    state_dir: Path | None = Field(
        None, description="Holds files and batches (/v1/files, /v1/batches); default: neither."
    )
    max_file_bytes: int = Field(200 << 20, ge=1024, description="Largest uploaded file.")
    max_files: int = Field(1000, ge=1, description="Most files of one key.")
    max_stored_bytes: int = Field(
        20 << 30, ge=1024, description="Most bytes in the files of one key."
    )
    file_ttl_s: float = Field(
        2_592_000, ge=3600, description="Longest that files and finished batches are kept."
    )
    max_batches: int = Field(100, ge=1, description="Most unfinished batches of one key.")
    max_batch_lines: int = Field(50_000, ge=1, description="Most requests in one batch.")

    max_inputs: int = Field(2048, ge=1, description="Most inputs in one request.")
    max_text_characters: int | None = Field(
        None, ge=1, description="Most characters of one text; default: no limit."
    )
    over_long_texts: Literal["refuse", "cut"] = Field(
        "refuse", description="Treatment of texts with more than max_text_characters."
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, description="Most requests computed or waiting at a time; default: no limit."
    )
    max_request_tokens: int = Field(300_000, ge=1, description="Most tokens in one request.")
    max_body_bytes: int = Field(
        32 << 20, ge=1024, description="Largest request body, after inflation."
    )
    max_body_values: int | None = Field(
        None,
        ge=1,
        description="Most JSON values in a body; default: max_request_tokens, and 64 an input.",
    )
    max_inflight_body_bytes: int = Field(
        64 << 20,
        ge=1024,
        description="Most bytes of request bodies being read or served, after inflation.",
    )
    max_response_bytes: int = Field(
        256 << 20, ge=1024, description="Largest answer to one request."
    )
    max_inflight_response_bytes: int = Field(
        1 << 30, ge=1024, description="Most bytes of answers being computed or sent."
    )
    cache_max_bytes: int = Field(
        256 << 20, ge=0, description="Bytes of results kept in memory; 0: none."
    )
    cache_max_entries: int | None = Field(
        None, ge=1, description="Most results kept, whatever their size; default: no limit."
    )
    cache_ttl_s: float = Field(3600, gt=0, description="How long a result is kept.")
    cache_isolation: Literal["none", "tenant"] = Field(
        "none", description="tenant: nobody can tell from an answer's speed what others have asked."
    )
    cache_shared: bool = Field(True, description="With redis_url: keep results there, too.")
    max_queued_tokens: int = Field(
        2_000_000, ge=1, description="Most tokens admitted and not yet computed, per model."
    )
    request_timeout_s: float = Field(30, gt=0, description="Longest that a request may take.")
    header_timeout_s: float = Field(
        10, gt=0, description="Longest that headers may take to arrive."
    )
    body_timeout_s: float = Field(15, gt=0, description="Longest pause while a body arrives.")
    send_timeout_s: float = Field(
        60, gt=0, description="Longest that a client may leave a piece of its answer unread."
    )
    drain_timeout_s: float = Field(
        30, ge=0, description="Longest that accepted requests may take after SIGTERM."
    )
    drain_grace_s: float = Field(
        1,
        ge=0,
        description="After SIGTERM, new requests get 503 for so long; then the port closes.",
    )
    keep_alive_s: float = Field(
        75,
        gt=0,
        description="How long an idle connection stays; above nginx's 60 s, or it sees 502s.",
    )

    log_level: Annotated[LogLevel, BeforeValidator(_log_level)] = Field(
        "info", description="Least severity that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on terminals, JSON elsewhere."
    )

    @model_validator(mode="before")
    @classmethod
    def _hand_down_defaults(cls, data: Json) -> Json:
        """Give every entry of `models` the engine options that are set at the top level."""
        entries = data.get("models")
        if not isinstance(entries, list) or not entries:
            return data
        old = data.get("environment") or {}  # its EMBEDDING_MODEL_NAME may set something else
        for name in ModelOptions.model_fields:
            is_own = name not in EngineOptions.model_fields
            if (
                is_own and name in data and f"{ENV_PREFIX}{name.upper()}" not in old
            ):  # without effect
                raise ValueError(
                    f"{name}: belongs to one model; write it into an entry of `models`"
                )
        shared = {name: data[name] for name in EngineOptions.model_fields if name in data}
        models = [{**shared, **entry} if isinstance(entry, dict) else entry for entry in entries]
        return {**data, "models": models}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        owners: dict[str, ModelOptions] = {}
        for model in self.served_models:
            for name in model.names:
                if name in owners:
                    raise _shared_name(name, owners[name], model)
                owners[name] = model
        return self

    @property
    def keys_path(self) -> Path | None:
        """The file of keys: the one that is set, else systemd's credential if there is one.

        A credential that cannot be looked at counts as one, so that its reader says why.
        """
        if self.api_keys_file is not None:
            return self.api_keys_file
        credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "embedding-keys")
        try:
            return credential if credential.is_file() else None
        except PermissionError:
            return credential

    @property
    def has_keys(self) -> bool:
        """Whether anything names a key."""
        in_environment = any(os.environ.get(name, "").strip() for name in self.api_keys_env)
        return bool(self.api_keys or self.keys_path or in_environment)

    @property
    def body_values(self) -> int:
        """JSON values that a body may have: room for token ids, and for records of many fields."""
        return self.max_body_values or self.max_request_tokens + _VALUES_AN_INPUT * self.max_inputs

    @property
    def served_models(self) -> tuple[ModelOptions, ...]:
        """The models to serve, the default one first."""
        if self.models:
            return self.models
        options = {name: getattr(self, name) for name in ModelOptions.model_fields}
        return (ModelOptions.model_construct(**options),)

    def effective(self) -> Json:
        """Return the whole tree as plain values, secrets masked.

        Names of our own settings hide nothing (`max_request_tokens`), but values may: a URL's
        password, and what `engine_args` hands on to vLLM.
        """
        own = type(self).model_fields.keys() - ModelOptions.model_fields.keys() - {"models"}
        tree = self.model_dump(mode="json", include=own)
        models = [model.model_dump(mode="json") for model in self.served_models]
        return {name: masked([value])[0] for name, value in tree.items()} | {
            "models": list(map(_masked_options, models))
        }


def _shared_name(name: str, first: ModelOptions, second: ModelOptions) -> ValueError:
    """Return an error about a name that two models have, or that one has twice."""
    if first is second:
        return ValueError(f"aliases: {name!r} is the model's own name; leave it out")
    if name == first.model_name == second.model_name:
        return ValueError(f"model_name: two models are called {name!r}; give one another name")
    both = f"{first.model_name} and {second.model_name}"
    return ValueError(f"aliases: {name!r} names both {both}; give it to one")


def _masked_options(options: Json) -> Json:
    return {
        name: masked(value) if name == "engine_args" else masked([value])[0]
        for name, value in options.items()
    }
