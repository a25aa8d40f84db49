"""A browser that is installed; tests that need one are skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.support.endpoint import PATIENCE_S

#: Screenshots go here if it is set.
SHOTS = "MLXLAB_SHOTS"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    root = ["--no-sandbox"]  # as in containers, has no sandbox
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=root) as browser,
    ):
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        context.set_default_timeout(1000 * PATIENCE_S)
        expect.set_options(timeout=1000 * PATIENCE_S)
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert faults == []


def shoot(page: Page, name: str) -> None:
    """Keep a screenshot for people, if they ask for it."""
    if folder := os.environ.get(SHOTS):
        page.screenshot(path=Path(folder, f"{name}.png"))
