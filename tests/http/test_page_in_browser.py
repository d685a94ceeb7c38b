"""The page at `/ui` in Chromium: all three views by keyboard, in every light, with axe's rules.

`PAGE_SHOTS=folder` keeps a screenshot of each view.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from embedding_service.types import Output
from embedding_service.worker.fake import fake_vectors
from tests.calls import embed, ids_of, unit_vectors
from tests.clients.conftest import KEY, requires
from tests.dialects.test_rerank import score
from tests.http.test_page import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Locator, Route

    from tests.conftest import RunningGateway

pytestmark = [pytest.mark.server, requires("chromium")]
expect.set_options(timeout=60_000)  # other tests use the same cores

SIZES = {"large": (1280, 900), "small": (360, 740)}
TEXTS = ["w1 w2", "w3", "w4 w5 w6"]
LONG = "w7 " * 70
HTML = "<img src=x onerror=alert(1)>"
MODELS: dict[str, Any] = {
    "engine": "fake",
    "port": 0,
    "api_keys": [KEY],
    "cache_max_bytes": 1 << 20,
    "max_model_len": 64,
    "models": [
        {
            "model_name": "m3",
            "replicas": 2,
            "engine_args": {"outputs": ["dense", "sparse", "colbert", "hidden_states"]},
        },
        {"model_name": f"plain {HTML}", "engine_args": {"prompts": {"query": "w9 "}}},
        {"model_name": "cross", "engine_args": {"outputs": ["score"]}},
    ],
}


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway with every kind of model, which wants a key."""
    gateway = start_gateway(**MODELS)
    gateway.wait_loaded()
    return gateway


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Debian's Chromium."""
    flags = ["--no-sandbox", "--disable-dev-shm-usage"]  # as root, and in small containers
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(
    browser: Browser, gateway: RunningGateway, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the page; whatever the browser complains about is an error."""
    complaints: list[str] = []
    contexts = []

    def open_(
        view: str = "try", *, key: str = KEY, size: str = "large", scheme: str = "light"
    ) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport={"width": width, "height": height},
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(f"{gateway.url}/ui#{view}")
        if key:
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
        if key == KEY:
            page.locator("#try-model option").first.wait_for(state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    refused = "Failed to load resource"  # the first request has no key; some tests ask for more
    assert [text for text in complaints if refused not in text] == []


def tab_to(page: Page, target: Locator, most: int = 40) -> None:
    """Press Tab until a control has the focus, which must be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            assert page.locator(":focus-visible").count() == 1
            return
    pytest.fail(f"{target} cannot be reached by keyboard")


def run_try(page: Page, texts: list[str], model: str = "m3") -> Locator:
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Texts").fill("\n".join(texts))
    page.get_by_role("button", name="Embed").click()
    page.locator("#try-result .facts").wait_for()
    return page.locator("#try-result")


def run_search(page: Page, passages: list[str], question: str) -> Locator:
    page.get_by_label("Passages").fill("\n".join(passages))
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#search-status")).to_contain_text("Ranked")
    return page.locator("#search-result")


def open_look(page: Page) -> Locator:
    page.get_by_role("link", name="Status").click()
    page.locator("#look-result .card").first.wait_for()
    return page.locator("#look-result")


@pytest.mark.parametrize(("scheme", "size"), [("light", "large"), ("dark", "small")])
def test_every_view_is_accessible(open_page: Callable[..., Page], scheme: str, size: str) -> None:
    """axe finds nothing in any view, empty or full, and no window is too small for it."""
    page = open_page(size=size, scheme=scheme)
    check(page, "try-empty", scheme, size)
    run_try(page, [TEXTS[0], LONG, *TEXTS[1:]])
    check(page, "try", scheme, size)
    page.get_by_role("link", name="Search").click()
    run_search(page, TEXTS, "w1")
    check(page, "search", scheme, size)
    open_look(page)
    check(page, "look", scheme, size)


def check(page: Page, view: str, scheme: str, size: str) -> None:
    if folder := os.environ.get("PAGE_SHOTS"):
        page.screenshot(path=Path(folder, f"{view}-{scheme}-{size}.png"), full_page=True)
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found] == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= SIZES[size][0]


