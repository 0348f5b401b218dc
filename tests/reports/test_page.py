import json
import re

import pytest

from lengthwise.comparison.report import comparison_report
from lengthwise.errors import InputError
from lengthwise.reports.page import render, write_report
from lengthwise.reports.records import Advice, Results
from tests.reports.browser import drawn_plots, errors_of, wait_until
from tests.reports.example_results import BITS, example_results

ADVICE = [Advice("For quality", "state", "Fewest bits."), Advice("For memory", "window", "Least <state>.")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, comparison_report(example_results(), ADVICE, "Not complete."))
    return path


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", own)
    assert "@import" not in own
    assert len(text) > 3_000_000, "plotly.js is inside"


def test_what_the_user_wrote_is_text_and_never_markup(page):
    text = page.read_text()
    assert "<b>odd" not in text
    assert "<i>data</i>" not in text
    assert "&lt;b&gt;odd &amp; name&lt;/b&gt;" in text
    assert "Least &lt;state&gt;." in text


def test_the_data_is_valid_json(page):
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page.read_text(), re.DOTALL)
    data = json.loads(found[1])
    assert data["names"] == list(BITS)
    assert len(data["panels"]) == 8


def test_settings_and_what_was_left_out_are_on_the_page(page):
    text = page.read_text()
    assert "lengthwise compare &#x27;a b.txt&#x27; --budget 3m" in text
    assert "it would have taken too long" in text
    assert "Not complete." in text


def test_results_without_measurements_still_make_a_page():
    assert "<table" in render(comparison_report(Results(), []))


def test_a_folder_that_does_not_exist_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        write_report(tmp_path / "nowhere" / "report.html", comparison_report(Results(), []))


def first_column(browser) -> list[str]:
    script = "return Array.from(document.querySelectorAll('#summary tbody tr')).map(r => r.cells[0].dataset.value)"
    return browser.execute_script(script)


def click_heading(browser, index: int) -> None:
    browser.execute_script(f"document.querySelectorAll('#summary th button')[{index}].click()")


def test_in_a_browser_it_draws_sorts_and_logs_no_error(browser, page):
    browser.get(page.as_uri())
    assert wait_until(lambda: len(drawn_plots(browser)) == 8), f"only {drawn_plots(browser)} have drawn"

    assert first_column(browser)[0] == "state", "sorted by quality at first"
    click_heading(browser, 0)
    assert first_column(browser) == sorted(BITS)
    click_heading(browser, 0)
    assert first_column(browser) == sorted(BITS, reverse=True)
    click_heading(browser, 4)
    assert first_column(browser)[0] == list(BITS)[-1], "speed sorts with the fastest first"

    browser.execute_script("document.querySelectorAll('#panel-quality .views button')[1].click()")
    pressed = "return document.querySelectorAll('#panel-quality .views button')[1].getAttribute('aria-pressed')"
    assert browser.execute_script(pressed) == "true"
    browser.execute_script("document.querySelector('.chips button').click()")
    faint = "return document.querySelector('#panel-state .plot').data.map(t => t.opacity)"
    assert wait_until(lambda: browser.execute_script(faint) == [1, 0.13, 0.13, 0.13])
    assert errors_of(browser) == []


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, page):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(page.as_uri())
    assert wait_until(lambda: len(drawn_plots(browser)) == 8)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert errors_of(browser) == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
