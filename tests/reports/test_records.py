import dataclasses
import math
import statistics

import pytest

from lengthwise.errors import InputError
from lengthwise.reports.records import (
    Candidate,
    Finished,
    Measurement,
    RecordFile,
    Results,
    Skipped,
    TrainingPoint,
    collect,
    from_json,
    load,
    paired_difference,
    to_json,
)
from tests.reports.example_results import example_results, settings

RECORDS = [
    settings((0, 1)),
    Candidate("a", "mamba", 32, 1000),
    TrainingPoint("a", 1, 0.5, 1024, 3.25),
    Measurement("a", 0, "bits_per_byte", 2.5, None, 0.1, (2.4, 2.6)),
    Measurement("a", 0, "state_bytes", 2048.0, 1024),
    Skipped("a", "decode_seconds", 4096, "no time"),
    Skipped("b", "bits_per_byte", None, "the loss became nan"),
    Finished("a", 0, "training"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_its_line(record):
    assert from_json(to_json(record)) == record


def test_numbers_that_are_not_finite_are_null_and_come_back_as_nan():
    line = to_json(Measurement("a", 0, "bits_per_byte", math.nan))
    assert "NaN" not in line
    assert math.isnan(from_json(line).value)


def test_a_file_cut_anywhere_gives_what_was_whole(tmp_path):
    text = "".join(to_json(record) + "\n" for record in RECORDS)
    path = tmp_path / "results.jsonl"
    for cut in range(0, len(text), 7):
        path.write_text(text[:cut])
        whole = text[:cut].count("\n")
        results = load(path)
        found = len(results.candidates) + len(results.training) + len(results.measurements) + len(results.skipped)
        found += len(results.finished) + (results.settings is not None)
        assert found in (whole, whole + 1)


def test_writing_goes_on_after_a_half_written_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(to_json(RECORDS[1]) + "\n" + to_json(RECORDS[2])[:20])
    with RecordFile(path, load(path)) as records:
        records.write(RECORDS[3])
    results = load(path)
    assert list(results.candidates) == ["a"]
    assert results.measurements == [RECORDS[3]]


def test_missing_results_are_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"can't be read"):
        load(tmp_path / "nothing.jsonl")


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"), RecordFile(tmp_path / "file" / "results.jsonl"):
        pass


def test_values_are_medians_over_seeds():
    results = collect(Measurement("a", seed, "train_rate", value) for seed, value in enumerate((1.0, 5.0, 2.0)))
    assert results.value("a", "train_rate").value == 2.0
    assert results.value("a", "train_rate").error == pytest.approx(statistics.stdev([1, 5, 2]) / math.sqrt(3))


def test_the_latest_of_two_measurements_counts():
    results = collect([Measurement("a", 0, "train_rate", 1.0), Measurement("a", 0, "train_rate", 2.0)])
    assert results.value("a", "train_rate").value == 2.0


def test_pairing_takes_out_what_both_share():
    hard = [0.0, 10.0, -5.0, 3.0]
    ours = {0: Measurement("a", 0, "m", 0.0, blocks=tuple(h + 1.0 for h in hard))}
    theirs = {0: Measurement("b", 0, "m", 0.0, blocks=tuple(hard))}
    gap = paired_difference(ours, theirs)
    assert gap.value == pytest.approx(1.0)
    assert gap.error == pytest.approx(0.0, abs=1e-12)


def test_pairing_uses_the_blocks_that_both_have():
    ours = {0: Measurement("a", 0, "m", 9.0, blocks=(1.0, 2.0, 100.0))}
    theirs = {0: Measurement("b", 0, "m", 9.0, blocks=(0.0, 0.0))}
    assert paired_difference(ours, theirs).value == pytest.approx(1.5)


def test_a_difference_needs_a_shared_seed():
    ours, theirs = {0: RECORDS[3]}, {1: dataclasses.replace(RECORDS[3], seed=1)}
    assert paired_difference(ours, theirs) is None


def test_the_spread_of_seeds_counts_in_a_difference():
    def group(shift):
        return {
            seed: Measurement("a", seed, "m", 0.0, blocks=tuple(s + shift(seed) for s in (0.0, 1.0, 2.0)))
            for seed in (0, 1)
        }

    steady = paired_difference(group(lambda seed: 1.0), group(lambda seed: 0.0))
    spread = paired_difference(group(lambda seed: 1.0 + seed), group(lambda seed: 0.0))
    assert steady.error == pytest.approx(0.0)
    assert spread.error == pytest.approx(0.5)


def test_common_length_is_one_that_all_reached():
    results = example_results()
    assert results.lengths("decode_seconds", "state")[-1] == 16384
    assert results.common_length("decode_seconds") == 4096


def test_empty_results_answer_nothing():
    results = Results()
    assert results.names == []
    assert results.common_length("state_bytes") is None
    assert results.value("a", "bits_per_byte") is None
