"""A real browser for the tests of pages: what a page has drawn, and what it logged."""

import time


def drawn_plots(browser) -> list[str]:
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('.plot'))"
        ".filter(p => p.dataset.drawn && p.querySelectorAll('.scatterlayer .trace').length).map(p => p.parentNode.id)"
    )


def wait_until(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def errors_of(browser) -> list[dict]:
    """What a page logged as an error."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
