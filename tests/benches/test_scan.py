import pytest
import torch

from lengthwise.benches import scan
from lengthwise.ops.scan import log_scan
from lengthwise.ops.selective_scan import selective_scan


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(scan, "matmul_rate", lambda: 1e13)
    monkeypatch.setattr(scan, "read_bandwidth", lambda: 1e12)


@pytest.mark.parametrize(
    ("bench", "sizes", "peers"),
    [
        (scan.selective_scan, {"length": 8, "channels": 4, "state": 2}, [{scan.LOOP, "mambapy"}] * 2),
        (scan.scan, {"length": 8, "channels": 4}, [{scan.LOOP}] * 4 + [{scan.LOOP, "cumsum and logcumsumexp"}] * 2),
        (scan.wkv, {"length": 8, "channels": 4}, [{scan.LOOP}] * 2),
        (scan.ema, {"length": 8, "channels": 4, "states": 3}, [{scan.LOOP}] * 4),
        (scan.integrate_and_fire, {"length": 8, "channels": 4}, [{scan.LOOP}] * 2),
        (scan.short_convolution, {"length": 8, "channels": 4}, [{"shifted products", "conv1d"}] * 2),
    ],
)
def test_rows_name_their_peers_and_limits(bench, sizes, peers):
    rows = list(bench(**sizes))
    assert [set(row.ratios) | {"mambapy"} for row in rows] == [names | {"mambapy"} for names in peers]
    assert all(row.seconds > 0 and 0 < row.limit < 1 for row in rows)


def test_peers_compute_the_same():
    given = scan.selective_inputs(16, 6, 3)
    pytest.importorskip("mambapy")
    torch.testing.assert_close(scan.mambapy_scan(*given), selective_scan(*given)[0])
    log_a, log_b = -torch.rand(1, 16, 6), torch.randn(1, 16, 6)
    torch.testing.assert_close(scan.cumulative_log_scan(log_a, log_b), log_scan(log_a, log_b)[0])
