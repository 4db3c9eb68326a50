"""The server's page in Chromium, with the demo model: `cargo xtask page`. Arguments: the server's address, a folder for screenshots."""

import json
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

URL, SHOTS = sys.argv[1], Path(sys.argv[2])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARKDOWN = """# Title

A *b* **c** `d` <script>alert(1)</script> <img src=x onerror=alert(1)> [bad](javascript:alert(1)) [ok](https://a.example)

- one
  - two

| x | y |
| - | - |
| 1 | **2** |

```rust
fn main() { println!("<b>"); }
```
"""


def ask(page: Page, text: str, answers: int):
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.locator("article.assistant .actions").nth(answers - 1).wait_for()


def stream(*deltas, reason="stop"):
    """The body of a stream of these deltas."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def conversation(page: Page):
    assert page.evaluate("document.activeElement.id") == "question"
    ask(page, "What is 2+2?", 1)
    assert page.inner_text("article.assistant .body").strip() == "2 + 2 = 4."
    ask(page, "What is 5+5?", 2)
    page.screenshot(path=SHOTS / "conversation.png")
    page.locator("article.user >> text=Edit").first.click()
    page.fill("article textarea", "What is 3+4?")
    page.keyboard.press("Enter")
    page.locator("article.assistant .body", has_text="3 + 4 = 7.").wait_for()
    assert page.locator("article").count() == 2
    page.locator("article.assistant .actions").wait_for()
    page.click("article.assistant >> text=Retry")
    page.locator("article.assistant .actions").wait_for()
    assert page.inner_text("article.assistant .body").strip() == "3 + 4 = 7."
    page.reload()
    page.click("#conversations .open")
    assert page.locator("article").count() == 2


def markup(page: Page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        body=stream({"reasoning_content": "Hm, **hm**."}, {"content": MARKDOWN}), content_type="text/event-stream"
    ))
    page.click("#new")
    ask(page, "Show me", 1)
    body = page.locator("article.assistant .body")
    assert body.locator("script, img").count() == 0
    assert [link.get_attribute("href") for link in body.locator("a").all()] == ["https://a.example"]
    for selector in ["h2", "em", "strong", "ul ul", "table td", "pre code"]:
        assert body.locator(selector).count() > 0, selector
    assert not page.locator("article.assistant details .text").is_visible()
    page.click("article.assistant summary")
    assert page.inner_text("article.assistant details .text") == "Hm, **hm**."
    page.screenshot(path=SHOTS / "markup.png")
    page.unroute("**/v1/chat/completions")


def tools(page: Page):
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Z"}'}}
    sent = []

    def answer(route):
        sent.append(route.request.post_data_json)
        deltas = [{"tool_calls": [call]}] if len(sent) == 1 else [{"content": "It is warm."}]
        route.fulfill(body=stream(*deltas), content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    page.click("#settings-open")
    page.fill("#tools", "{")
    page.click("#settings-save")
    assert "Tools" in page.inner_text("#settings-error")
    page.fill("#tools", '[{"type": "function", "function": {"name": "weather"}}]')
    assert page.inner_text("#settings-error") == ""
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0.5")
    page.screenshot(path=SHOTS / "settings.png")
    page.click("#settings-save")
    page.click("#new")
    ask(page, "How warm?", 1)
    page.fill(".call textarea", "20 °C")
    page.screenshot(path=SHOTS / "call.png")
    page.click(".call >> text=Give result")
    page.locator("article.assistant .body", has_text="It is warm.").wait_for()
    first, second = sent
    assert first["messages"][0] == {"role": "system", "content": "Be brief."} and first["temperature"] == 0.5
    assert second["messages"][-1] == {"role": "tool", "content": "20 °C", "tool_call_id": "c1"}
    page.unroute("**/v1/chat/completions")


def stopping(page: Page):
    page.route("**/v1/chat/completions", lambda route: None)
    page.click("#new")
    page.fill("#question", "Never answered")
    page.keyboard.press("Enter")
    page.locator("#stop").wait_for()
    page.keyboard.press("Escape")
    page.locator("article.assistant .meta", has_text="stopped").wait_for()
    page.unroute("**/v1/chat/completions")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    for name, options in {
        "desktop": {"viewport": {"width": 1100, "height": 750}, "color_scheme": "light"},
        "phone": {"viewport": {"width": 390, "height": 780}, "color_scheme": "dark", "is_mobile": True, "has_touch": True},
    }.items():
        page = browser.new_context(**options).new_page()
        problems, hosts = [], set()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: hosts.add(re.match(r"\w+://[^/]*|data:", request.url)[0]))
        page.goto(URL)
        page.locator("#model option").wait_for(state="attached")
        if name == "desktop":
            for test in [conversation, markup, tools, stopping]:
                test(page)
                print("ok", test.__name__)
        else:
            ask(page, "What is the capital of France?", 1)
            page.screenshot(path=SHOTS / "phone.png")
            bubble, column = page.locator("article.user .body").bounding_box(), page.locator("article.user").bounding_box()
            assert abs(bubble["x"] + bubble["width"] - column["x"] - column["width"]) < 1, "the question is not at the right"
            page.click("#menu")
            page.locator("#conversations .open").wait_for()
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
            print("ok phone")
        assert not problems, problems
        assert hosts <= {URL, "data:"}, hosts
    browser.close()
