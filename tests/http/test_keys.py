"""Keys: their sources and owners, and that nothing about them is ever shown."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from embedding_service.errors import BadConfiguration
from embedding_service.http.keys import KeyRing, new_key
from embedding_service.settings.gateway import Settings
from embedding_service.settings.load import load
from embedding_service.types import Tenant
from tests.test_cli import ENVIRONMENT, ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "emb-Kq7vR2mZ-the-secret"
HASHED = "sha256:" + hashlib.sha256(SECRET.encode()).hexdigest()


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out of the environment what would bring keys."""
    for name in ("API_TOKEN", "API_KEY", "CREDENTIALS_DIRECTORY", "EMBEDDING_API_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a file of keys may lie."""
    return tmp_path / "keys.yaml"


def ring(**settings: Any) -> KeyRing:
    return KeyRing(Settings(engine="fake", model_name="fake", aliases={"alias": {}}, **settings))


def from_file(path: Path, text: str | bytes, **settings: Any) -> KeyRing:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ring(api_keys_file=path, **settings)


def refusal(path: Path, text: str | bytes, **settings: Any) -> str:
    """Return the line with which a file of keys is refused."""
    with pytest.raises(BadConfiguration) as caught:
        from_file(path, text, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def unnamed(key: str) -> str:
    """Return the name of a key that has none: the same everywhere, and nothing of its digest."""
    return (
        "key-" + hashlib.sha256(b"name of " + hashlib.sha256(key.encode()).digest()).hexdigest()[:8]
    )


def name_of(known: KeyRing, key: str) -> str | None:
    tenant = known.find(key.encode())
    return tenant and tenant.name


# --- sources --------------------------------------------------------------------------------------


def test_keys_come_from_settings() -> None:
    """Bare keys, digests and entries with a name work side by side, and nothing else does."""
    known = ring(api_keys=["one", HASHED, {"name": "third", "key": "three"}])
    assert [name_of(known, key) for key in ("one", SECRET, "three")] == [
        unnamed("one"),
        unnamed(SECRET),
        "third",
    ]
    assert len(known) == 3
    for wrong in (
        "",
        "two",
        HASHED,
        HASHED.removeprefix("sha256:"),
        "on",
        "one ",
        "One",
        unnamed("one"),
        "third",
    ):
        assert known.find(wrong.encode()) is None


def test_keys_come_from_our_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMBEDDING_API_KEYS holds keys and digests, separated by commas."""
    monkeypatch.setenv("EMBEDDING_API_KEYS", f"one, {HASHED}")
    settings, _ = load(None, {"engine": "fake"})
    known = KeyRing(settings)
    assert len(known) == 2
    assert name_of(known, SECRET) == unnamed(SECRET)


@pytest.mark.parametrize("variable", ["API_TOKEN", "API_KEY"])
def test_keys_come_from_usual_variables(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """API_TOKEN and API_KEY hold one more key each, which is named after its variable."""
    monkeypatch.setenv(variable, f" {SECRET}\n")
    known = ring(api_keys=["one"])
    assert len(known) == 2
    assert name_of(known, SECRET) == variable.lower()


def test_variables_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `api_keys_env`, other variables are read and the usual ones are not."""
    monkeypatch.setenv("API_TOKEN", "usual")
    monkeypatch.setenv("MY_TOKEN", SECRET)
    known = ring(api_keys_env=["MY_TOKEN"])
    assert (name_of(known, SECRET), name_of(known, "usual"), len(known)) == ("my_token", None, 1)


@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_a_blank_variable_is_no_key(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A variable of blanks is no key, and no excuse for listening to other machines."""
    monkeypatch.setenv("API_TOKEN", value)
    assert len(ring()) == 0
    with pytest.raises(BadConfiguration, match=r"^host: 0\.0\.0\.0"):
        load(None, {"host": "0.0.0.0"})


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"{SECRET}\n",
        HASHED,
        f"- {SECRET}\n",
        f"- {HASHED}\n- other\n",
        f"key: {SECRET}\n",
        f"- name: team\n  key: {HASHED}\n",
        f'["{SECRET}"]',
        f"# a comment\n- key: '{SECRET}'\n  models: [fake]\n  requests: 5/minute\n",
    ],
)
def test_keys_come_from_a_file(path: Path, text: str) -> None:
    """A file holds a list of entries as in settings, or a single key."""
    assert name_of(from_file(path, text), SECRET) is not None


def test_an_entry_says_what_a_key_may_do() -> None:
    """Name, models and rates of an entry become its owner's."""
    entry = {
        "name": "team",
        "key": SECRET,
        "models": ["fake"],
        "requests": "5/minute",
        "tokens": "100/hour",
    }
    tenant = ring(api_keys=[entry]).find(SECRET.encode())
    assert tenant == Tenant("team", frozenset({"fake"}), "5/minute", "100/hour")


def test_keys_come_from_a_systemd_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credential `embedding-keys` is the file of keys unless another is set: there are keys."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert len(ring()) == 0
    (tmp_path / "embedding-keys").write_text(SECRET, encoding="utf-8")
    assert name_of(ring(host="0.0.0.0"), SECRET) == unnamed(SECRET)
    other = tmp_path / "other"
    assert name_of(from_file(other, "another"), SECRET) is None


def test_a_credential_that_nobody_may_look_at_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not count as none, with which a service would be open; its reader says why."""

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    with pytest.raises(BadConfiguration, match=r"api_keys_file: \S+embedding-keys: "):
        ring()


def test_all_sources_count_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, variables and file are one ring; unnamed keys are numbered through."""
    monkeypatch.setenv("API_KEY", "two")
    known = from_file(path, "- three\n- name: four\n  key: '4'\n", api_keys=["one"])
    assert [name_of(known, key) for key in ("one", "two", "three", "4")] == [
        unnamed("one"),
        "api_key",
        unnamed("three"),
        "four",
    ]


def test_keys_beyond_ascii_are_utf_8(path: Path) -> None:
    """A key may hold any character; what is sent is compared as UTF-8."""
    assert from_file(path, "schlüssel").find("schlüssel".encode()) is not None


# --- what is refused ------------------------------------------------------------------------------


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer kept the start, and each SIGHUP, for ever."""
    path = tmp_path / "keys"
    os.mkfifo(path)
    with pytest.raises(BadConfiguration, match="is a pipe; name a file of keys"):
        KeyRing(Settings(engine="fake", api_keys_file=path))


# Each line has the one before twenty times: 1.3 thousand million entries.
MERGES = "- &a {key: x}\n" + "".join(
    f"- &{name} {{<<: [{', '.join([f'*{before}'] * 20)}]}}\n"
    for before, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key; `embedding-service keys new`"),
        ("\n\n# nothing\n", "holds no key"),
        ("[]", "holds no key"),
        ("{}", "holds no key"),
        (f"- {SECRET}\n- {SECRET}: x: y", "line 2 is not valid YAML; put keys in quotes"),
        (f"- '{SECRET}\n", "is not valid YAML"),
        (f"- @{SECRET}\n", "line 1 is not valid YAML"),
        (f"- !!python/name:{SECRET} x\n", "line 1 is not valid YAML"),
        (f"{SECRET}\0", "is not valid YAML"),
        ("2001-99-99", "is not valid YAML"),
        ("7" * 5000, "is not valid YAML"),
        ("[" * 60, "is not valid YAML"),
        ("[" * 1000 + "]" * 1000, "is nested more than 64 levels deep; write a list of keys"),
        ("- " * 100_000, "is nested more than 64 levels deep"),  # a segmentation fault
        (MERGES, "merges more than 1000 entries by `<<`; write a list of keys"),
        (b"\xff" + SECRET.encode(), "UTF-8"),
        ("- one\n- 730185\n", "entry 2: a key is text; put it in quotes"),
        ("- key: 730185\n", "entry 1: a key is text"),
        ("- true\n", "a key is text"),
        ("- 2024-01-01\n", "entry 1"),
        ("-\n", "entry 1"),
        (f"- [{SECRET}]\n", "entry 1"),
        ("- ''\n", "must not be empty"),
        ("- name: team\n", "entry 1: key: "),
        (
            f"- {SECRET}: team\n",
            "entry 1: an entry has name, key, models, requests, tokens, require_vector_space and nothing else",
        ),
        (f"- key: {SECRET}\n  modles: [fake]\n", "an entry has name, key, models"),
        (f"- key: {SECRET}\n  name: ''\n", "entry 1: name: expected a length of at least 1"),
        (f"- key: {SECRET}\n  models: []\n", "entry 1: models: expected a length of at least 1"),
        (f"- key: {SECRET}\n  models: fake\n", "entry 1: models: expected a list, such as [a, b]"),
        (
            f"- key: {SECRET}\n  requests: 5 a minute\n",
            "entry 1: requests: expected a number per time, such as 100/minute",
        ),
        (f"- key: {SECRET}\n  tokens: 0/minute\n", "entry 1: tokens: "),
        (
            f"- key: sha256:{SECRET}\n",
            "entry 1: key: sha256: must be followed by the 64 hexadecimal digits",
        ),
        (f"- key: {SECRET}\n  models: [fake, other]\n", "models: 'other' is not served here"),
        (f"- {SECRET}\n- {HASHED}\n", "are the same key; leave one of them out"),
        (
            f"- {{name: a, key: {SECRET}}}\n- {{name: a, key: b}}\n",
            "entry 2: two keys are called 'a'",
        ),
        ("# " + "x" * (1 << 20) + f"\n- {SECRET}\n", "larger than 1 MiB"),
        (f"- {SECRET}\n" + "# x\n" * (1 << 18), "larger than 1 MiB"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(path: Path, text: str | bytes, words: str) -> None:
    """A wrong file of keys is one line with its name and what to do, and no part of a key."""
    message = refusal(path, text)
    assert words in message
    for part in (
        SECRET,
        SECRET[:7],
        SECRET[-7:],
        "730185",
        "2001-99",
        "2024-01",
        "7777",
        HASHED[7:15],
    ):
        assert part not in message.replace(str(path), "")


def test_a_file_that_cannot_be_read_is_told(path: Path) -> None:
    """A missing file, or a folder in its place, is told by name and reason."""
    for wrong, words in ((path, "No such file"), (path.parent, "Is a directory")):
        with pytest.raises(BadConfiguration) as caught:
            ring(api_keys_file=wrong)
        assert str(caught.value).startswith(f"api_keys_file: {wrong}: {words}")


@pytest.mark.parametrize(
    "entry", [f"sha256:{SECRET}", {SECRET: "team"}, {"key": SECRET, "modles": []}]
)
def test_wrong_settings_do_not_show_a_key(entry: Any) -> None:
    """Keys in the settings themselves are not repeated either."""
    with pytest.raises(BadConfiguration) as caught:
        load(None, {"api_keys": [entry]})
    assert str(caught.value).startswith("api_keys[0]")
    assert SECRET not in str(caught.value)


def test_the_same_key_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that belongs to two is refused wherever it stands, instead of one silently winning."""
    monkeypatch.setenv("API_TOKEN", SECRET)
    with pytest.raises(BadConfiguration, match=r"^API_TOKEN: api_token and team are the same key"):
        ring(api_keys=[{"name": "team", "key": HASHED}])


@pytest.mark.process
def test_a_wrong_file_ends_start_up_in_one_line(path: Path) -> None:
    """`serve` exits with 2 and one line, before any model is touched."""
    path.write_text(f"- {SECRET}: x\n", encoding="utf-8")
    arguments = [
        "--engine",
        "fake",
        "--port",
        "0",
        "--api-keys-file",
        str(path),
        "--engine-args",
        "{refuse: loaded}",
    ]
    done = run("serve", *arguments)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"embedding-service: api_keys_file: {path}: ")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr + done.stdout


# --- reload ---------------------------------------------------------------------------------------


def test_reload_swaps_keys(path: Path) -> None:
    """After a reload the file's present keys are known and its former ones are not."""
    known = from_file(path, "- old\n", api_keys=["always"])
    path.write_text("- new\n", encoding="utf-8")
    assert known.find(b"old") is not None
    known.reload()
    assert [known.find(key) is not None for key in (b"old", b"new", b"always")] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "text", ["", "- [", "- 5\n", "- {key: a, models: [other]}\n", "- a\n- a\n", None]
)
def test_a_wrong_file_changes_nothing(path: Path, text: str | None) -> None:
    """A reload of a wrong, empty or missing file raises and keeps the keys there are."""
    known = from_file(path, "- old\n")
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(BadConfiguration):
        known.reload()
    assert name_of(known, "old") == unnamed("old")
    assert len(known) == 1


def test_a_running_service_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last source of keys is gone, the keys stay."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    credential = tmp_path / "embedding-keys"
    credential.write_text("old", encoding="utf-8")
    known = ring()
    credential.unlink()
    with pytest.raises(BadConfiguration, match="not opened to everybody"):
        known.reload()
    assert name_of(known, "old") == unnamed("old")


# --- secrecy --------------------------------------------------------------------------------------


def test_only_digests_are_kept(path: Path) -> None:
    """Nothing that the ring keeps, its settings included, shows a key."""
    known = from_file(path, f"- {{name: team, key: {SECRET}}}\n", api_keys=["another-secret"])
    assert len(known) == 2
    assert SECRET not in repr(vars(known))
    assert "another-secret" not in repr(vars(known))


def test_a_look_up_costs_the_same_however_many_keys_there_are() -> None:
    """A key is found among many by its digest, not by comparing it with each of them."""
    few, many = ring(api_keys=["0", "1"]), ring(api_keys=[str(number) for number in range(500)])

    def calls(known: KeyRing, key: bytes) -> int:
        """Return how many functions one look-up calls."""
        events: list[str] = []
        sys.setprofile(lambda _, event, __: events.append(event))
        try:
            known.find(key)
        finally:
            sys.setprofile(None)
        return len(events)

    assert [name_of(many, str(number)) for number in range(500)] == [
        unnamed(str(n)) for n in range(500)
    ]
    assert calls(few, b"1") == calls(many, b"1") == calls(many, b"499") == calls(many, b"wrong")


def test_new_keys_are_random() -> None:
    """A new key says what it is for and holds 256 random bits."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("emb-") and len(key) == 4 + 43 for key in made)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["--name", "team"], ["--name", "team", "--models", "fake, alias"]]
)
@pytest.mark.process
def test_keys_new_writes_an_entry(path: Path, arguments: list[str]) -> None:
    """`keys new` prints a line for the file; the key goes to standard error alone, once."""
    done = run("keys", "new", *arguments)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    key = line.rpartition(" ")[2]
    assert key not in done.stdout
    tenant = from_file(path, done.stdout).find(key.encode())
    assert tenant is not None
    assert tenant.name == ("team" if arguments else unnamed(key))
    assert tenant.models == (frozenset({"fake", "alias"}) if "--models" in arguments else None)
    (entry,) = yaml.safe_load(done.stdout)
    assert entry["key"] == "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\nmore\n"])
@pytest.mark.process
def test_keys_hash_reads_standard_input(ending: str) -> None:
    """`keys hash` prints the digest of the first line, without its end."""
    done = _hash(SECRET + ending)
    assert (done.returncode, done.stdout, done.stderr) == (0, HASHED + "\n", "")


@pytest.mark.process
def test_keys_hash_of_nothing_is_refused() -> None:
    """The digest of the empty key would let everybody in."""
    done = _hash("\n")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def _hash(text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedding_service", "keys", "hash"]
    return subprocess.run(
        command,
        input=text,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
