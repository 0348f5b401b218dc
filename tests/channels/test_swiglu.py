import pytest
import torch
from torch.nn import functional

from lengthwise.channels.mlp import MLP
from lengthwise.channels.swiglu import SwiGLU
from lengthwise.errors import InputError


def test_the_formula():
    glu, x = SwiGLU(6, hidden=10, bias=True), torch.randn(2, 5, 6)
    w1, w2 = glu.gate_up.weight.chunk(2)
    y, state = glu(x)
    torch.testing.assert_close(y, (functional.silu(x @ w1.T) * (x @ w2.T)) @ glu.down.weight.T)
    assert state is None


def test_the_llama_module_with_the_same_weights():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    glu, x = SwiGLU(12), torch.randn(2, 5, 12)
    theirs = llama.LlamaMLP(LlamaConfig(hidden_size=12, num_attention_heads=2, intermediate_size=32))
    gate, up = glu.gate_up.weight.chunk(2)
    theirs.load_state_dict({"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": glu.down.weight})
    torch.testing.assert_close(glu(x)[0], theirs(x))


@pytest.mark.parametrize("dim", [24, 64, 100, 256])
def test_as_many_weights_as_an_mlp(dim):
    glu = SwiGLU(dim)
    assert glu.down.weight.shape[1] % 8 == 0
    weights = sum(p.numel() for p in glu.parameters())
    assert abs(weights / sum(p.numel() for p in MLP(dim, bias=False).parameters()) - 1) < 0.06


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match="hidden"):
        SwiGLU(6, hidden=0)
