"""The models against their peer, the figures from invented tables, and the experiment at a size that takes a moment."""

import pytest
import torch
from torch import nn

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import babylm_length
from lengthwise.systems.babylm_length import DISTANT, LOCAL, best_of_both, median, transformer_figures
from lengthwise.systems.system import Run
from lengthwise.training.lengths import Arrangement, LengthRow, LengthTable

transformers = pytest.importorskip("transformers", reason="the peer of the small OPT is transformers' own")


@torch.no_grad()
def test_logits_of_transformers_opt():
    config = transformers.OPTConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=4, ffn_dim=256, num_attention_heads=4, dropout=0.1,
        max_position_embeddings=512, word_embed_proj_dim=64, do_layer_norm_before=True, activation_function="relu",
    )  # fmt: skip
    theirs = transformers.OPTForCausalLM(config).eval()
    torch.manual_seed(10)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) / 2, std=0.2)
    ours = babylm_length.transformer(512).eval()
    decoder = theirs.model.decoder
    ours.head.weight.copy_(decoder.embed_tokens.weight)
    ours.position.weight.copy_(decoder.embed_positions.weight[2:])  # their table begins two places early
    ours.norm.load_state_dict(decoder.final_layer_norm.state_dict())
    for index, block in enumerate(decoder.layers):
        attention, mlp = ours.stack.layers[2 * index], ours.stack.layers[2 * index + 1]
        attention.norm.load_state_dict(block.self_attn_layer_norm.state_dict())
        mlp.norm.load_state_dict(block.final_layer_norm.state_dict())
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(attention.part, name).load_state_dict(getattr(block.self_attn, name).state_dict())
        attention.part.o_proj.load_state_dict(block.self_attn.out_proj.state_dict())
        mlp.part.up.load_state_dict(block.fc1.state_dict())
        mlp.part.down.load_state_dict(block.fc2.state_dict())
    tokens = torch.randint(256, (2, 300))
    expected = theirs(tokens).logits
    assert expected.std() > 1
    torch.testing.assert_close(ours(tokens)[0], expected, rtol=0, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - 2 * 64


def table(local, distant):
    rows = [
        LengthRow(Arrangement(n, 1024 // n, 500), 1.0, {LOCAL: a, DISTANT: b})
        for n, a, b in zip((32, 128, 512), local, distant, strict=True)
    ]
    return LengthTable(tuple(rows), frozenset({DISTANT}))


def test_the_claims_hold_and_fail_as_they_should():
    short, distant, depends = transformer_figures([table((0.8, 0.79, 0.75), (2.0, 1.8, 1.5))])
    assert (short.measured, short.holds) == (pytest.approx(0.05), True)
    assert (distant.measured, distant.holds) == (pytest.approx(0.5), True)
    assert depends.holds
    short, distant, depends = transformer_figures([table((0.7, 0.72, 0.8), (2.0, 1.8, 1.95))])
    assert (short.holds, distant.holds, depends.holds) == (False, False, True)
    assert not list(transformer_figures([table((0.7, 0.72, 0.8), (2.0, 1.8, 1.5))]))[2].holds


def test_one_length_is_best_of_both_only_by_more_than_the_tolerance():
    assert best_of_both(table((0.7, 0.72, 0.8), (2.0, 1.8, 1.5))) == 512
    assert best_of_both(table((0.7, 0.79, 0.8), (2.0, 1.8, 1.5))) is None
    assert best_of_both(table((0.7, 0.72, 0.8), (2.0, 1.58, 1.5))) is None
    assert best_of_both(table((0.9, 0.72, 0.8), (2.0, 1.8, 1.5))) is None


def test_what_is_best_is_judged_by_the_medians_like_the_scores():
    """Of two seeds, one in which 32 is best in both tasks by far, and one in which it isn't by enough."""
    clear, close = table((0.93, 0.87, 0.86), (2.6, 2.87, 2.9)), table((0.875, 0.865, 0.86), (2.6, 2.87, 2.9))
    assert (best_of_both(clear), best_of_both(close)) == (32, None)
    assert best_of_both(median([clear, close])) == 32
    *_, depends = transformer_figures([clear, close])
    assert (depends.measured, depends.holds, depends.note) == (1, False, "32 is")


def test_no_model_is_given_more_than_it_was_trained_with(monkeypatch):
    """The places of learned positions that training never showed are poisoned."""
    monkeypatch.setattr(babylm_length, "TOKENS_PER_UPDATE", 64)
    monkeypatch.setattr(babylm_length, "UPDATES", 1)
    monkeypatch.setattr(babylm_length, "LENGTHS", (32, 64))

    def poisoned(length):
        model = LanguageModel(256, 16, "attention(heads=2)", position="learned(length=64)")
        model.position.weight.data[length:] = float("nan")
        return model

    found = babylm_length.sweep(poisoned, seed=10)
    assert all(value == value for row in found.rows for value in row.scores.values())


def test_the_experiment_yields_its_figures(monkeypatch):
    sizes = {"UPDATES": 2, "TOKENS_PER_UPDATE": 128, "WINDOWS_PER_UPDATE": 2, "LENGTHS": (32, 64, 128)}
    for name, value in {**sizes, "PAIRS": 16, "WORDS": 8}.items():
        monkeypatch.setattr(babylm_length, name, value)
    babylm_length.held_out_tasks.cache_clear()
    told = []
    figures = list(babylm_length.reproduce(Run(seeds=(10,), progress=lambda text, done: told.append(done))))
    babylm_length.held_out_tasks.cache_clear()
    assert [figure.threshold for figure in figures if figure.threshold] == ["≥ -0.02", "≥ 0.1", "≤ 0"]
    assert all(figure.measured == figure.measured for figure in figures)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
