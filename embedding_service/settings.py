"""The only place where a setting exists: YAML file, then `EMBEDDING_*`, then flags, in rising order.

Reads the environment and one file; never imports the engine, the core or the API.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from embedding_service.errors import BadConfiguration
from embedding_service.presets import PLAIN_RECORDS, OldVariables, Preset, RecordSettings, apply_old_variables
from embedding_service.types import InputType, TokenIdPolicy, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ENV_PREFIX = "EMBEDDING_"


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _alias_mapping(value: object) -> object:
    value = _comma_separated(value)
    return {name: {} for name in value} if isinstance(value, list) else value


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
Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_enum_values=False)


class KeySettings(_Strict):
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


class AliasSettings(_Strict):
    """Another name for a model, with the prompt that requests under this name get by default."""

    instruction: str | None = None
    input_type: InputType | None = None
    prompt_name: str | None = None


class EngineOptions(_Strict):
    """How one model is loaded and run. Every option is also a default for the entries of `models`."""

    engine: Literal["vllm", "fake"] = Field("vllm", description="`fake` serves made-up vectors, for tests.")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where the model runs.")
    devices: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_comma_separated)] = Field(
        (), description="CUDA device numbers; replicas take them in turn. Empty: all that are visible."
    )
    replicas: int = Field(1, ge=1, le=64, description="Engine processes for the model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the hardware computes in it, else float32."
    )
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="Devices that one replica is spread over.")
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1, description="Share of a device that one replica may take.")
    max_model_len: int | None = Field(None, ge=1, description="Longest input in tokens; default: the model's own.")
    max_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Texts in one engine step."
    )
    batch_timeout_ms: float = Field(
        10, ge=0, le=1000, description="Longest that an idle engine gathers, while other requests are on their way."
    )
    enforce_eager: bool | Literal["auto"] = Field("auto", description="auto: encoders on a CPU run eager.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Passed on to vLLM's EngineArgs.")
    startup_timeout_s: float = Field(1800, gt=0, description="Download, load and warm-up together.")

    def devices_of(self, replica: int) -> list[str]:
        """Name the devices of one replica: numbers from `devices`, taken in turn, else the first ones there are."""
        count = self.tensor_parallel_size
        if not self.devices:
            return ["cpu"] if self.device == "cpu" else [f"device {rank}" for rank in range(count)]
        return [f"device {self.devices[(replica * count + rank) % len(self.devices)]}" for rank in range(count)]


class ModelOptions(EngineOptions):
    """One served model."""

    model_name: str = Field("Qwen/Qwen3-Embedding-0.6B", min_length=1, description="Public name and hub id.")
    model_path: str | None = Field(None, description="Local folder, or `package:NAME/FOLDER`; wins over the hub.")
    aliases: Annotated[dict[str, AliasSettings], BeforeValidator(_alias_mapping), NoDecode] = Field(
        default_factory=dict, description="Further public names: a list, or name → default prompt."
    )
    task: Literal["auto", "embed", "rerank"] = Field("auto", description="auto: by the model's architecture.")
    required: bool | None = Field(None, description="Does readiness depend on it? Default: the first model only.")
    instruction_template: str | None = Field(
        None, pattern=r"\{instruction\}", description="Holds `{instruction}`; default: by model family."
    )
    default_instruction: str | None = Field(None, description="For `input_type: query` without an instruction.")
    matryoshka: bool | None = Field(None, description="May vectors be cut? Default: by model family.")
    calibration_file: Path | None = Field(
        None, description="JSON with `min` and `max` of each dimension, which int8 and uint8 then reach from and to."
    )
    expected_dimension: int | None = Field(None, ge=1, description="Refuse to start if vectors have another size.")
    token_ids: TokenIdPolicy = Field(TokenIdPolicy.CL100K, description="How inputs sent as token ids are read.")


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
    api_keys: Annotated[tuple[KeySettings, ...], NoDecode, BeforeValidator(_comma_separated)] = Field(
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
        tuple[Annotated[str, AfterValidator(_check_proxy)], ...], NoDecode, BeforeValidator(_comma_separated)
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

    log_level: Literal["debug", "info", "warning", "error"] = "info"
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


def load(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> tuple[Settings, list[str]]:
    """Read file, environment and flags; return the settings and warnings worth a log line.

    Raises `BadConfiguration` with one line that names the field.
    """
    service_link = os.environ.get(f"{ENV_PREFIX}PORT", "")
    if service_link.startswith("tcp://"):
        raise BadConfiguration(
            f"EMBEDDING_PORT is {service_link!r}, which Kubernetes sets for a service named 'embedding'; "
            "set enableServiceLinks: false on the pod, or rename the service"
        )
    tree = _read_yaml(config) if config else {}
    applied: dict[str, str] = {}
    try:
        ignored = apply_old_variables(tree, os.environ, applied)
        settings: Settings = type("BoundSettings", (Settings,), {"yaml_tree": tree})(**(flags or {}))
    except BadConfiguration:
        raise
    except ValidationError as error:
        raise BadConfiguration(one_line(error, applied)) from None
    except Exception as error:  # noqa: BLE001 - pydantic-settings' own SettingsError, by way of JSON in the environment
        raise BadConfiguration(str(error).splitlines()[0]) from None
    return settings, ignored + _unknown_variables(os.environ, settings.environment)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise BadConfiguration(f"{path}: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadConfiguration(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    for key in tree:
        if not isinstance(key, str):
            raise BadConfiguration(f"{path}: {key!r} is not the name of a setting")
    return tree


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of a silent loss."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor`, which may come more than once
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice, line {node.start_mark.line + 1} ff.")
        return super().construct_mapping(node, deep)


def one_line(error: ValidationError, sources: Mapping[str, str] | None = None) -> str:
    """Return every problem with its place and never a value, which might be a secret.

    `sources` names variables that set what is at a place.
    """
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        if sources and where in sources:
            where = f"{sources[where]} (which sets {where})"
        if item["type"] == "extra_forbidden":
            fields = ModelOptions.model_fields if item["loc"][0] == "models" else Settings.model_fields
            what = "no such setting" + _did_you_mean(str(item["loc"][-1]), fields)
        problems.append(f"{where}: {what}" if where else what)
    return "; ".join(problems)


def _did_you_mean(name: str, fields: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only on the way out

    close = get_close_matches(name, fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _unknown_variables(environ: Mapping[str, str], old: Iterable[str]) -> list[str]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {f"{ENV_PREFIX}CONFIG", *old}
    kubernetes = re.compile(r"_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP).*)$")
    return [
        f"{name} is set and means nothing here"
        + _did_you_mean(name.removeprefix(ENV_PREFIX).lower(), Settings.model_fields)
        for name in sorted(environ)
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known and not kubernetes.search(name)
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
