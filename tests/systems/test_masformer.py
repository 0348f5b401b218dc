from __future__ import annotations

import pytest
import torch
from torch import nn

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import masformer


def test_every_arm_trains():
    for layers in masformer.ARMS.values():
        found = masformer.examine(masformer.train(layers, 10, steps=1), examples=2)
        assert 0 <= found.accuracy <= 1
        assert found.nats > 0


def test_arms_share_their_weights_one_to_one():
    shapes = [
        [p.shape for p in LanguageModel(16, 48, layers, position="none").parameters()]
        for layers in masformer.ARMS.values()
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_blocks_alone_do_not_reach_the_slots():
    task, layers = masformer.TASK, masformer.ARMS["blocks alone"]
    model = LanguageModel(task.vocab_size, 48, layers, position=f"learned(length={task.length})")
    hidden = []
    model.embedding.register_forward_hook(lambda _m, _i, out: hidden.append(out.requires_grad_()))
    model(task.batch(1).tokens)[0][0, -2].sum().backward(inputs=hidden)
    assert hidden[0].grad[0].abs().sum(-1).nonzero().min() > 2 * task.types


def test_share_of_the_logits_is_the_counted_one():
    for length, layers, full, block in ((256, 6, 2, 16), (8192, 24, 4, 1024)):
        near = length * (block + 1) / 2 + (length - block) * block  # its own block up to itself, and the one before
        expected = full / layers + (1 - full / layers) * near / (length * (length + 1) / 2)
        assert masformer.entries_share(length, layers, full, block) == pytest.approx(expected)


@pytest.mark.parametrize("block", [None, 64])
def test_full_layers_are_those_of_gpt_neo(block):
    """The paper's host: unscaled logits, biases in all but q, k and v. Blocks beyond the sequence change nothing."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global"], 2]],
        max_position_embeddings=64,
        intermediate_size=64,
        activation_function="gelu",
        attn_implementation="eager",
    )
    theirs = transformers.GPTNeoForCausalLM(config).eval()
    pattern = "" if block is None else f", pattern=blocks({block})"
    layers = f"2*(attention(heads=4, bias=true, scale=1.0{pattern}) + mlp(hidden=64))"
    ours = LanguageModel(50, 32, layers, position="learned(length=64)", norm="layernorm", tie=True)
    stack = list(ours.stack.layers)
    pairs = [(ours.embedding, theirs.transformer.wte), (ours.norm, theirs.transformer.ln_f)]
    for at, block_of_theirs in enumerate(theirs.transformer.h):
        attend, mlp, inner = stack[2 * at], stack[2 * at + 1], block_of_theirs.attn.attention
        pairs += [(attend.norm, block_of_theirs.ln_1), (mlp.norm, block_of_theirs.ln_2)]
        names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
        pairs += [(getattr(attend.part, name), getattr(inner, other)) for name, other in names.items()]
        pairs += [(mlp.part.up, block_of_theirs.mlp.c_fc), (mlp.part.down, block_of_theirs.mlp.c_proj)]
    with torch.no_grad():
        for own, other in pairs:
            for name, parameter in own.named_parameters():
                source = getattr(other, name)
                nn.init.zeros_(parameter) if source is None else parameter.copy_(source)
        ours.position.weight.copy_(theirs.transformer.wpe.weight)
        tokens = torch.randint(50, (2, 40))
        torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, atol=1e-4, rtol=1e-4)
