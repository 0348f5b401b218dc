from __future__ import annotations

import pytest
import torch
from torch import nn

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import multi_query_attention as system
from tests.conversion.theirs import take
from tests.stepping import in_pieces

transformers = pytest.importorskip("transformers")


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) / 2, std=0.2)
    return model.eval()


def copy(ours: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    ours.weight.copy_(weight)
    if bias is not None:
        ours.bias.copy_(bias)


def agree(ours: LanguageModel, theirs: nn.Module) -> None:
    """The logits of both, ours also read in parts."""
    tokens = torch.randint(50, (2, 23))
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens)[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(in_pieces(ours, tokens, [9, 10])[0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_of_transformers_gpt_bigcode():
    """Its one map makes queries of all heads, then the key, then the value."""
    config = transformers.GPTBigCodeConfig(
        vocab_size=50,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=64,
        activation_function="gelu",
        multi_query=True,
        tie_word_embeddings=False,
    )
    theirs = randomise(transformers.GPTBigCodeForCausalLM(config))
    layers = "2*(attention(heads=4, kv_heads=1, bias=true) + mlp(hidden=64))"
    ours = LanguageModel(50, 32, layers, position="learned(length=64)", norm="layernorm").eval()
    decoder = theirs.transformer
    copy(ours.embedding, decoder.wte.weight)
    copy(ours.position, decoder.wpe.weight)
    copy(ours.head, theirs.lm_head.weight)
    copy(ours.norm, decoder.ln_f.weight, decoder.ln_f.bias)
    for index, block in enumerate(decoder.h):
        mixer, channel = ours.stack.layers[2 * index : 2 * index + 2]
        copy(mixer.norm, block.ln_1.weight, block.ln_1.bias)
        copy(channel.norm, block.ln_2.weight, block.ln_2.bias)
        fused = block.attn.c_attn
        weights, biases = fused.weight.split([32, 8, 8]), fused.bias.split([32, 8, 8])
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            copy(getattr(mixer.part, name), weight, bias)
        copy(mixer.part.o_proj, block.attn.c_proj.weight, block.attn.c_proj.bias)
        copy(channel.part.up, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        copy(channel.part.down, block.mlp.c_proj.weight, block.mlp.c_proj.bias)
    agree(ours, theirs)


@torch.no_grad()
def test_logits_of_transformers_llama_with_one_key_head():
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    theirs = randomise(transformers.LlamaForCausalLM(config))
    layers = "2*(attention(heads=4, kv_heads=1) + swiglu(hidden=48))"
    ours = LanguageModel(50, 32, layers, position="rope", norm="rmsnorm")
    agree(take(ours, theirs), theirs)


def test_the_models_compared_are_of_equal_size():
    sizes = [system.parameters(layers) for layers in system.ARMS.values()]
    assert max(sizes) / min(sizes) - 1 < 0.005


def test_a_cache_of_one_head_is_a_sixteenth():
    caches = [system.decoding(kv_heads)[1] for kv_heads in (16, 1)]
    assert caches[0].nbytes == 16 * caches[1].nbytes == 268435456
