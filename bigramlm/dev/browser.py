"""A headless Chromium, for what has to be seen in one: the report's tests and benchmark, the pictures of the docs."""

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

# In a container there is no GPU and perhaps no sandbox; and of its own the browser is to fetch nothing.
_FLAGS = (
    *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def missing() -> str | None:
    """Why there is no browser to be had; None where there is one."""
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
    """A window of the browser; `driver` is Selenium's."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, address: str | Path) -> None:
        """Go to an address, or to a file on the disk."""
        self.driver.get(address.resolve().as_uri() if isinstance(address, Path) else address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function with this body returns in the page; waits for a promise. RuntimeError if it fails."""
        code = "const done = arguments[arguments.length - 1]; (async (...args) => {%s})(...arguments)"
        code += ".then((value) => done({value}), (error) => done({error: String(error)}))"
        done = self.driver.execute_async_script(code % script, *arguments)
        if "error" in done:
            raise RuntimeError(f"{done['error']}, in: {script}")
        return done.get("value")

    def complaints(self) -> list[str]:
        """List the errors that the console has reported since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """List the addresses that were requested since the last call."""
        told = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in told if m["method"] == "Network.requestWillBeSent"]

    def looks(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Make the window so large, in pixels, on a machine that is set to light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """Take a picture of the page from its top, as PNG; height: in pixels, None for all of the page."""
        width, all_of_it = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height or all_of_it, "scale": 1}
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        path.write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def browser(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Browser]:
    """Start a browser, with a profile of its own that is deleted afterwards. UserError if there is none."""
    if (reason := missing()) is not None:
        raise UserError(f"a browser is needed, and {reason}")
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
            window.looks(width=width, height=height, dark=dark)
            window.open("about:blank")
            window.requests()  # of the page that a new window has
            yield window
        finally:
            driver.quit()
