import io

from rich.console import Console

from lengthwise.comparison.report import comparison_report
from lengthwise.reports.measures import by_quality
from lengthwise.reports.records import Advice, Value
from lengthwise.reports.tables import print_summary, show_estimate
from tests.reports.example_results import BITS, example_results


def printed(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    advice = [Advice("For quality", "state", "[bold]not markup[/bold]")]
    print_summary(console, comparison_report(example_results(), advice), "out/report.html")
    return console.file.getvalue()


def test_the_summary_has_every_candidate_the_advice_and_the_path():
    text = printed(160)
    assert all(name in text for name in BITS)
    assert "For quality: state. [bold]not markup[/bold]" in text
    assert "report: out/report.html" in text
    assert text.index("state ") < text.index("softmax"), "best quality first"


def test_a_narrow_terminal_keeps_every_number():
    wide, narrow = printed(200), printed(80)
    assert "4.00 ms" in wide
    assert "4.00" in narrow
    assert max(len(line) for line in narrow.splitlines()) <= 80


def test_rows_without_quality_come_last():
    results = example_results()
    results.measurements = [m for m in results.measurements if (m.candidate, m.measure) != ("state", "bits_per_byte")]
    assert by_quality(results)[-1] == "state"


def test_estimates_show_as_many_digits_as_their_error_allows():
    assert show_estimate(Value(2.3456, 0.0123)) == ("2.35", "0.01")
    assert show_estimate(Value(2.3456, 0.0021)) == ("2.346", "0.002")
    assert show_estimate(Value(-0.0001, 0.02)) == ("0.00", "0.02")
    assert show_estimate(Value(1.0)) == ("1.00", "")
