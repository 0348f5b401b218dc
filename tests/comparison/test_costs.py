import pytest
import torch

from lengthwise.comparison.costs import (
    Allowance,
    Decoder,
    Pool,
    long_text,
    measure_decoding,
    measure_memory,
    memory_lengths,
    read_on,
)
from lengthwise.contract import state_nbytes, state_tensors
from lengthwise.models.language_model import LanguageModel
from lengthwise.reports.records import Measurement, Skipped


def models() -> dict[str, LanguageModel]:
    torch.manual_seed(0)
    layers = {"grows": "attention + mlp", "constant": "min_gru + mlp"}
    return {name: LanguageModel(vocab_size=64, dim=16, layers=text).eval() for name, text in layers.items()}


def allowances(seconds: float = 100.0, memory: int = 2**32) -> dict[str, Allowance]:
    pool = Pool(seconds, 2)
    return {"grows": Allowance(pool, memory, True), "constant": Allowance(pool, memory, False)}


TEXT = torch.arange(2000) % 64


def by_length(records, name, measure):
    found = [r for r in records if isinstance(r, Measurement) and (r.candidate, r.measure) == (name, measure)]
    return {m.at: m.value for m in found}


def test_states_are_weighed_and_tokens_timed_at_each_context():
    held = models()
    records = list(measure_decoding(held, TEXT, [64, 256, 1024], allowances(), lambda text: None))
    grown, constant = (by_length(records, name, "state_bytes") for name in held)
    for length, size in grown.items():
        assert size == held["grows"].state_nbytes(length)
    assert len(set(constant.values())) == 1
    for name in held:
        assert list(by_length(records, name, "decode_seconds")) == [64, 256, 1024]
        read = list(by_length(records, name, "prefill_seconds").values())
        assert read == sorted(read)


@pytest.mark.parametrize("measure", [measure_decoding, measure_memory])
def test_beyond_the_longest_length_of_a_model_nothing_is_measured_and_the_others_go_on(measure):
    held = {"ends": LanguageModel(64, 16, "hyena(max_length=600, emb_dim=5) + mlp", position="none"), **models()}
    allowed = {"ends": Allowance(Pool(100.0, 3), 2**32, False), **allowances()}
    records = list(measure(held, TEXT, [256, 500, 1024], allowed, lambda text: None))
    skipped = [r for r in records if isinstance(r, Skipped)]
    assert {r.candidate for r in skipped} == {"ends"}
    assert all("max_length=600" in r.reason for r in skipped)
    if measure is measure_decoding:
        assert list(by_length(records, "ends", "decode_seconds")) == [256]  # after 500 it would go beyond 600
        assert list(by_length(records, "grows", "decode_seconds")) == [256, 500, 1024]


def test_reading_in_chunks_gives_the_state_of_reading_at_once():
    model = models()["constant"]
    with torch.no_grad():
        whole = model.hidden(TEXT[None])[1]
    chunked = read_on(model, TEXT, None)
    pairs = zip(state_tensors(whole.layers), state_tensors(chunked.layers), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
    assert state_nbytes(whole) > 0


def test_a_decoder_goes_on_from_its_state():
    model = models()["grows"]
    decoder = Decoder(model, read_on(model, TEXT[:10], None), 3)
    before = state_nbytes(decoder.state)
    decoder()
    decoder()
    assert state_nbytes(decoder.state) == before // 10 * 26


def test_memory_grows_with_the_length():
    records = list(measure_memory(models(), TEXT, [64, 256], allowances(), lambda text: None))
    for name in models():
        train, prefill = (by_length(records, name, f"{what}_peak_bytes") for what in ("train", "prefill"))
        assert train[256] > 2 * train[64]
        assert train[64] > prefill[64] > 0


def test_without_time_every_candidate_is_skipped_with_a_reason():
    used_up = allowances(seconds=0.0)
    records = list(measure_memory(models(), TEXT, [64, 256], used_up, lambda text: None))
    assert all(isinstance(r, Skipped) and "used up" in r.reason for r in records)
    assert len(records) == 4


def test_what_is_expected_to_be_too_large_or_too_slow_is_not_tried():
    small = Allowance(Pool(100.0, 1), memory=1000, quadratic=True)
    small.note("memory", 100, 0.1, 300.0)
    assert small.refusal("memory", 110) == ""
    assert "of memory" in small.refusal("memory", 200)
    slow = Allowance(Pool(10.0, 1), memory=10**9, quadratic=True)
    slow.note("reading", 100, 1.0, 1.0)
    assert slow.refusal("reading", 200) == ""
    assert "with 9.00 s left" in slow.refusal("reading", 400)


def test_growth_that_was_seen_replaces_what_was_feared():
    allowance = Allowance(Pool(10.0, 1), memory=10**9, quadratic=True)
    allowance.note("reading", 100, 1.0, 1.0)
    allowance.note("reading", 200, 2.0, 2.0)
    assert allowance.refusal("reading", 500) == ""


def test_what_the_quick_leave_over_goes_to_the_slow():
    pool = Pool(10.0, 2)
    quick, slow = Allowance(pool, 10**9, False), Allowance(pool, 10**9, True)
    slow.note("reading", 100, 1.0, 1.0)
    assert slow.refusal("reading", 250) != "", "6.25 s of 9 s, of which another is owed half"
    quick.note("reading", 100, 1.0, 1.0)
    pool.waiting = 1
    assert slow.refusal("reading", 250) == ""


def test_a_text_is_repeated_as_often_as_needed():
    assert long_text(torch.tensor([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_memory_is_measured_from_the_trained_length_on():
    assert memory_lengths(512) == [512, 1024, 2048, 4096, 8192]


@pytest.mark.parametrize("name", ["grows", "constant"])
def test_a_skipped_length_ends_a_candidate(name):
    limits = allowances()
    limits[name].pool = Pool(0.0, 1)
    records = list(measure_decoding(models(), TEXT, [64, 128], limits, lambda text: None))
    skipped = [r for r in records if isinstance(r, Skipped)]
    assert [(s.candidate, s.at) for s in skipped] == [(name, 64)]
