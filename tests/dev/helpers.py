"""Operation of a page in a real browser."""

from typing import Any

from bigramlm.dev.browser import Browser
from tests.helpers import wait_for


def eventually(window: Browser, script: str, *arguments: Any) -> None:
    """Wait until a script returns true in the page."""
    wait_for(lambda: window.run(script, *arguments))


def settled(window: Browser) -> None:
    """Wait until everything on the screen is up to date."""
    eventually(window, "return !isWaiting && ![...stale].some((name) => onScreen.has(name))")


def mouse(window: Browser, kind: str, x: float, y: float) -> None:
    event = {"type": kind, "x": x, "y": y, "button": "left" if kind != "mouseMoved" else "none", "clickCount": 1}
    window.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def point(window: Browser, selector: str) -> tuple[float, float]:
    """Move the mouse to the middle of an element, and return the position."""
    window.run("document.querySelector(args[0]).scrollIntoView({block: 'center'})", selector)
    box = "const {x, y, width, height} = document.querySelector(args[0]).getBoundingClientRect();"
    x, y = window.run(f"{box} return [x + width / 2, y + height / 2]", selector)
    mouse(window, "mouseMoved", x, y)
    return x, y


def click(window: Browser, selector: str) -> None:
    """Click in the middle of an element with the mouse."""
    x, y = point(window, selector)
    for kind in ("mousePressed", "mouseReleased"):
        mouse(window, kind, x, y)
    settled(window)


def move_slider(window: Browser, selector: str, value: float) -> None:
    """Set the value of a slider, as dragging it does."""
    window.run(
        "const [selector, value] = args, slider = document.querySelector(selector); slider.value = value;"
        "slider.dispatchEvent(new Event('input', {bubbles: true}))",
        selector,
        value,
    )
    settled(window)