def test_trying_by_keyboard(open_page: Callable[..., Page]) -> None:
    """From the skip link to the code, a keyboard is enough; numbers are the service's."""
    page = open_page(key="")
    tab_to(page, page.get_by_label("API key"))
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.locator("#try-model option").first.wait_for(state="attached")
    tab_to(page, page.get_by_label("Texts"))
    page.keyboard.press("Control+A")
    page.keyboard.type("\n".join(TEXTS))
    page.keyboard.press("Control+Enter")
    cells = page.locator("#try-result .matrix").first.locator("tbody td")
    expect(cells).to_have_count(9)
    vectors = unit_vectors(*TEXTS)
    shown = [float(text) for text in cells.all_inner_texts()]
    np.testing.assert_allclose(shown, (vectors @ vectors.T).ravel(), atol=0.0051)
    tab_to(page, page.get_by_role("radio", name="curl"))
    page.keyboard.press("ArrowRight")
    expect(page.locator("pre")).to_contain_text("from openai import OpenAI")
    tab_to(page, page.get_by_role("button", name="Copy"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("Copied.").or_(page.get_by_text("Selected:"))).to_be_visible()
    page.get_by_role("link", name="Status").press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_what_a_text_is_read_as(open_page: Callable[..., Page]) -> None:
    """Tokens are shown with the prompt, special ones apart, and with the place of the cut."""
    result = run_try(open_page(), ["w1", LONG])
    short, long = result.locator(".tokens > li").all()
    assert short.locator(".token").all_inner_texts() == ["[CLS]", "w1", "[SEP]"]
    expect(short.locator(".cut")).to_have_count(0)
    expect(long).to_contain_text("cut after 64 tokens")
    read = long.locator("span.strip .token").all_inner_texts()
    assert read == ["[CLS]", *["w7"] * 62, "[SEP]"]
    expect(long).to_contain_text("8 not read")


def test_the_prompt_is_shown(open_page: Callable[..., Page]) -> None:
    """A query gets the model's prompt, its name is plain text, and what it lacks is not offered."""
    page = open_page()
    expect(page.get_by_label("query")).to_be_disabled()
    expect(page.get_by_label("Instruction")).to_be_disabled()
    expect(page.locator("#try-facts")).to_contain_text("no prompts")
    name = f"plain {HTML}"
    page.get_by_label("Model", exact=True).select_option(name)
    expect(page.locator("#try-facts")).not_to_contain_text("no prompts")
    page.get_by_label("query").check()
    result = run_try(page, [HTML, "w2"], model=name)
    assert result.locator(".tokens > li").last.locator(".token").all_inner_texts() == [
        "[CLS]", "w9", "w2", "[SEP]",
    ]  # fmt: skip
    expect(page.locator("img")).to_have_count(0)
    expect(result.locator(".of-row").first).to_have_text(HTML)
    expect(result.locator("pre")).to_contain_text('"input_type": "query"')


def test_lexical_weights_and_matches(open_page: Callable[..., Page]) -> None:
    """Weights are named by their tokens, and each token's best match is where it is nearest."""
    result = run_try(open_page(), ["w1 w2 w3", "w4 w5"])
    ids = ids_of("w1 w2 w3")
    rows = fake_vectors(ids, Output.SPARSE)
    expected = {f"w{int(token) - 100} {weight:.2f}" for token, weight in rows}
    shown = result.locator(".weights > li").first.locator(".weight").all_inner_texts()
    assert {" ".join(text.split()) for text in shown} == expected
    first, second = (fake_vectors(ids_of(text), Output.COLBERT) for text in ("w1 w2 w3", "w4 w5"))
    similar = first @ second.T
    best = result.locator(".tokens-by-tokens tbody tr").all()
    places = [row.locator("td").all_inner_texts() for row in best]
    marks = [[("●" in text) for text in row].index(True) for row in places]
    assert marks == similar.argmax(axis=1).tolist()
    expect(result.get_by_text("MaxSim")).to_contain_text(f"{similar.max(axis=1).mean():.3f}")


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_the_code_can_be_run(open_page: Callable[..., Page], language: str) -> None:
    """The copied request works, whatever quotes the texts have, and holds no key."""
    page = open_page()
    result = run_try(page, ['it\'s "w1" \\ $HOME `x`', f"é 🙂 {LONG}"], model="m3")
    page.get_by_role("radio", name=language).check()
    code = result.locator("pre").inner_text()
    assert KEY not in code
    command = (
        ["bash", "-c", f"{code} -s -f"] if language == "curl" else [sys.executable, "-c", code]
    )
    done = subprocess.run(
        command,
        env={**os.environ, "EMBEDDING_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if language == "Python":
        assert done.stdout == "2 32\n"
    else:
        assert json.loads(done.stdout)["usage"]["prompt_tokens"] == int(
            result.locator("dt", has_text="Tokens").locator("+ dd").inner_text()
        )


def test_search_by_keyboard(open_page: Callable[..., Page]) -> None:
    """Passages are ranked by each method as the service's own numbers rank them."""
    page = open_page("search")
    passages = ["w1 w2", "w3", "w4 w5 w6", "w2 w7"]
    tab_to(page, page.get_by_label("Passages"))
    page.keyboard.press("Control+A")
    page.keyboard.type("\n".join(passages))
    tab_to(page, page.get_by_label("Question"))
    page.keyboard.press("Control+A")
    page.keyboard.type("w2 w3")
    page.keyboard.press("Enter")
    expect(page.locator("#search-status")).to_have_text("Ranked 4 passages.")
    titles = page.locator(".ranking h2").all_inner_texts()
    assert titles == ["Dense", "Sparse", "ColBERT", "Hybrid", "Reranker"]
    dense = unit_vectors(*passages) @ unit_vectors("w2 w3")[0]
    logits = np.array([score("w2 w3", passage) for passage in passages])
    for title, scores in (("Dense", dense), ("Reranker", 1 / (1 + np.exp(-logits)))):
        items = page.locator(".ranking", has=page.get_by_role("heading", name=title)).locator("li")
        order = np.argsort(-scores)
        assert [int(each.get_attribute("data-passage") or "") for each in items.all()] == [*order]
        shown = [each.inner_text().split()[-1] for each in items.locator(".score").all()]
        np.testing.assert_allclose([*map(float, shown)], scores[order], atol=0.00051)
    note = page.locator(".ranking", has=page.get_by_role("heading", name="Hybrid")).locator(".note")
    expect(note).to_contain_text("Dense 0.4 + Sparse 0.2 + ColBERT 0.4")
    bars = page.locator(".ranking").first.locator(".bar-of")
    widths = [each.evaluate("bar => bar.style.getPropertyValue('--v')") for each in bars.all()]
    assert (widths[0], widths[-1]) == ("100%", "0%")  # from the least score to the greatest
    tab_to(page, page.locator(".passage").first)
    place = page.locator(".passage").first.get_attribute("data-passage")
    expect(page.locator(".passage.marked")).to_have_count(5)
    assert {
        each.get_attribute("data-passage") for each in page.locator(".passage.marked").all()
    } == {place}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "w1\r\n\nw2\n", "w1\nw2"),
        ("a.jsonl", '{"text": "w1\\nw2", "id": 1}\n"w3"\n', "w1 w2\nw3"),
        ("b.jsonl", '{"id": 1}\n', "Line 1 has no text"),
        ("b.ndjson", '"w1"\nnot\n', "Line 2 is not JSON"),
    ],
)
def test_passages_from_a_file(
    open_page: Callable[..., Page], name: str, content: str, expected: str
) -> None:
    """Text has a passage a line, JSON lines an object or a string; a wrong line is named."""
    page = open_page("search")
    file = {"name": name, "mimeType": "text/plain", "buffer": content.encode()}
    page.get_by_label("From a file").set_input_files([file])  # type: ignore[list-item]
    if expected.startswith("Line"):
        expect(page.locator("#search-status")).to_contain_text(expected)
    else:
        expect(page.get_by_label("Passages")).to_have_value(expected)


