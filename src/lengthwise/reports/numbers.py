"""Numbers as people read them: sizes, durations, counts, and back."""

from __future__ import annotations

import math
import re

from lengthwise.errors import InputError

DURATIONS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
SIZES = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90s, 5m or 1.5h."""
    return _parse(text, DURATIONS, "a duration", "90s, 5m or 2h")


def parse_count(text: str) -> int:
    """A number such as 400k or 3M."""
    return round(_parse(text, COUNTS, "a number", "400k or 3M"))


def parse_size(text: str) -> int:
    """Bytes of a size such as 512MB or 4GB."""
    return round(_parse(text, SIZES, "a size", "512MB or 4GB"))


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        raise InputError(f"{what} is written as {example}, got {text!r}")
    value = float(match[1]) * units[match[2].lower()]
    if value <= 0:
        raise InputError(f"{what} must be greater than 0, got {text!r}")
    return value


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def scaled(value: float, units: list[tuple[float, str]], digits: int = 3) -> str:
    """A number in the largest unit that it fills."""
    factor, unit = next(((f, u) for f, u in units if abs(value) >= 0.9995 * f), units[-1])
    return f"{significant(value / factor, digits)} {unit}".strip()


def show_bytes(value: float) -> str:
    """Bytes in B, KB, MB or GB of 1024."""
    return scaled(value, [(2**30, "GB"), (2**20, "MB"), (2**10, "KB"), (1, "B")])


def show_seconds(value: float) -> str:
    """Seconds in µs, ms, s, min or h."""
    return scaled(value, [(3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")])


def show_length(value: float) -> str:
    """A length in tokens: 512, 1K, 64K, 1M, of 1024 where it divides."""
    for factor, unit in ((2**20, "M"), (2**10, "K")):
        if value >= factor and value % factor == 0:
            return f"{int(value // factor)}{unit}"
    return f"{value:,.0f}"


def show_count(value: float) -> str:
    """A number of things: 812, 12.3k, 4.1M."""
    return scaled(value, [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")]).replace(" ", "")


def show_bits(value: float) -> str:
    """Bits per byte, to the hundredth."""
    return f"{value:.2f}"


def show_ratio(value: float) -> str:
    """How many times as much: 1.04×, 12×."""
    return f"{significant(value, 2 if value >= 2 else 3)}×"
