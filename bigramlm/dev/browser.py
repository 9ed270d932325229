"""A headless Chromium, driven by Selenium.

It is used by the report's tests and benchmark, and to take the screenshots in the docs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# A container has no GPU, and perhaps no sandbox (see `browser`). Background requests are disabled, because tests check
# which URLs are requested.
_FLAGS = (
    *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def unavailable_reason() -> str | None:
    """Return the reason why a browser cannot be started, or None if it can."""
    if _chromium() is None:
        return "there is no Chromium or Chrome (Debian: apt install chromium chromium-driver)"
    if shutil.which("chromedriver") is None:
        return "there is no chromedriver (Debian: apt install chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install -c constraints.txt -e '.[test]')"
    return None


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """A browser window; `driver` is its Selenium driver."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str | Path) -> None:
        """Load a URL or a local file."""
        self.driver.get(url.resolve().as_uri() if isinstance(url, Path) else url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a JavaScript function body in the page and return its result.

        A returned promise is awaited. Raises RuntimeError if the script throws.
        """
        code = "const done = arguments[arguments.length - 1]; (async (...args) => {%s})(...arguments)"
        code += ".then((value) => done({value}), (error) => done({error: String(error)}))"
        result = self.driver.execute_async_script(code % script, *arguments)
        if "error" in result:
            raise RuntimeError(f"{result['error']}, in: {script}")
        return result.get("value")

    def console_errors(self) -> list[str]:
        """Return the errors logged to the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requested_urls(self) -> list[str]:
        """Return the URLs requested since the last call."""
        messages = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def set_viewport(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the window size in pixels and the preferred color scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, path: Path, *, top: int = 0, height: int | None = None) -> None:
        """Write a PNG screenshot of the page.

        top: the first line, in pixels from the top of the page. height: the number of lines; None for the whole page.
        """
        width, page_height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": width, "height": height or page_height, "scale": 1}
        capture = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        path.write_bytes(base64.b64decode(capture["data"]))


@contextlib.contextmanager
def browser(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Browser]:
    """Start a browser with a temporary profile and yield its window.

    Raises UserError if no browser can be started.
    """
    if (reason := unavailable_reason()) is not None:
        raise UserError(f"a browser is required, but {reason}")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(_chromium())
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*_FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])):
        options.add_argument(flag)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(60)
            window = Browser(driver)
            window.set_viewport(width=width, height=height, dark=dark)
            window.open("about:blank")
            window.requested_urls()  # discard the requests of the initial page
            yield window
        finally:
            driver.quit()
