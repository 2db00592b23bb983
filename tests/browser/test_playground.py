"""The chat and the vector search in a real browser, with engines that behave and one that does not."""

import json
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.browser.conftest import Watch, violations
from tests.browser.site import Site, site, until
from tests.browser.small_engine import QUIRKS

pytestmark = [pytest.mark.system, pytest.mark.browser]

Opened = Callable[..., tuple[BrowserContext, Watch]]
TALKS, ASLEEP = "org/talks", "dreamer"
KEPT = {
    "model": TALKS, "system": "", "temperature": "", "most": "",
    "turns": [{
        "question": "How?", "model": TALKS, "thinking": "hm", "state": "complete", "error": "", "finish": "stop",
        "pace": None, "text": "So **it** `is`:\n\n```python\nprint('<b>')\n```\n<img src=x onerror=alert(1)>",
    }],
}  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    listed = tmp_path_factory.mktemp("models") / "models.yaml"
    config = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}, "environment": {"FAKE_LOAD_SECONDS": "1"}}
    source = {"type": "local_path", "value": "/weights/dreamer"}
    listed.write_text(json.dumps({"models": {ASLEEP: {"source": source, "config": config}}}))
    with site(ORCHESTRATOR_MODELS=str(listed), GATEWAY_HOLD_SECONDS="0.5") as made:
        started = [made.start(served_model_name=name) for name in (TALKS, QUIRKS)]
        body = {"recipe_name": "vector-db/qdrant"}
        started.append(str(made.http.post("/api/v1/services", json=body).json()["id"]))
        for service in started:
            made.until(service, "running")
        yield made


@pytest.fixture
def chat(opened: Opened, played: Site) -> Page:
    context, _ = opened(played)
    page = context.new_page()
    page.goto("/ui/chat")
    return page


def ask(page: Page, question: str, model: str = TALKS) -> Locator:
    """The turn of a question."""
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Your message").fill(question)
    page.get_by_label("Your message").press("Enter")
    return page.locator(".turn").last


def logs(at: Site, model: str) -> str:
    """What the engine of a model has written."""
    (service,) = [one["id"] for one in at.http.get("/api/v1/services").json() if model in json.dumps(one["config"])]
    return str(at.http.get(f"/api/v1/services/{service}/logs", params={"tail": 1000}).json()["logs"])


def test_an_answer_streams_and_is_kept_in_the_tab(chat: Page, axe: str) -> None:
    chat.get_by_label("System prompt").fill("Be brief.")
    chat.get_by_label("Your message").press("Shift+Enter")
    assert chat.locator(".turn").count() == 0, "it makes a new line"
    turn = ask(chat, "delay 0.15 name the seven seas")
    expect(turn.locator(".answer .said")).to_contain_text("name the seven")
    assert turn.get_attribute("data-state") == "running", "it is shown as it comes"
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    expect(turn).to_have_attribute("data-state", "complete")
    expect(turn.locator(".pace")).to_contain_text("tokens/s")
    expect(turn.locator(".pace")).not_to_contain_text("≈")
    expect(chat.get_by_role("log")).to_contain_text("name the seven seas")
    expect(chat.get_by_role("region", name="The request")).to_contain_text('"Be brief."')
    chat.get_by_label("As", exact=True).select_option("python")
    expect(chat.get_by_role("region", name="The request")).to_contain_text("from openai import OpenAI")
    assert violations(chat, axe) == []
    chat.reload()
    expect(chat.locator(".turn .answer .said")).to_contain_text("name the seven seas")
    expect(chat.get_by_label("System prompt")).to_have_value("Be brief.")
    chat.get_by_role("button", name="Retry").click()
    expect(chat.locator(".turn")).to_have_attribute("data-state", "complete")
    chat.get_by_role("button", name="New chat").click()
    assert chat.locator(".turn").count() == 0


def test_an_answer_is_text_and_never_html(opened: Opened, played: Site, axe: str) -> None:
    context, _ = opened(played, color_scheme="dark")
    page = context.new_page()
    page.goto("/ui/keys")  # the chat itself would keep its own
    page.evaluate("kept => sessionStorage.setItem('sluice.chat', JSON.stringify(kept))", KEPT)
    page.goto("/ui/chat")
    said = page.locator(".answer .said")
    expect(said).to_contain_text("<img src=x onerror=alert(1)>")
    expect(said.locator("strong")).to_have_text("it")
    expect(said.locator("p code")).to_have_text("is")
    expect(said.locator("pre")).to_have_text("print('<b>')")
    assert said.locator("img, b").count() == 0
    page.get_by_text("Thinking").click()
    expect(page.locator(".thought")).to_have_text("hm")
    assert violations(page, axe) == []


WRONG = {
    "error_in_band": ("failed", "out of cache"),
    "no_done": ("failed", ""),
    "break_between": ("failed", ""),
    "flat": ("refused", "the flat form says no"),
    "too_many": ("refused", "slow down"),
    "empty": ("refused", "answered with nothing"),
}


def test_what_went_wrong_is_never_shown_as_an_answer(opened: Opened, played: Site, axe: str) -> None:
    context, watch = opened(played)
    watch.expected += ["status of 4", "status of 5"]
    page = context.new_page()
    page.goto("/ui/chat")
    for quirk, (state, words) in WRONG.items():
        turn = ask(page, f"now {quirk}", QUIRKS)
        expect(turn).to_have_attribute("data-state", state)
        expect(turn.locator(".ending.bad")).to_contain_text(words)
        expect(page.get_by_role("log")).to_contain_text(words)
    expect(page.locator(".turn").nth(1).locator(".said").last).to_contain_text("one")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".turn").last).to_have_attribute("data-state", "refused")
    expect(ask(page, "now plain", QUIRKS)).to_have_attribute("data-state", "complete")
    assert violations(page, axe) == []


