"""The page at `/ui`: who gets it, under which addresses and headers, and what it asks for."""

from __future__ import annotations

import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest
from setuptools import build_meta

import embedding_service
from tests.calls import embed, error_of
from tests.conftest import FAKE
from tests.dropin.conftest import preset_settings, start_preset  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

FOLDER = Path(embedding_service.__file__).parent / "http" / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
KEY = "sk-only-for-tests"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
JAVA = "text/html, image/gif, image/jpeg, */*; q=0.2"  # HttpURLConnection's own
ALLOWED = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@pytest.fixture(scope="module")
def keyed(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client without a key of a gateway that wants one, and keeps results."""
    gateway = start_gateway(**FAKE, api_keys=[KEY], cache_max_bytes=1 << 20)
    with gateway.client() as http:
        yield http


class Page(HTMLParser):
    """All that a page asks its host for, and all that the policy would forbid."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.labelled: set[str | None] = set()
        self.controls: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        address = given.get("src") if tag == "script" else given.get("href")
        if tag in ("script", "link") and not (address or "").startswith("data:"):
            self.addresses.append(address or "")
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "label":
            self.labelled.add(given.get("for"))
        if tag in ("input", "select", "textarea") and "id" in given:
            self.controls.append(given["id"])


def page_at(http: httpx.Client, path: str, **headers: str) -> Page:
    response = http.get(path, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return Page(response.text)


def test_it_is_small() -> None:
    """All files together have at most 60 KB, and fewer than 1,000 lines, which can be read."""
    lines = [line for name in FILES for line in (FOLDER / name).read_text("utf-8").splitlines()]
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= 60_000
    assert len(lines) < 1000
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", ["", *(f"/{name}" for name in FILES if name != "index.html")])
def test_files_are_open_and_guarded(keyed: httpx.Client, name: str) -> None:
    """Everybody gets the files, with a policy that lets nothing in from elsewhere or inline."""
    response = keyed.get(f"/ui{name}")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"].split("; ")
    assert dict(directive.split(" ", 1) for directive in policy) == ALLOWED
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    head = keyed.head(f"/ui{name}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("weak", ["", "W/"])
def test_what_a_browser_has_is_not_sent_again(keyed: httpx.Client, weak: str) -> None:
    """A known entity tag gets an empty 304, also one that a proxy has weakened."""
    first = keyed.get("/ui/app.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = weak + first.headers["etag"]
    again = keyed.get("/ui/app.js", headers={"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert keyed.get("/ui/app.js", headers={"if-none-match": '"other"'}).status_code == 200


def test_nothing_is_inline_and_all_is_labelled(keyed: httpx.Client) -> None:
    """The page keeps its own policy, and every control has a label."""
    page = page_at(keyed, "/ui")
    assert page.inline == []
    wrapped = {"look-instance", "look-live"}  # inside of their labels
    assert {*page.controls} - wrapped == page.labelled - {None}
    assert "<style" not in keyed.get("/ui").text


@pytest.mark.parametrize("name", SCRIPTS)
def test_texts_never_become_html(name: str) -> None:
    """No script parses HTML or evaluates text, and none knows another host."""
    source = (FOLDER / name).read_text("utf-8")
    forbidden = (
        "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval|Function|srcdoc|DOMParser"
    )
    assert re.findall(rf"\b(?:{forbidden})\b", source) == []
    assert set(re.findall(r"https?://[\w./]+", source)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    ("opened", "sent", "settings"),
    [
        ("/ui", "/ui", {}),
        ("/ui/", "/ui/", {}),
        ("/", "/", {}),
        ("/models/ui", "/ui", {}),  # behind a proxy that takes its path off and does not tell
        ("/models/ui/", "/ui/", {}),
        ("/models/", "/", {}),
        ("/models/ui", "/models/ui", {"root_path": "/models"}),
        ("/models/ui/", "/models/ui/", {"root_path": "/models"}),
        ("/models/", "/models/", {"root_path": "/models"}),
        ("/models", "/models", {"root_path": "/models"}),
        ("/deep/ui/", "/deep/ui/", {"root_path": "/deep/ui"}),
    ],
)
def test_addresses_follow_the_path_that_was_opened(
    shared_gateway: Callable[..., RunningGateway], opened: str, sent: str, settings: dict[str, str]
) -> None:
    """Whatever a proxy does to the path, the files are where the page says."""
    prefix = settings.get("root_path") or opened.removesuffix("/").removesuffix("/ui")
    with shared_gateway(**FAKE, **settings).client() as http:
        page = page_at(http, sent, accept=BROWSER)
        assert len(page.addresses) == 2
        for address in page.addresses:
            path = urljoin(f"http://host{opened}", address).removeprefix("http://host")
            assert path in {f"{prefix}/ui/{name}" for name in FILES}
            assert http.get(path.removeprefix(prefix)).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/html", JAVA])
def test_programs_get_json_at_the_root(client: httpx.Client, accept: str) -> None:
    """`/` is a page to browsers alone."""
    assert client.get("/", headers={"accept": accept}).json()["service"] == "embedding-service"
    assert page_at(client, "/", accept=BROWSER).addresses
    assert client.head("/", headers={"accept": BROWSER}).status_code == 200


def test_a_browser_cannot_be_asked_for_a_key(keyed: httpx.Client) -> None:
    """The root is as open as the page itself, and posting there is not."""
    assert page_at(keyed, "/", accept=BROWSER).addresses
    assert keyed.get("/").status_code == 401
    assert keyed.post("/", json={"inputs": "w1"}, headers={"accept": BROWSER}).status_code == 401


@pytest.mark.parametrize("preset", ["tei", "matching-service", "qwen3-embedding"])
def test_an_old_system_keeps_its_root(
    start_preset: Callable[..., RunningGateway],  # noqa: F811
    preset: str,
) -> None:
    """Where a preset replaces a system, `/` is that system's, and the page is at `/ui`."""
    with start_preset(preset).client() as http:
        assert "html" not in http.get("/", headers={"accept": BROWSER}).headers.get(
            "content-type", ""
        )
        assert page_at(http, "/ui").addresses


def test_it_can_be_switched_off(start_gateway: Callable[..., RunningGateway]) -> None:
    """With `ui: off` there is no page, no figures, and the root is everybody's JSON."""
    with start_gateway(**FAKE, ui="off").client() as http:
        for path in ("/ui", "/ui/", "/ui/app.js", "/ui/figures"):
            assert http.get(path, headers={"accept": BROWSER}).status_code == 404
        assert http.get("/", headers={"accept": BROWSER}).json()["status"] == "running"


@pytest.mark.parametrize(("docs", "shown"), [("open", True), ("key", False), ("off", False)])
def test_it_leads_to_the_documentation(
    shared_gateway: Callable[..., RunningGateway], docs: str, shown: bool
) -> None:
    """The page has a link to the documentation where a browser may open that."""
    with shared_gateway(**FAKE, docs=docs).client() as http:
        assert ("API documentation" in http.get("/ui").text) is shown
        assert (http.get("/docs").status_code == 200) is (docs != "off")


def test_figures_need_a_key(keyed: httpx.Client) -> None:
    """The page's figures are as closed as the rest."""
    assert error_of(keyed.get("/ui/figures"), 401)["code"] == "invalid_api_key"
    assert keyed.get("/ui/figures", headers={"x-api-key": KEY}).status_code == 200


def test_figures_count(keyed: httpx.Client) -> None:
    """Rates, errors, times and the cache follow from the differences of two answers."""
    headers = {"authorization": f"Bearer {KEY}"}
    first = keyed.get("/ui/figures", headers=headers)
    assert first.headers["cache-control"] == "no-store"
    before = first.json()
    for text in ("w1 w2", "w1 w2", "w3"):
        assert embed(keyed, input=text, headers=headers).status_code == 200
    assert embed(keyed, input="", headers=headers).status_code == 400
    after = keyed.get("/ui/figures", headers=headers).json()
    assert after["instance"] == before["instance"]
    assert after["process"] == before["process"]
    assert after["time"] > before["time"]
    assert (after["status"], after["requests_in_flight"]) == ("ready", 0)
    assert after["requests"] - before["requests"] == 4
    assert after["errors"] - before["errors"] == 1
    assert after["seconds"]["+Inf"] - before["seconds"].get("+Inf", 0) == 4
    assert list(after["seconds"].values()) == sorted(after["seconds"].values())
    assert after["cache"]["hits"] - before["cache"]["hits"] == 1
    [model] = after["models"]
    assert (model["name"], model["ready"], model["device"]) == ("fake", True, "cpu")
    assert model["texts"] - before["models"][0]["texts"] == 3
    assert model["engine"]["+Inf"] - before["models"][0]["engine"].get("+Inf", 0) == 2
    assert model["replicas"][0]["restarts"] == 0
    assert model["queue_limit_tokens"] > model["queued_tokens"] == 0


def test_figures_without_a_cache(client: httpx.Client) -> None:
    """Where no results are kept, the figures say so."""
    assert client.get("/ui/figures").json()["cache"] is None


@pytest.mark.process
def test_a_wheel_has_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel's installation serves the page too."""
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / "embedding_service", tmp_path / "embedding_service")
    monkeypatch.chdir(tmp_path)
    name = build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        packed = {Path(path).name for path in wheel.namelist() if "/http/page/" in path}
    assert packed == {*FILES}