def test_more_passages_than_are_ranked(open_page: Callable[..., Page]) -> None:
    """Of more than 200 passages the first are ranked, and the page says so."""
    page = open_page("search")
    result = run_search(page, [f"w{i}" for i in range(250)], "w1")
    expect(page.locator("#search-status")).to_contain_text("the first 200 of 250")
    first = result.locator(".ranking").first
    expect(first.locator("li")).to_have_count(10)
    first.get_by_role("button", name="Show 190 more").click()
    expect(first.locator("li")).to_have_count(200)


def test_looking(open_page: Callable[..., Page], gateway: RunningGateway) -> None:
    """The figures move while somebody looks, and can be stopped."""
    page = open_page("look")
    cards = page.locator("#look-result .card")
    expect(cards).to_have_count(4)
    expect(cards.nth(1).locator("tbody tr")).to_have_count(2)
    expect(cards.nth(1)).to_contain_text("no restarts")
    with gateway.client(headers={"x-api-key": KEY}) as http:
        for place in range(20):
            assert embed(http, model="m3", input=f"w{1000 + place}").status_code == 200
    rate = cards.nth(1).locator("figcaption b").first
    expect(rate).not_to_have_text(re.compile(r"^(–|0/s)$"))
    p50 = cards.nth(1).locator("figcaption b").nth(1)
    expect(p50).to_contain_text("s")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("live").uncheck()
    page.wait_for_timeout(2500)
    assert len(asked) <= 1  # one may have been on its way


