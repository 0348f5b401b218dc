"""Memory vectors between segments: against the layers alone, and a published implementation of them."""

import pytest
import torch

from lengthwise import laws
from lengthwise.contract import state_nbytes, state_tensors
from lengthwise.errors import InputError
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.loading import load
from tests.stepping import in_pieces
from tests.stirred import stir

DIM = 16


def language_model(layers, position="none", norm="layernorm"):
    torch.manual_seed(0)
    return LanguageModel(17, DIM, layers, position, norm).double()


@pytest.fixture
def tokens():
    return torch.randint(0, 17, (2, 14), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_without_memory_segments_are_read_each_on_its_own(tokens):
    base = language_model("2*(attention(heads=2) + mlp)", "rope")
    model = language_model("recurrent_memory(2*(attention(heads=2) + mlp), tokens=0, segment=5)", "rope")
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in base.parameters())
    part = model.stack.layers[0]
    part.stack.load_state_dict(base.stack.state_dict())
    for mine, given in [(part.norm, base.norm), (model.embedding, base.embedding), (model.head, base.head)]:
        mine.load_state_dict(given.state_dict())
    expected = torch.cat([base(piece)[0] for piece in tokens.split(5, 1)], 1)
    torch.testing.assert_close(model(tokens)[0], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_segments_are_those_of_gpt2(tokens):
    """GPT-2 of transformers given [M; X; M] as its embeddings, its last hidden states handed on by hand."""
    transformers = pytest.importorskip("transformers")
    memory, segment = 3, 5
    layers = "2*(attention(heads=2, bias=true) + mlp(activation=gelu))"
    position = f"learned(length={segment + 2 * memory})"
    model = language_model(
        f"recurrent_memory({layers}, tokens={memory}, segment={segment}, position={position})"
    ).float()
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=segment + 2 * memory, n_embd=DIM, n_layer=2, n_head=2, activation_function="gelu",
        tie_word_embeddings=False, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    peer = stir(transformers.GPT2LMHeadModel(config).eval(), 0.1)
    part = model.stack.layers[0]
    copy_gpt2(peer, model, part)
    state, given = None, part.memory.expand(2, -1, -1)
    for piece in tokens[:, : 2 * segment].split(segment, 1):
        rows = torch.cat([given, model.embedding(piece), given], 1)
        out = peer(inputs_embeds=rows, output_hidden_states=True)
        last = out.hidden_states[-1]
        logits, state = model(piece, state)
        # float32 in both, a few layers deep
        torch.testing.assert_close(logits, out.logits[:, memory:-memory], rtol=0, atol=1e-5)
        given = last[:, -memory:]
        torch.testing.assert_close(state.layers[0].memory, given, rtol=0, atol=1e-5)


def copy_gpt2(peer, model, part):
    """GPT-2's weights, whose linear maps are written transposed."""
    model.head.weight.copy_(peer.lm_head.weight)
    part.position.weight.copy_(peer.transformer.wpe.weight)
    part.norm.load_state_dict(peer.transformer.ln_f.state_dict())
    for block, attention, mlp in zip(peer.transformer.h, part.stack.layers[::2], part.stack.layers[1::2], strict=True):
        attention.norm.load_state_dict(block.ln_1.state_dict())
        mlp.norm.load_state_dict(block.ln_2.state_dict())
        projections = [attention.part.q_proj, attention.part.k_proj, attention.part.v_proj]
        for projection, weight, bias in zip(
            projections, block.attn.c_attn.weight.chunk(3, 1), block.attn.c_attn.bias.chunk(3), strict=True
        ):
            projection.weight.copy_(weight.T)
            projection.bias.copy_(bias)
        for mine, given in [
            (attention.part.o_proj, block.attn.c_proj),
            (mlp.part.up, block.mlp.c_fc),
            (mlp.part.down, block.mlp.c_proj),
        ]:
            mine.weight.copy_(given.weight.T)
            mine.bias.copy_(given.bias)


@pytest.mark.parametrize("position", ["rope", "alibi", "learned(length=9)", "sinusoidal"])
@torch.no_grad()
def test_positions_begin_anew_with_each_segment(position):
    torch.manual_seed(0)
    made = build(f"recurrent_memory(attention(heads=2), tokens=2, segment=5, position={position})", dim=DIM).double()
    x = torch.randn(1, 5, DIM, dtype=torch.float64)
    _, state = made(x)
    y, _ = made(x, state)
    made.memory.data = state.memory[0]
    torch.testing.assert_close(y, made(x)[0])


def slope(made, segments, segment):
    """Whether a loss on the last of some segments has a gradient by the tokens of each."""
    x = torch.randn(1, segments * segment, DIM, dtype=torch.float64, requires_grad=True)
    y, _ = made(x)
    y[:, -segment:].square().sum().backward()
    return [bool(piece.any()) for piece in x.grad.split(segment, 1)]


@pytest.mark.parametrize("cuts", [[], [4], [3, 5, 11]])
@pytest.mark.parametrize(
    ("backprop", "reached"), [("none", [True] * 4), ("1", [False] * 3 + [True]), ("2", [False] * 2 + [True] * 2)]
)
def test_gradients_end_before_every_kth_segment(backprop, reached, cuts):
    torch.manual_seed(0)
    made = build(f"recurrent_memory(attention(heads=2), tokens=2, segment=3, backprop={backprop})", dim=DIM).double()
    assert slope(made, 4, 3) == reached
    x = torch.randn(1, 12, DIM, dtype=torch.float64, requires_grad=True)
    in_pieces(made, x, cuts)[0][:, 9:].square().sum().backward()
    assert [bool(piece.any()) for piece in x.grad.split(3, 1)] == reached


def test_the_first_memory_is_learned_through_all_segments():
    torch.manual_seed(0)
    made = build("recurrent_memory(attention(heads=2), tokens=2, segment=3)", dim=DIM)
    made(torch.randn(1, 9, DIM))[0][:, 6:].sum().backward()
    assert made.memory.grad.abs().sum() > 0


@torch.no_grad()
def test_a_full_segment_leaves_its_memory_alone(tokens):
    model = language_model("recurrent_memory(attention(heads=2) + mamba, tokens=3, segment=7)").float()
    _, state = model(tokens)
    assert [t.shape for t in state_tensors(state)] == [(2, 3, DIM)]
    for length in range(1, 15):
        assert state_nbytes(model(tokens[:, :length])[1]) == 2 * model.state_nbytes(length)


@torch.no_grad()
def test_saved_and_loaded(tokens, tmp_path):
    for memory in (0, 2):
        model = language_model(f"recurrent_memory(attention(heads=2), tokens={memory}, segment=4)", "rope").float()
        model.save(tmp_path / str(memory))
        assert torch.equal(load(tmp_path / str(memory))(tokens)[0], model(tokens)[0])


def test_it_ends_a_model_normed_and_may_stand_among_others():
    assert language_model("recurrent_memory(mamba, tokens=2, segment=4)").norm.state_dict() == {}
    between = "mlp + recurrent_memory(min_gru + mlp, tokens=2, segment=4) + mlp"
    laws.check(lambda dim: build(between, dim=dim), dim=8, laws=["resumable", "packed", "growth", "value"])
    nested = "recurrent_memory(cache_previous(attention(heads=2), segment=2) + mlp, tokens=1, segment=5)"
    laws.check(lambda dim: build(nested, dim=dim), dim=8, laws=["resumable", "packed", "growth", "padding"])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("recurrent_memory(mamba, tokens=-1)", "tokens counts memory vectors and must be at least 0, got -1"),
        ("recurrent_memory(mamba, segment=0)", "at least 1 token, got 0"),
        ("recurrent_memory(mamba, backprop=0)", "at least 1, got 0"),
        ("recurrent_memory(attention(causal=false))", "needs layers that are causal"),
        ("recurrent_memory(mamba, token=1)", "did you mean tokens"),
        ("recurrent_memory(tokens=1)", "takes layers"),
        ("recurrent_memory(mamba, 3)", "takes layers"),
        ("recurrent_memory(mamba, position=roppe)", "did you mean rope"),
    ],
)
def test_errors(expression, message):
    with pytest.raises(InputError, match=message):
        build(f"mlp + {expression}", dim=8)
