"""What several tests share: a headless Chromium for pages."""

import gc
import os
import shutil

import pytest

collect_ignore = ["typed.py"]  # read by a type checker, never run

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module", autouse=True)
def _little_garbage():
    """What is imported is no garbage: each trainer would look through it, for most of a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Selenium's driver, which logs the console and what the page asks for."""
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    service = shutil.which("chromedriver")
    if not (browser and service):
        reason = f"no {'chromedriver' if browser else 'Chromium'} on the PATH"
        if os.environ.get("LMDYN_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason}, and LMDYN_REQUIRE_BROWSER=1 asks for it")
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    yield driver
    driver.quit()
