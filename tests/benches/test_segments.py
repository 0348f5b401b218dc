"""The benchmarks of segments, at a size that takes a moment."""

import re

from lengthwise.benches import segments as benches


def test_rows_say_how_memory_and_time_grow(monkeypatch):
    for name, size in {"SEGMENT": 4, "DIM": 16, "MANY": 16, "FEW": 4}.items():
        monkeypatch.setattr(benches, name, size)
    layers = {
        "recurrent_memory": "recurrent_memory(attention + mlp, tokens=1, segment=4, backprop=2)",
        "block_recurrent": "block_recurrent(block=4, states=2, backprop=2)",
    }
    monkeypatch.setattr(benches, "LAYERS", layers)
    rows = list(benches.segments())
    assert len(rows) == 2 * len(layers)
    for step, token in zip(rows[::2], rows[1::2], strict=True):
        assert set(step.ratios) == {"the whole row"}
        assert "over one after 4" in token.note
        assert min(step.seconds, token.seconds) > 0
        time, pieces, whole = map(float, re.findall(r"(\d+\.\d+)", step.note))
        assert time > 0
        assert pieces < 1.2
        assert whole > 2.5
