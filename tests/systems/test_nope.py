import pytest
import torch
from torch import nn

from lengthwise.mixers.attention import Attention
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.none import NoPosition
from lengthwise.systems import nope
from lengthwise.systems.experiments import initialise
from lengthwise.systems.system import Run

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def test_a_head_that_looks_everywhere_counts_its_predecessors():
    """With W_q = 0 and a value that is 1 on the first token alone, position i reads 1/(i+1)."""
    head = Attention(4, heads=1, position=NoPosition()).double()
    for projection in (head.q_proj, head.v_proj, head.o_proj):
        projection.weight.zero_()
    head.v_proj.weight[0, 0] = head.o_proj.weight[0, 0] = 1
    x = torch.randn(1, 300, 4, dtype=torch.float64)
    x[..., 0] = 0
    x[:, 0, 0] = 1
    expected = 1 / torch.arange(1, 301, dtype=torch.float64)
    torch.testing.assert_close(head(x)[0][0, :, 0], expected, rtol=0, atol=1e-12)


def last_change(layers: str, position: str = "none") -> float:
    """How much the last output changes when the tokens before it are shuffled."""
    torch.manual_seed(0)
    model = LanguageModel(50, 16, layers, position).double()
    initialise(model, 0.3)
    tokens = torch.randint(50, (2, 12))
    shuffled = torch.cat([tokens[:, torch.randperm(11)], tokens[:, 11:]], dim=1)
    with torch.no_grad():
        return float((model(tokens)[0] - model(shuffled)[0])[:, -1].abs().max())


def test_one_layer_sees_the_set_of_its_predecessors_and_two_see_their_order():
    layer = "attention(heads=2) + mlp"
    assert last_change(layer) < 1e-12
    assert last_change(f"2*({layer})") > 1e-3
    assert last_change(layer, "rope") > 1e-3


@torch.no_grad()
def test_without_the_mask_the_output_moves_with_the_tokens():
    torch.manual_seed(0)
    model = Encoder(50, 16, "3*(attention(heads=2) + mlp)", "none")
    initialise(model, 0.3)
    tokens, order = torch.randint(50, (2, 12)), torch.randperm(12)
    torch.testing.assert_close(model(tokens[:, order])[0], model(tokens)[0][:, order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_of_transformers_gpt2_without_its_position_table():
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, activation_function="gelu"
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) / 2, std=0.3)
    theirs.transformer.wpe.weight.zero_()
    layers = "2*(attention(heads=4, bias=true) + mlp)"
    ours = LanguageModel(50, 32, layers, position="none", norm="layernorm", tie=True).eval()
    ours.embedding.weight.copy_(theirs.transformer.wte.weight)
    ours.norm.load_state_dict(theirs.transformer.ln_f.state_dict())
    for index, block in enumerate(theirs.transformer.h):
        attention, mlp = ours.stack.layers[2 * index], ours.stack.layers[2 * index + 1]
        attention.norm.load_state_dict(block.ln_1.state_dict())
        mlp.norm.load_state_dict(block.ln_2.state_dict())
        third = block.attn.c_attn.weight.chunk(3, dim=1), block.attn.c_attn.bias.chunk(3)
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), *third, strict=True):
            getattr(attention.part, name).weight.copy_(weight.T)
            getattr(attention.part, name).bias.copy_(bias)
        for linear, conv in (
            (attention.part.o_proj, block.attn.c_proj),
            (mlp.part.up, block.mlp.c_fc),
            (mlp.part.down, block.mlp.c_proj),
        ):
            linear.weight.copy_(conv.weight.T)
            linear.bias.copy_(conv.bias)
    tokens = torch.randint(50, (2, 37))
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=0, atol=1e-4)


def test_the_experiment_yields_its_figures(monkeypatch):
    monkeypatch.setattr(nope, "STEPS", 2)
    monkeypatch.setattr(nope, "PROBE_STEPS", 2)
    figures = list(nope.SYSTEM.reproduce(Run(seeds=(0,))))
    assert [figure.threshold for figure in figures if figure.threshold] == ["≤ 1.1", "≥ 0.8", "≤ 0.35", "≥ 0.8"]
    assert all(figure.measured == figure.measured for figure in figures)
