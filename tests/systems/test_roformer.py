import pytest
import torch
from torch import nn
from torch.nn import functional

from lengthwise.channels.mlp import MLP
from lengthwise.mixers.attention import Attention
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.rope import RoPE, permute_rows
from lengthwise.systems import roformer
from lengthwise.systems.system import Run
from tests.conversion.theirs import take
from tests.stepping import token_by_token

transformers = pytest.importorskip("transformers")


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the table of angles is a frozen parameter there
            nn.init.normal_(parameter, mean=float(parameter.ndim == 1) / 2, std=0.3)
    return model.eval()


def oracle() -> nn.Module:
    config = transformers.RoFormerConfig(
        vocab_size=50,
        embedding_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    return randomise(transformers.RoFormerModel(config))


@torch.no_grad()
def roformer_from_parts(theirs: nn.Module, tokens: torch.Tensor, layout: str) -> torch.Tensor:
    """The post-norm encoder of transformers out of our attention, MLP and positions with its weights."""
    embeddings = theirs.embeddings
    x = embeddings.LayerNorm(embeddings.word_embeddings(tokens) + embeddings.token_type_embeddings.weight[0])
    for layer in theirs.encoder.layer:
        attention = Attention(64, heads=4, causal=False, bias=True, position=RoPE(layout=layout))
        source = layer.attention.self
        for ours, of_theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            getattr(attention, ours).load_state_dict(getattr(source, of_theirs).state_dict())
        if layout == "half":
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight.copy_(permute_rows(projection.weight, 4, source="interleaved", target="half"))
                projection.bias.copy_(permute_rows(projection.bias, 4, source="interleaved", target="half"))
        attention.o_proj.load_state_dict(layer.attention.output.dense.state_dict())
        mlp = MLP(64, hidden=128)
        mlp.up.load_state_dict(layer.intermediate.dense.state_dict())
        mlp.down.load_state_dict(layer.output.dense.state_dict())
        x = layer.attention.output.LayerNorm(x + attention(x)[0])
        x = layer.output.LayerNorm(x + mlp(x)[0])
    return x


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_hidden_states_of_transformers_roformer(layout):
    theirs, tokens = oracle(), torch.randint(50, (2, 37))
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state
    torch.testing.assert_close(roformer_from_parts(theirs, tokens, layout), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_of_transformers_llama():
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    layers = "2*(attention(heads=4, kv_heads=2) + swiglu(hidden=96))"
    ours = LanguageModel(50, 64, layers, position="rope(base=100000)", norm="rmsnorm")
    tokens = torch.randint(50, (2, 37))
    torch.testing.assert_close(take(ours, theirs)(tokens)[0], theirs(tokens).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_linear_attention_turns_the_numerator_alone():
    """The recurrence equals the double sum Σ_n (R_m φ(q_m))ᵀ (R_n φ(k_n)) v_n / Σ_n φ(q_m)ᵀ φ(k_n)."""
    from lengthwise.mixers.linear_attention import LinearAttention

    torch.manual_seed(0)
    mixer = LinearAttention(16, heads=2, position=RoPE()).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64) * 5
    q, k, v = (projection(x).unflatten(-1, (2, 8)) for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k, places = functional.elu(q) + 1, functional.elu(k) + 1, torch.arange(9)
    q_turned, k_turned = RoPE().rotate(q, k, places, places)
    numerator = torch.einsum("bihd,bjhd->bhij", q_turned, k_turned).tril() @ v.transpose(1, 2)
    denominator = torch.einsum("bihd,bjhd->bhij", q, k).tril().sum(-1, keepdim=True)
    expected = mixer.o_proj((numerator / (denominator + 1e-6)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(token_by_token(mixer, x)[0], expected, rtol=0, atol=1e-10)


def test_shift_error_sees_every_layer_and_leaves_the_model_alone():
    model = LanguageModel(256, 16, "2*(attention(heads=2) + mlp)", "rope")
    rope = model.stack.layers[0].part.position
    assert len(roformer.queries_and_keys(model, rope, torch.randint(256, (1, 5)))) == 2
    assert "rotate" not in vars(rope)
    assert 0 < roformer.shift_error(model, 12_345) < 1e-4


def test_shift_error_finds_positions_that_are_not_relative(monkeypatch):
    model = LanguageModel(256, 16, "attention(heads=2)", "rope")
    nn.init.normal_(model.stack.layers[0].part.q_proj.weight)
    nn.init.normal_(model.stack.layers[0].part.k_proj.weight)
    turn = RoPE.turn
    monkeypatch.setattr(RoPE, "turn", lambda self, positions, *rest: turn(self, positions**2, *rest))
    assert roformer.shift_error(model, 100) > 0.1


def test_the_experiment_yields_its_figures(monkeypatch):
    monkeypatch.setattr(roformer, "STEPS", 2)
    figures = list(roformer.SYSTEM.reproduce(Run(seeds=(0,))))
    assert [figure.threshold for figure in figures if figure.threshold] == ["≥ 0.02", "≥ 0.02", "≤ 0.0001"]
    assert all(figure.measured == figure.measured for figure in figures)