def test_several_instances(open_page: Callable[..., Page]) -> None:
    """Answers of several instances are kept apart, and the reader chooses."""
    page = open_page()
    names = iter(["a:1", "b:1"] * 100)

    def answer(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "instance": next(names)})

    page.route("**/ui/figures", answer)
    open_look(page)
    chosen = page.get_by_role("combobox", name="Instance")
    expect(chosen.locator("option")).to_have_text(["a:1", "b:1"])
    chosen.select_option("b:1")
    expect(page.locator("#look-result dd").first).to_have_text("b:1")
    page.unroute_all(behavior="wait")


@pytest.mark.parametrize(
    ("q", "before", "after", "expected"),
    [
        (0.5, {}, {"0.1": 0, "0.2": 10, "+Inf": 10}, 0.15),
        (0.5, {"0.1": 90, "0.2": 90, "+Inf": 90}, {"0.1": 90, "0.2": 100, "+Inf": 100}, 0.15),
        (0.99, {}, {"0.1": 98, "0.2": 100, "+Inf": 100}, 0.15),
        (0.99, {}, {"0.1": 1, "30.0": 1, "+Inf": 100}, 30),
        (0.5, {"+Inf": 3}, {"+Inf": 3}, None),
    ],
)
def test_quantiles_are_prometheus_own(
    open_page: Callable[..., Page], q: float, before: Any, after: Any, expected: float | None
) -> None:
    """Of what was counted between two histograms, interpolated within a bucket."""
    script = "async ([q, a, b]) => (await import('/ui/look.js')).quantile(q, a, b)"
    found = open_page().evaluate(script, [q, before, after])
    assert found == pytest.approx(expected) if expected is not None else np.isnan(found)


def test_a_key_is_kept_in_its_tab(open_page: Callable[..., Page]) -> None:
    """A wrong key is refused in the service's words; the right one is in no other tab's reach."""
    page = open_page(key="wrong")
    expect(page.get_by_role("alert").first).to_contain_text("Incorrect API key")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#notice")).to_be_empty()
    page.reload()
    page.locator("#try-model option").first.wait_for(state="attached")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_role("alert")).to_contain_text(
        "This service asks for a key: enter it above."
    )
    expect(other.get_by_role("button", name="Embed")).to_be_disabled()
    other.get_by_role("link", name="Status").click()
    expect(other.get_by_role("alert")).to_have_count(1)
    assert page.context.cookies() == []
    assert (
        other.evaluate(
            "() => Object.keys(localStorage).length + Object.keys(sessionStorage).length"
        )
        == 0
    )


def test_errors_are_shown_as_they_are(open_page: Callable[..., Page]) -> None:
    """A refusal comes with the service's message, its code and the request's id."""
    page = open_page()
    page.get_by_label("Texts").fill("fault-reject")
    page.get_by_role("button", name="Embed").click()
    error = page.locator("#try-result").get_by_role("alert")
    expect(error).to_contain_text("500 · engine_failed")
    expect(error).to_contain_text("request ")
    page.route("**/v1/embeddings", lambda route: route.abort())
    page.get_by_role("button", name="Embed").click()
    expect(error).to_contain_text("The service cannot be reached.")


