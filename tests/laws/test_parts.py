"""Every part and every kind of model keeps the laws."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from lengthwise import laws
from lengthwise.channels import CHANNELS
from lengthwise.mixers import MIXERS
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from tests.stirred import stir

DIM = 8

CONFIGURATIONS = [
    "attention(heads=2, window=5)",
    "attention(heads=2, pattern=causal() & (window(4) | first(2)))",
    "attention(heads=2, pattern=blocks(4, previous=1))",
    "attention(heads=2, pattern=blocks(4) | fixed(4, 1), position=rope)",
    "attention(heads=2, pattern=window(3) | strided(4), position=alibi)",
    "attention(heads=2, pattern=dilated(2, 3))",
    "attention(heads=2, pattern=strided(2) & blocks(6) | blocks(3, previous=1, following=2))",
    "attention(heads=2, pattern=window(3) | keys_at(0, 2, 99))",
    "attention(heads=2, pattern=global_tokens(1, 5))",
    "attention(heads=2, pattern=keys_at(3))",
    "attention(heads=2, bias=true, pattern=keys_at())",
    "attention(heads=4, kv_heads=2, pattern=per_head(window(2), blocks(3) | fixed(3, 1)))",
    "attention(heads=2, causal=false, pattern=window(2, 2) | global_tokens(0))",
    "attention(heads=2, position=rope)",
    "attention(heads=2, position=alibi)",
    "attention(heads=2, position=t5)",
    "attention(heads=2, position=t5, temperature=0.7)",
    "attention(heads=2, position=rope, temperature=log_slope(trained=3, b=0.5))",
    "attention(heads=2, position=seqpe(width=8, positions=300))",
    "attention(heads=4, kv_heads=2, window=4, position=seqpe(use=attn_mul, kv_heads=2, width=8, grid=5))",
    "attention(heads=2, pattern=blocks(4) | fixed(4, 1), position=seqpe(use=attn_add, width=4, blocks=1))",
    "attention(heads=2, causal=false, position=seqpe(width=8, positions=300))",
    "attention(heads=4, pattern=hard_alibi(masked=3))",
    "attention(heads=2, position=randomised(t5))",
    "attention(heads=2, position=randomised(rope))",
    "attention(heads=2, position=fire(length=4))",
    "attention(heads=4, kv_heads=2, window=4, position=fire(width=5))",
    "attention(heads=2, causal=false, position=fire(length=3, causal=false))",
    "attention(heads=2, position=cable)",
    "attention(heads=2, window=3, position=cable)",
    "attention(heads=4, kv_heads=2, position=cable(start=spread))",
    "attention(heads=2, pattern=window(1) | first(2), position=cable)",
    "attention(heads=2, pattern=blocks(4) | fixed(4, 1), position=cable)",
    "attention(heads=2, causal=false, position=cable(causal=false))",
    "attention(heads=4, kv_heads=1)",
    "attention(heads=4, kv_heads=2, window=3, position=rope)",
    "coca_attention(heads=4, kv_heads=2, window=4)",
    "coca_attention(heads=2, pattern=blocks(4) | fixed(4, 1), form=released)",
    "coca_attention(heads=2, causal=false)",
    "chunked_attention(heads=2, chunk=5, position=rope)",
    "relative_attention(heads=2, length=5)",
    "relative_attention(heads=4, kv_heads=2, length=7, block=4)",
    "relative_attention(heads=2, length=5, causal=false)",
    "chunked_attention(heads=4, kv_heads=2, chunk=4, position=t5)",
    "chunked_attention(heads=2, chunk=5, causal=false, position=alibi)",
    "routing_attention(heads=2, clusters=3, members=4, window=3)",
    "routing_attention(heads=4, routing_heads=3, clusters=2, members=1, position=rope)",
    "routing_attention(heads=2, clusters=3, members=4, assignment=topw)",
    "routing_attention(heads=2, clusters=3, members=4, assignment=topw, causal=false)",
    "dilated_attention(heads=4, segments=[4, 8], dilations=[1, 2], weights=differentiable, position=rope)",
    "dilated_attention(heads=4, head_dim=4, segments=[3, 6, 12], dilations=[1, 2, 5], weights=differentiable)",
    "dilated_attention(heads=2, segments=[3, 6], dilations=[1, 3], causal=false, norm=layernorm)",
    "combiner(heads=2, segment=4, position=rope)",
    "combiner(heads=2, segment=3, causal=false)",
    "combiner(heads=2, form=logsparse)",
    "combiner(heads=2, form=axial, segment=4)",
    "combiner(heads=2, form=axial, segment=3, summary_key=weighted)",
    "combiner(heads=2, form=mixture, segment=4)",
    "combiner(heads=2, form=mixture, segment=4, causal=false)",
    "attention(heads=2, causal=false)",
    "attention(heads=2, causal=false, position=alibi)",
    "longformer(heads=2, window=2, causal=false)",
    "longformer(heads=2, window=2, dilation=2, first=1, causal=false, position=rope)",
    "longformer(heads=4, kv_heads=2, window=3, dilation=2, causal=true)",
    "linear_attention(heads=2)",
    "linear_attention(heads=2, causal=false)",
    "deltanet(heads=2, largest_beta=2)",
    "min_gru(form=plain, kernel=3)",
    "min_lstm(expansion=2)",
    "mamba2(head_dim=4, groups=2, state_dim=4)",
    "mamba2(head_dim=4, state_dim=4, state_control=window(length=5))",
    "mamba2(head_dim=4, state_dim=4, state_control=normalise(limit=0.05, every=3))",
    "mamba2(head_dim=4, state_dim=4, state_control=forget(decay=2, insertion=0.5))",
    "hyena(order=3, max_length=256, emb_dim=5)",
    "tcn(kernel=3, levels=2)",
    "tcn(kernel=3, dilation_factor=2, levels=2, depthwise=false, activation=relu)",
    "tcn(kernel=3, levels=2, causal=false)",
    "ema(states=3, causal=false)",
    "mega(states=3, chunk=4, z_dim=3)",
    "mega(states=2, chunk=5, causal=false)",
    "tcnca(kernel=2, levels=2, chunk=3)",
    "chain(tcn(kernel=2, levels=2) + chunked_attention(heads=2, chunk=4))",
    "timestep_norm(groups=4)",
    "timestep_norm(groups=8)",
    "complex_ema(states=3, phase=all)",
    "megalodon(chunk=4, z_dim=4, states=2)",
    "megalodon(chunk=5, heads=2, groups=4, states=3)",
    "rrwkv(interval=3)",
    "s5(state_dim=6, largest_real=-1e-4)",
    "rrwkv_channels(interval=3)",
    "bidirectional(mamba)",
    "2*(attention(heads=2) + swiglu)",
    "vcc(2*(attention(heads=2, position=rope, causal=false) + mlp), block=3, fine=2, places=2)",
    "two_hop(attention(heads=2) + swiglu)",
    "post_norm(attention(heads=2) + mlp)",
    "two_hop(megalodon(chunk=3, states=3) + chain(layernorm + swiglu)) + timestep_norm",
    "chain(min_gru + integrate_and_fire(tau=1.5))",
    "perspectives(rwkv + rwkv_channels, views=3)",
    "block_recurrent(heads=2, block=3, states=4)",
    "block_recurrent(heads=2, block=4, states=3, gate=lstm, configuration=dual)",
    "block_recurrent(heads=2, block=5, states=3, configuration=single, backprop=2)",
    "recurrent_memory(2*(attention(heads=2) + mlp), tokens=2, segment=3)",
    "recurrent_memory(attention(heads=2) + mamba, tokens=0, segment=4, position=learned(length=4))",
    "recurrent_memory(mamba + mlp, tokens=1, segment=5, backprop=2, position=sinusoidal)",
    "cache_previous(2*(attention(heads=2, position=rope) + mlp), segment=3, segments=2)",
    "recompute(attention(heads=2, window=4) + mamba + mlp)",
    "mamba + attention(window=4, heads=2) + mlp",
]

MODELS = {
    "transformer with rope": {"layers": "2*(attention(heads=2) + swiglu)", "position": "rope"},
    "transformer with learned positions": {"layers": "attention(heads=2) + mlp", "position": "learned(length=256)"},
    "transformer with shared fire": {
        "layers": "2*(attention(heads=2) + swiglu)",
        "position": "fire(heads=2, length=4, shared=true)",
    },
    "transformer with cable": {"layers": "2*(attention(heads=2) + swiglu)", "position": "cable(heads=2)"},
    "mamba": {"layers": "2*mamba"},
    # normed, since what the branch gives with a law's small weights would wake no neuron
    "spiking rwkv": {"layers": "spikes + layernorm + chain(rwkv + layernorm + integrate_and_fire)"},
    "rwkv from two perspectives": {"layers": "layernorm + perspectives(rwkv + rwkv_channels)"},
    "recurrent memory": {
        "layers": "recurrent_memory(attention(heads=2) + mlp, tokens=2, segment=4)",
        "position": "learned(length=256)",
    },
    "hybrid, tied": {"layers": "deltanet(heads=2) + attention(window=4, heads=2) + min_gru + mlp", "tie": True},
}

EVERYDAY = [name for name in laws.LAWS if name != "compile"]


def part(expression):
    return lambda dim: build(expression, dim=dim)


@pytest.mark.parametrize("expression", [*MIXERS, *CHANNELS, *CONFIGURATIONS])
def test_parts_keep_the_laws(expression):
    laws.check(part(expression), dim=DIM, laws=EVERYDAY)


def test_parts_are_made_without_memory_too():
    """As a file is compared with what it describes, before its weights are read."""
    for expression in (*MIXERS, *CHANNELS, *CONFIGURATIONS):
        real = part(expression)(DIM).state_dict()
        with torch.device("meta"):
            made = part(expression)(DIM).state_dict()
        assert {tensor.device.type for tensor in made.values()} <= {"meta"}, expression
        forms = [{name: (t.shape, t.dtype) for name, t in found.items()} for found in (real, made)]
        assert forms[0] == forms[1], expression


@pytest.mark.parametrize("mixer", MIXERS)
def test_any_causal_mixer_reads_both_ways(mixer):
    """And no longer than its own document, whatever stands behind it."""
    module = stir(build(f"bidirectional({mixer})", dim=DIM), 0.1)  # some begin silent
    x = torch.randn(1, 9, DIM)
    assert (module(x)[0] - module(torch.cat([x[:, :8], -x[:, 8:]], 1))[0])[:, 0].abs().max() > 0
    laws.check(part(f"bidirectional({mixer})"), dim=DIM, laws=["packed", "padding", "rows", "lengths"])


def test_chunks_of_any_size_are_bounded():
    for expression in ("chunked_attention(heads=2, chunk=999)", "megalodon(chunk=1000)"):
        laws.check(part(expression), dim=DIM, laws=["growth"])


@pytest.mark.parametrize("name", MODELS)
def test_models_keep_the_laws(name):
    laws.check(lambda dim: LanguageModel(vocab_size=13, dim=dim, **MODELS[name]), dim=DIM, laws=EVERYDAY)


COMPILE = """
import json, sys
from lengthwise import laws
from lengthwise.models.build import build
for expression in json.loads(sys.argv[1]):
    subject = laws.Subject(lambda dim: build(expression, dim=dim), 8)
    print(json.dumps([(v.outcome, v.message) for v in laws.examine(subject, ["compile"])][0]), flush=True)
"""


@pytest.mark.slow
def test_parts_that_say_so_compile():
    """In a process of its own: the run-time checks of shapes, which are on in the tests, don't compile."""
    expressions = [*MIXERS, *CHANNELS, *CONFIGURATIONS]
    command = [sys.executable, "-c", COMPILE, json.dumps(expressions)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-2000:]
    outcomes = dict(zip(expressions, map(json.loads, ran.stdout.splitlines()), strict=True))
    assert {k: v for k, v in outcomes.items() if v[0] == "broken"} == {}
    assert sum(outcome == "holds" for outcome, _ in outcomes.values()) > len(expressions) // 2


def test_every_excuse_has_a_reason():
    for name, cls in {**MIXERS, **CHANNELS}.items():
        for law, reason in cls.breaks.items():
            assert law in laws.LAWS, f"{name} excuses itself from {law!r}, which is no law"
            assert len(reason.split()) >= 5
