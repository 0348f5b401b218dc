"""Language models, encoders and classifiers, and their files."""

import json
import resource

import pytest
import torch

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.models.loading import load
from lengthwise.models.states import load_state, save_state

LAYERS = "2*(attention(heads=2) + swiglu) + mamba"


def tokens(batch=2, length=12):
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", ["rope", "none", "alibi", "t5(heads=2)", "sinusoidal", "learned(length=32)"])
def test_a_language_model_goes_on_from_its_state(position):
    torch.manual_seed(0)
    model = lw.LanguageModel(50, 16, LAYERS, position=position).double().eval()
    x = tokens()
    whole, _ = model(x)
    with torch.no_grad():
        first, state = model(x[:, :5])
        second, state = model(x[:, 5:6], state)
        third, _ = model(x[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, second, third], dim=1), whole)


@pytest.mark.parametrize("position", ["rope", "learned(length=32)"])
def test_packed_documents_equal_separate_ones(position):
    torch.manual_seed(0)
    model = lw.LanguageModel(50, 16, LAYERS, position=position).double().eval()
    x = tokens(1, 12)
    packed, _ = model(x, layout=Layout.packed([[5, 7]]))
    torch.testing.assert_close(packed, torch.cat([model(x[:, :5])[0], model(x[:, 5:])[0]], dim=1))


def test_a_classifier_ignores_padding():
    torch.manual_seed(0)
    model = lw.Classifier(3, 50, 16, "attention + mlp").double().eval()
    x = tokens(2, 9)
    alone = torch.cat([model(x[:1, :9])[0], model(x[1:, :5])[0]])
    right, _ = model(x, layout=Layout.padded([9, 5], side="right"))
    torch.testing.assert_close(right, alone)


@torch.no_grad()
@pytest.mark.parametrize("kind", [lw.Encoder, lw.MaskedLanguageModel])
def test_types_of_tokens_are_told_apart(kind):
    torch.manual_seed(0)
    model = kind(50, 16, "attention", types=2).eval()
    x, types = tokens(), torch.arange(12).expand(2, 12) // 7
    first, second = model(x)[0], model(x, types=types)[0]
    assert torch.equal(model(x, types=torch.zeros_like(types))[0], first)
    assert (second - first).abs().max() > 0.01
    model.types.weight[1] = model.types.weight[0]
    assert torch.equal(model(x, types=types)[0], first)
    with pytest.raises(InputError, match="no types of tokens"):
        kind(50, 16, "attention")(x, types=types)
    with pytest.raises(InputError, match="types must be at least 0"):
        kind(50, 16, "attention", types=-1)


@torch.no_grad()
def test_a_masked_language_model_is_an_encoder_with_a_head():
    torch.manual_seed(0)
    model = lw.MaskedLanguageModel(50, 16, "attention + mlp", norm="layernorm").double().eval()
    for parameter in model.parameters():
        parameter.normal_()
    hidden, _ = lw.Encoder.forward(model, tokens())
    z = hidden @ model.head_map.weight.T + model.head_map.bias
    z = z * (1 + torch.erf(z / 2**0.5)) / 2
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    z = z * model.head_norm.weight + model.head_norm.bias
    torch.testing.assert_close(model(tokens())[0], z @ model.embedding.weight.T + model.head.bias)


def test_an_encoder_refuses_a_state():
    with pytest.raises(InputError, match="can't go on from a state"):
        lw.Encoder(50, 16, "attention")(tokens(), state=())


@pytest.mark.parametrize(
    "model",
    [
        lambda: lw.LanguageModel(50, 16, LAYERS, tie=True, position="t5(heads=2)"),
        lambda: lw.Encoder(50, 16, "attention + bidirectional(min_gru)", norm="layernorm"),
        lambda: lw.MaskedLanguageModel(50, 16, "post_norm(attention + mlp)", types=2),
        lambda: lw.Classifier(3, 50, 16, "attention", position="learned(length=20)"),
    ],
)
def test_saved_and_loaded_gives_the_same_bits(model, tmp_path):
    model = model().eval()
    model.save(tmp_path / "m")
    again = lw.load(tmp_path / "m").eval()
    assert again.config == model.config
    assert torch.equal(again(tokens())[0], model(tokens())[0])
    assert [p.name for p in sorted((tmp_path / "m").iterdir())] == ["config.json", "model.safetensors"]