def test_a_stream_that_only_ends_has_been_cut_off(opened: Opened, played: Site) -> None:
    """The gateway never lets one through; something between it and the browser might."""
    context, _ = opened(played)
    page = context.new_page()
    half = 'data: {"choices": [{"delta": {"content": "half"}}]}\r\n\r\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=half, content_type="text/event-stream"))
    page.goto("/ui/chat")
    turn = ask(page, "hello")
    expect(turn).to_have_attribute("data-state", "cut")
    expect(turn.locator(".ending.bad")).to_contain_text("cut off")
    expect(turn.locator(".answer .said")).to_have_text("half")


@pytest.mark.parametrize(("question", "seen"), [("delay 0.3 so it goes", "delay"), ("sleep 30", "")])
def test_stopping_reaches_the_engine(chat: Page, played: Site, question: str, seen: str) -> None:
    before = logs(played, TALKS).count("cancelled")
    asked = logs(played, TALKS).count("POST")
    turn = ask(chat, question)
    expect(turn.locator(".answer .said")).to_contain_text(seen)
    until(lambda: logs(played, TALKS).count("POST") > asked)
    chat.get_by_role("button", name="Stop").click()
    expect(turn).to_have_attribute("data-state", "stopped")
    until(lambda: logs(played, TALKS).count("cancelled") > before, 5)
    expect(chat.get_by_role("button", name="Send")).to_be_visible()


def test_a_sleeping_model_is_woken(chat: Page) -> None:
    chat.get_by_label("Model", exact=True).select_option(ASLEEP)
    expect(chat.locator("#model-expect")).to_contain_text("is asleep")
    turn = ask(chat, "good morning", ASLEEP)
    expect(turn.locator(".waits")).to_contain_text("dreamer")
    expect(turn.locator(".answer .said")).to_contain_text("good morning")


def test_what_is_not_ready_is_asked_again(opened: Opened, played: Site) -> None:
    context, watch = opened(played)
    watch.expected.append("status of 503")
    page = context.new_page()
    body = json.dumps({"error": {"message": "The link is being opened"}})
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, body=body),
        times=1,
    )
    page.goto("/ui/chat")
    turn = ask(page, "are you there")
    expect(turn.locator(".waits")).to_contain_text("The link is being opened (asking again")
    expect(turn.locator(".answer .said")).to_contain_text("are you there")


def test_vectors(opened: Opened, played: Site, axe: str) -> None:
    context, watch = opened(played)
    watch.expected.append("status of 4")
    page = context.new_page()
    page.goto("/ui/vectors")
    page.get_by_label("Name").fill("boats")
    page.get_by_label("Numbers in each vector").fill("2")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("button", name="boats")).to_contain_text("0 points")
    expect(page.get_by_role("button", name="boats")).to_contain_text("size 2 Cosine")
    page.get_by_role("button", name="An example").click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("button", name="boats")).to_contain_text("3 points")
    page.get_by_role("button", name="Random").click()
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("region", name="Results").locator("tbody tr")).to_have_count(3)
    expect(page.get_by_role("region", name="Results")).to_contain_text("Bread and butter")
    page.get_by_role("button", name="More like it: 1").click()
    expect(page.get_by_role("region", name="Results").locator("tbody tr")).to_have_count(2)
    assert violations(page, axe) == []
    page.get_by_label("Points, as JSON").fill('[{"id": 9, "vector": [1, 2, 3]}]')
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("dimension")
    page.get_by_label("Query vector").fill("1 2 three")
    expect(page.locator("#query-size")).to_contain_text('"three" is no number')


def test_vectors_out_of_texts(opened: Opened, played: Site, axe: str) -> None:
    service = played.http.get("/api/v1/vector-db/services").json()["vector_db_services"][0]["id"]
    path = f"/api/v1/vector-db/{service}/collections/texts"
    assert played.http.put(path, json={"vector_size": 2, "distance": "Euclid"}).status_code == 200
    context, _ = opened(played, color_scheme="dark")
    page = context.new_page()
    page.goto("/ui/vectors")
    page.get_by_role("button", name="texts").press("Enter")
    expect(page.locator("[aria-current=true]", has_text="texts")).to_be_focused()
    page.get_by_label("By the model").select_option(TALKS)  # whose vectors are the lengths of the texts
    page.get_by_text("Texts instead").click()
    page.get_by_label("Texts, one a line").fill("short\n\na much longer text\n")
    page.get_by_role("button", name="Add texts").click()
    expect(page.get_by_role("button", name="texts").first).to_contain_text("2 points")
    page.get_by_label("Text", exact=True).fill("a much longer one ")
    page.get_by_role("button", name="Make the vector").click()
    expect(page.get_by_label("Query vector")).to_have_value("[18, 1]")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("region", name="Results").locator("tbody tr").first).to_contain_text("a much longer text")
    assert violations(page, axe) == []
    page.get_by_role("button", name="Delete collection").click()
    dialog = page.get_by_role("dialog", name="Delete the collection texts?")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    assert violations(page, axe) == []
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    assert played.http.get(path).status_code == 200
    page.get_by_role("button", name="Delete collection").click()
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".collection", has_text="texts")).to_have_count(0)
    assert played.http.get(path).status_code == 404
