"""The annotations of the whole package are checked at run time in the tests; and a real browser for those of pages."""

import shutil

import pytest
from jaxtyping import install_import_hook

hook = install_import_hook("lengthwise", "checking.check")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("the report's browser test needs chromium and chromedriver; on Debian: apt install chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver", reason="the report's browser test needs the package selenium")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
        f"--user-data-dir={profile}", "--window-size=1280,1600",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driven = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield driven
    driven.quit()