def test_a_state_is_saved_and_goes_on_with_the_same_bits(tmp_path):
    model = lw.LanguageModel(50, 16, LAYERS, position="learned(length=40)").eval()
    with torch.no_grad():
        _, state = model(tokens())
        save_state(state, tmp_path / "s", {"why": "test"})
        again, metadata = load_state(tmp_path / "s")
        assert metadata == {"why": "test"}
        assert again.nbytes == state.nbytes == model.state_nbytes(12) * 2
        expected, _ = model(tokens(), state)
        assert torch.equal(model(tokens(), again)[0], expected)


def damage_cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_config(folder):
    (folder / "config.json").write_text('{"model": "LanguageModel", "con')


def config(**changes):
    def damage(folder):
        described = json.loads((folder / "config.json").read_text())
        described["config"].update(changes)
        (folder / "config.json").write_text(json.dumps(described))

    return damage


def damage_name(folder):
    (folder / "config.json").write_text('{"model": "LangageModel", "config": {}}')


def damage_arguments(folder):
    (folder / "config.json").write_text('{"model": "LanguageModel", "config": {"width": 3}}')


def damage_weights_gone(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut, "cut short"),
        (damage_config, "cut short or no JSON"),
        (config(dim=32), "another model"),
        (config(layers="mlp"), "another model"),
        (config(dim="16"), "doesn't fit LanguageModel"),
        (damage_name, "did you mean LanguageModel"),
        (damage_arguments, "doesn't fit LanguageModel"),
        (damage_weights_gone, "there is no file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(damage, message, tmp_path):
    lw.LanguageModel(50, 16, LAYERS).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10**9}, "impossible sizes"),
        ({"dim": 10**9, "layers": "attention + mlp"}, "impossible sizes"),
        ({"dim": 10**6}, "should be"),
        ({"vocab_size": 10**10}, r"is \[50, 16\] and should be \[10000000000, 16\]"),
        ({"layers": "10000*mlp"}, "more weights than the 29 tensors"),
        ({"layers": "attention(position=seqpe(blocks=100000000))"}, "more weights than"),
        ({"layers": "tcn(levels=100000000)"}, "levels must be at most 64"),
        ({"layers": "s5(state_dim=100000000)"}, "another model"),
        ({"layers": "mamba(state_dim=10000000000)"}, "another model"),
        ({"position": "learned(length=10000000000)"}, "another model"),
        ({"position": "sinusoidal", "dim": 10**8}, "should be"),
    ],
    ids=str,
)
def test_sizes_that_the_file_has_no_weights_for_take_no_memory(changes, message, tmp_path):
    lw.LanguageModel(50, 16, LAYERS).save(tmp_path)
    config(**changes)(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # kilobytes


def test_parts_of_the_callers_own_may_read_numbers_while_they_are_made(tmp_path):
    class Scaled(lw.SequenceModule):
        growth, receptive_field = "constant", 1

        def __init__(self, dim):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((dim,), torch.rand(()).item()))

        def forward(self, x, state=None, layout=None):
            return x * self.weight, None

    model = lw.LanguageModel(50, 16, "mine", parts={"mine": Scaled})
    model.save(tmp_path)
    again = load(tmp_path, {"mine": Scaled})
    assert torch.equal(again(tokens())[0], model(tokens())[0])
    config(dim=32)(tmp_path)
    with pytest.raises(InputError, match="another model"):
        load(tmp_path, {"mine": Scaled})


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    model = lw.LanguageModel(50, 16, "mlp")
    model.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lengthwise.models.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        lw.LanguageModel(50, 16, "mlp").save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_state_file_that_is_none_is_refused(tmp_path):
    lw.LanguageModel(50, 16, "mlp").save(tmp_path)
    with pytest.raises(InputError, match="holds no state"):
        load_state(tmp_path / "model.safetensors")
