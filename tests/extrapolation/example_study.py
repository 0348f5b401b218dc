"""A study with invented numbers, for the tests of its table, plots and advice."""

import random

from lengthwise.extrapolation.scoring import Grid, measurement, within
from lengthwise.reports.records import (
    Candidate,
    Finished,
    Results,
    Settings,
    Skipped,
    TrainingPoint,
    collect,
)

GRID = Grid(64, (64, 128, 256))
SERIES = {
    # bits per byte at 64, 128 and 256 tokens, and the share of keys named from 64 and 256 tokens back
    "rope": ((3.0, 3.3, 4.0), (0.9, 0.1)),
    "rope + ntk": ((3.0, 3.05, 3.2), (0.9, 0.4)),
    "<i>alibi</i>": ((3.1, 3.1, 3.12), (0.5, 0.06)),
    "<i>alibi</i> + temperature": ((3.1, 3.1, 3.12), (0.5, 0.06)),
}
ENDS = "learned"


def example_study(seeds: tuple[int, ...] = (0,), windows: int = 32) -> Results:
    """rope breaks down and ntk mends it, alibi carries on, a learned table ends."""
    noise = random.Random(0)
    shared = [noise.gauss(0, 0.4) for _ in range(windows)]
    records: list = [settings(seeds)]
    for name in (*SERIES, ENDS):
        records.append(Candidate(name, f"4*(attention + mlp), position={name}", 64, 232_000))
    for seed in seeds:
        for name, (bits, recalled) in SERIES.items():
            if " + " not in name:
                records += [TrainingPoint(name, seed, t / 2, 100 * t, bits[0] + 3 / t) for t in range(1, 20)]
            for at, value in zip(GRID.lengths, bits, strict=True):
                blocks = [value + common + noise.gauss(0, 0.05) for common in shared]
                records.append(measurement(name, seed, "bits_at_length", at, blocks))
                for _, stop in GRID.ranges(at):
                    worse = bits[-1] - bits[0] if stop > GRID.trained else 0.0
                    blocks = [bits[0] + worse + common for common in shared]
                    records.append(measurement(name, seed, within(at), stop, blocks))
            for at, share in zip((64, 256), recalled, strict=True):
                named = round(share * windows)
                records.append(measurement(name, seed, "keys", at, [1.0] * named + [0.0] * (windows - named)))
            records.append(Finished(name, seed, "measuring"))
        records.append(measurement(ENDS, seed, "bits_at_length", 64, [2.9 + common for common in shared]))
        records += [Skipped(ENDS, "bits_at_length", at, "its positions end at 64") for at in (128, 256)]
    return collect(records)


def settings(seeds: tuple[int, ...]) -> Settings:
    return Settings(
        date="2026-01-02T03:04:05+00:00",
        command="lengthwise extrapolate 'a b.txt' --length 64",
        options={"length": 64, "seeds": list(seeds), "checkpoints": []},
        data={"name": "</script><i>data</i>", "train_tokens": 12345},
        recipe={"optimiser": "AdamW"},
        machine={"cores": 2},
    )
