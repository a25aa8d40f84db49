"""The page at ``GET /``, in a browser."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import shoot
from tests.support.endpoint import TOKEN, Client, ask, served, until, words


def test_a_browser_shows_requests_and_changes_settings(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with served(strategy="prefix") as server, Client(server.url) as client:
        page.goto(f"{server.url}/#{TOKEN}")
        expect(page.locator(".empty")).to_have_text("No requests yet.")
        assert TOKEN not in page.url
        client.headers["x-claude-code-agent-id"] = "<b>x</b>"
        for _ in range(2):
            client.ask(ask(words(200), max_tokens=2))
        rows = page.locator(".row")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text("#1 <b>x</b>")
        expect(rows.nth(1)).to_contain_text("99 %")
        expect(page.locator(".totals")).to_contain_text("reused")

        # By keyboard alone.
        rows.nth(1).focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        expect(rows.nth(0)).to_have_attribute("aria-expanded", "true")
        expect(page.locator(".detail")).to_contain_text("prefill")
        page.keyboard.press(" ")
        until(lambda: server.selected.requests.request.tolist() == [1])
        shoot(page, "page")

        page.get_by_label("strategy").select_option("paged")
        until(lambda: server.aliases.default.strategy == "paged")
        page.locator("summary", has_text="all rules").click()
        page.get_by_label("drop-attribution").uncheck()
        until(lambda: server.aliases.default.rules == "-drop-attribution")
        expect(page.locator(".menu summary")).to_contain_text(" of ")
        expect(page.get_by_label("drop-attribution")).not_to_be_checked()

        page.evaluate("document.querySelector('select').options[0].value = 'nope'")
        page.get_by_label("strategy").select_option(index=0)
        expect(page.get_by_role("alert").first).to_contain_text("no strategy 'nope'")
        expect(page.get_by_label("strategy")).to_have_value("paged")

        page.locator(".model").click()
        expect(page.get_by_label("drop-attribution")).to_be_hidden()  # its menu

        page.reload()  # the tab still knows the token
        expect(rows).to_have_count(2)
    assert all(url.startswith(server.url) for url in asked)
    assert not any(TOKEN in url for url in asked)
    expect(page.get_by_text("Not connected")).to_be_visible()


def test_a_wrong_token_is_asked_for_again(page: Page) -> None:
    with served() as server:
        page.goto(f"{server.url}/#another-token")
        expect(page.get_by_text("does not accept this token")).to_be_visible()
        expect(page.get_by_label("Token of this server")).to_have_attribute(
            "type", "password"
        )
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".mlxlab-panel header")).to_contain_text("tiny")