def test_models_that_are_still_loading(open_page: Callable[..., Page]) -> None:
    """While no model is ready the page says so, and it goes on by itself when there is one."""
    page = open_page(key="")
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("still loading; this page waits for them")
    expect(page.locator("#try-facts")).to_contain_text("No model that embeds is loaded")
    expect(page.get_by_role("button", name="Embed")).to_be_disabled()
    page.unroute_all(behavior="wait")
    expect(page.get_by_role("button", name="Embed")).to_be_enabled()
    expect(page.locator("#notice")).to_be_empty()


def test_a_model_that_is_ready_later(open_page: Callable[..., Page]) -> None:
    """It is offered once somebody goes to the list of models, and the choice stays as it was."""
    page = open_page()
    models, before = page.locator("#try-model"), page.locator("#try-model").input_value()
    names = models.locator("option").all_inner_texts()

    def add_one(route: Route) -> None:
        answer = route.fetch().json()
        answer["data"].append({**answer["data"][0], "id": "late"})
        route.fulfill(json=answer)

    page.route("**/v1/models", add_one)
    models.focus()
    expect(models.locator("option")).to_have_text([*names, "late"])
    expect(models).to_have_value(before)
    page.unroute_all(behavior="wait")


def test_nothing_to_do(open_page: Callable[..., Page]) -> None:
    """Empty fields are answered with what is missing, and no request is made."""
    page = open_page()
    page.get_by_label("Texts").fill("  \n\n ")
    page.get_by_role("button", name="Embed").click()
    expect(page.locator("#try-result").get_by_role("alert")).to_have_text("Write a text first.")
    page.get_by_role("link", name="Search").click()
    page.get_by_label("Question").fill("")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#search-status")).to_have_text("Paste some passages and ask a question.")


def test_one_ranking_may_fail(open_page: Callable[..., Page]) -> None:
    """Where one method fails, the others are shown, and its column says why."""
    page = open_page("search")

    def answer(route: Any) -> None:
        is_cross = route.request.post_data_json["model"] == "cross"
        error = {"error": {"message": "cross is gone", "code": "unavailable"}}
        if is_cross:
            route.fulfill(status=503, json=error)
        else:
            route.continue_()

    page.route("**/v1/rerank", answer)
    result = run_search(page, TEXTS, "w1")
    expect(result.get_by_role("alert")).to_have_count(1)
    expect(result.locator(".ranking").last).to_contain_text("cross is gone503 · unavailable")
    expect(result.locator("ol")).to_have_count(4)


def test_what_is_wider_than_the_window_says_so(open_page: Callable[..., Page]) -> None:
    """The right edge of a table that goes on fades, until its end is reached."""
    result = run_try(open_page(size="small"), [f"w{place}" for place in range(12)])
    table = result.locator(".scroll").first
    expect(table).to_have_class(re.compile(r"\bmore\b"))
    table.evaluate("box => { box.scrollLeft = box.scrollWidth }")
    expect(table).not_to_have_class(re.compile(r"\bmore\b"))


def test_rankings_lie_side_by_side(open_page: Callable[..., Page]) -> None:
    """In a narrow window rankings are swiped, and the page is no longer than one of them."""
    columns = run_search(open_page("search", size="small"), TEXTS, "w1")
    assert columns.evaluate("box => box.scrollWidth > box.clientWidth")
    tops = {column.bounding_box()["y"] for column in columns.locator(".ranking").all()}  # type: ignore[index]
    assert len(tops) == 1


def test_the_vector_space_is_shown(open_page: Callable[..., Page]) -> None:
    """The header that names the space of the vectors is among the facts."""
    page = open_page()

    def answer(route: Any) -> None:
        response = route.fetch()
        headers = {**response.headers, "x-vector-space": "m3@0123abcd"}
        route.fulfill(response=response, headers=headers)

    page.route("**/v1/embeddings", answer)
    expect(run_try(page, TEXTS).locator(".facts")).to_contain_text("m3@0123abcd")


def test_all_scripts_are_used(open_page: Callable[..., Page]) -> None:
    """No script lies there unused."""
    page = open_page()
    names = "() => performance.getEntriesByType('resource').map(entry => entry.name)"
    loaded = {address.rpartition("/")[2] for address in page.evaluate(names)}
    assert {*SCRIPTS} <= loaded
