import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.generation import session as sessions
from lengthwise.generation.sample import generate
from lengthwise.generation.sampling import Sampling
from lengthwise.generation.session import Session, encode, fingerprint, prefill
from lengthwise.models import EncoderDecoder, LanguageModel, save_state

LAYERS = ["min_gru + swiglu", "attention + swiglu", "attention(window=5)", "mamba"]


def model(layers=LAYERS[0], seed=0, position="rope"):
    torch.manual_seed(seed)
    return LanguageModel(256, 16, layers, position)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_session_from_a_file_goes_on_as_one_that_never_stopped(layers, position, tmp_path):
    net, sampling = model(layers, position=position), Sampling(0.9, top_k=50)
    whole = Session(net, seed=3)
    whole.read("It was a dark and")
    expected = list(whole.generate(20, sampling))
    whole.read(" then")
    expected += list(whole.generate(10, sampling))

    part = Session(net, seed=3)
    part.read("It was a dark and")
    found = list(part.generate(7, sampling))
    part.save(tmp_path / "a.state")
    part = Session.load(tmp_path / "a.state", net)
    found += list(part.generate(13, sampling))
    part.save(tmp_path / "b.state")
    part = Session.load(tmp_path / "b.state", net)
    part.read(" then")
    found += list(part.generate(10, sampling))
    assert found == expected


def test_a_saved_session_can_be_continued_any_number_of_times(tmp_path):
    net = model("attention")
    session = Session(net, seed=0)
    session.read("abc")
    list(session.generate(5, Sampling()))
    session.save(tmp_path / "s")
    first, second = (list(Session.load(tmp_path / "s", net).generate(9, Sampling())) for _ in range(2))
    other = list(Session.load(tmp_path / "s", net, seed=77).generate(9, Sampling()))
    assert first == second != other


def test_a_long_prompt_is_read_in_chunks_with_the_same_result(monkeypatch):
    net, prompt = model("attention(window=5) + mamba").double(), "a prompt of some length" * 3
    found = []
    for chunk in (1024, 7, 1):
        monkeypatch.setattr(sessions, "CHUNK", chunk)
        session = Session(net, seed=0)
        session.read(prompt)
        found.append(list(session.generate(10, Sampling(0.0))))
    assert found[0] == found[1] == found[2]


def test_a_saved_prompt_is_not_read_again(tmp_path):
    net = model().double()
    whole, session = Session(net, seed=0), Session(net, seed=0)
    for one in (whole, session):
        one.read("a prompt of some length")
    session.save(tmp_path / "s")
    later = Session.load(tmp_path / "s", net)
    assert later.unread.tolist() == list(b"h")
    assert list(later.generate(4, Sampling())) == list(whole.generate(4, Sampling()))


def test_a_state_of_another_model_is_refused(tmp_path):
    session = Session(model(), seed=0)
    session.read("abc")
    session.save(tmp_path / "s")
    for other in (model(seed=1), model(LAYERS[1])):
        with pytest.raises(InputError, match="another checkpoint"):
            Session.load(tmp_path / "s", other)


def test_the_fingerprint_is_of_values_and_names():
    net = model()
    before = fingerprint(net)
    assert before == fingerprint(model())
    with torch.no_grad():
        net.head.weight[3, 2] += 1e-3
    assert fingerprint(net) != before


def test_files_that_are_no_session_are_refused(tmp_path):
    net = model()
    session = Session(net, seed=0)
    session.read("abc")
    session.save(tmp_path / "s")
    (tmp_path / "cut").write_bytes((tmp_path / "s").read_bytes()[:-20])
    (tmp_path / "text").write_text("not a state")
    save_state((None,), tmp_path / "other", {})
    for name, message in (
        ("cut", "cut short"),
        ("text", "cut short or no"),
        ("none", "no file"),
        ("other", "no session"),
    ):
        with pytest.raises(InputError, match=message):
            Session.load(tmp_path / name, net)


@pytest.mark.parametrize("chunk", [1024, 5])
@pytest.mark.parametrize("layers", [*LAYERS, "hyena(max_length=32) + rwkv + mamba2(head_dim=8)", "lstm + deltanet"])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_prompts_read_together_go_on_as_each_alone(layers, position, chunk, monkeypatch):
    monkeypatch.setattr(sessions, "CHUNK", chunk)
    net, prompts = model(layers, position=position).double(), ["a prompt of some length", "b", "and another"]
    logits, state = sessions.prefill(net, prompts)
    for row, prompt in enumerate(prompts):
        alone = Session(net, seed=0)
        alone.read(prompt)
        torch.testing.assert_close(logits[row], alone._logits(), rtol=1e-9, atol=1e-9)
        together = Session(net, seed=0, state=state.select(torch.tensor([row])))
        for one in (alone, together):
            one.read(" then")
        torch.testing.assert_close(together._logits(), alone._logits(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prompts", [[], ["a", ""]])
def test_prompts_without_a_token_are_refused(prompts):
    with pytest.raises(InputError, match="at least one token each"):
        sessions.prefill(model(), prompts)


def answering():
    torch.manual_seed(0)
    return EncoderDecoder(11, 16, "attention(heads=2)", "attention(heads=2) + cross_attention(heads=2) + mlp")


def test_answers_to_several_sources_are_those_to_each_alone():
    model, sources, prompts = answering(), [[1, 2, 3, 4], [], [5, 6]], [[1], [2, 3, 4], [5, 6]]
    logits, state = prefill(model, prompts, sources)
    for row, (source, prompt) in enumerate(zip(sources, prompts, strict=True)):
        alone, _ = model.eval()(torch.tensor([prompt]), source=torch.tensor([source], dtype=torch.long))
        torch.testing.assert_close(logits[row], alone[0, -1], rtol=0, atol=1e-5)  # float32 and another order of sums
        expected = list(generate(model, prompt, source=source, temperature=0, max_tokens=5))
        session = Session(model, state=state.select(torch.tensor([row])))
        session.read([int(logits[row].argmax())])
        assert [int(logits[row].argmax()), *session.generate(4, Sampling(temperature=0))] == expected


def test_a_session_that_answers_goes_on_from_its_file(tmp_path):
    model = answering()
    session = Session(model, seed=3, state=encode(model, [[1, 2, 3]]))
    session.read([4])
    first = list(session.generate(3, Sampling()))
    session.save(tmp_path / "s")
    again = Session.load(tmp_path / "s", model)
    assert list(again.generate(5, Sampling())) == list(session.generate(5, Sampling()))
    assert first == list(generate(model, [4], source=[1, 2, 3], seed=3, max_tokens=3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: generate(model, [1], source=[1, 11]), "token 11 is outside"),
        (lambda model: generate(model, [1], source=[1], state=encode(model, [[1]])), "not both"),
        (lambda model: prefill(model, [[1], [2]], [[1]]), "a source for each prompt, got 1 for 2"),
        (lambda model: generate(LanguageModel(11, 8, "min_gru"), [1], source=[1]), "reads no source"),
        (lambda model: list(generate(model, [1])), "got neither"),
    ],
)
def test_sources_that_cannot_be_read_are_one_clear_error(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong(answering())
