"""A comparison with invented numbers, for the tests of tables, plots and pages."""

import random

from lengthwise.reports.records import (
    Candidate,
    Finished,
    Measurement,
    Results,
    Settings,
    Skipped,
    TrainingPoint,
    collect,
    mean_and_error,
)

BITS = {"softmax": 2.4, "window": 2.5, "state": 2.2, "<b>odd & name</b>": 2.21}
GROWS = {"softmax"}


def example_results(seeds: tuple[int, ...] = (0,), blocks: int = 24) -> Results:
    """Four candidates: "state" is best, the oddly named one is as good, "softmax" grows with length."""
    noise = random.Random(0)
    shared = [noise.gauss(0, 0.4) for _ in range(blocks)]
    records = [settings(seeds)]
    for place, (name, bits) in enumerate(BITS.items()):
        records.append(Candidate(name, "2*(attention + swiglu)", 64, 100_000 + place))
        for seed in seeds:
            records += [TrainingPoint(name, seed, t / 2, 100 * t, bits + 3 / t) for t in range(1, 20)]

            def paired(measure: str, value: float, at: int | None = None, name=name, seed=seed) -> Measurement:
                values = tuple(value + common + noise.gauss(0, 0.05) for common in shared)
                return Measurement(name, seed, measure, *_ordered(values, at))

            records.append(paired("bits_per_byte", bits))
            for at in (16, 64, 256, 1024):
                worse = 0.5 if name in GROWS and at > 256 else 0.0
                records.append(paired("bits_at_context", bits + 8 / at + worse, at))
            for at in (64, 256, 1024):
                records.append(paired("recall", 0.8 if name in GROWS else 20 / at, at))
            records.append(Measurement(name, seed, "train_rate", 10_000.0 + 1000 * place))
            records.append(Finished(name, seed, "training"))
        records += costs(name, place)
    return collect(records)


def _ordered(values: tuple[float, ...], at: int | None) -> tuple:
    mean, error = mean_and_error(values)
    return mean, at, error, values


def costs(name: str, place: int) -> list:
    grows = name in GROWS
    records = []
    for length in (1024, 4096, 16384):
        if grows and length == 16384:
            records.append(Skipped(name, "decode_seconds", length, "it would have taken too long"))
            continue
        factor = length / 1024 if grows else 1.0
        records.append(Measurement(name, 0, "decode_seconds", (1 + place / 4) * 1e-3 * factor, length))
        records.append(Measurement(name, 0, "state_bytes", 2.0 ** (14 + place) * factor * (8 if grows else 1), length))
        records.append(Measurement(name, 0, "prefill_seconds", 0.1 * length / 1024 * factor, length))
    for length in (256, 512):
        records.append(Measurement(name, 0, "train_peak_bytes", 1e5 * length * (place + 1), length))
        records.append(Measurement(name, 0, "prefill_peak_bytes", 1e4 * length, length))
    return records


def settings(seeds: tuple[int, ...]) -> Settings:
    options = {"length": 256, "budget": "3m", "equal": "seconds", "parameters": "100k", "seeds": list(seeds)}
    return Settings(
        date="2026-01-02T03:04:05+00:00",
        command="lengthwise compare 'a b.txt' --budget 3m",
        options=options,
        data={"name": "</script><i>data</i>", "train_tokens": 12345},
        recipe={"optimiser": "AdamW"},
        machine={"cores": 2},
    )
