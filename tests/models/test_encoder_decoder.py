"""A model that reads one sequence and writes another."""

import pytest
import torch
from torch.nn import functional as F

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from tests.laws.encoder_decoders import KINDS, SMALL, draw
from tests.stirred import stir


def model(kind="attention", **changes):
    torch.manual_seed(0)
    made = lw.EncoderDecoder(**{**SMALL, **KINDS[kind], **changes}).double().eval()
    return stir(made)  # so that the source shows in every output


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_document_reads_the_source_of_its_own(kind):
    made = model(kind)
    sources, targets = [draw(1, n, seed=n) for n in (4, 1, 6)], [draw(1, n, seed=n + 9) for n in (3, 5, 2)]
    alone = [made(y, source=s)[0] for y, s in zip(targets, sources, strict=True)]
    source, target = Layout.packed([[4, 1, 6]]), Layout.packed([[3, 5, 2]])
    state = made.encode(torch.cat(sources, 1), source)
    whole, _ = made(torch.cat(targets, 1), state, target)
    torch.testing.assert_close(whole, torch.cat(alone, 1))
    for cut in range(1, 10):
        first, after = made(torch.cat(targets, 1)[:, :cut], state, target.slice(0, cut))
        second, _ = made(torch.cat(targets, 1)[:, cut:], after, target.slice(cut))
        torch.testing.assert_close(torch.cat([first, second], 1), whole)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_pads_a_source_is_not_read(side):
    made = model()
    rows = [draw(1, n, seed=n) for n in (3, 7, 5)]
    layout = Layout.padded([3, 7, 5], side)
    pad = (lambda n: (7 - n, 0)) if side == "left" else (lambda n: (0, 7 - n))
    target = draw(3, 6, seed=2)
    for filler in (0, 4):
        source = torch.cat([F.pad(row, pad(row.shape[1]), value=filler) for row in rows])
        got, state = made(target, source=source, source_layout=layout)
        expected = torch.cat([made(target[r : r + 1], source=rows[r])[0] for r in range(3)])
        torch.testing.assert_close(got, expected)
        last, _ = made(target[:, :1], state)
        index = torch.tensor([2, 0, 0, 1])
        torch.testing.assert_close(made(target[index, :1], state.select(index))[0], last[index])


@torch.no_grad()
def test_several_documents_read_one_source_that_is_padded():
    made, source = model(), draw(1, 5)
    padded, layout = F.pad(source, (2, 0)), Layout.padded([5, 7]).select(torch.tensor([0]))
    target = draw(1, 7, seed=3)
    got, _ = made(target, source=padded, layout=Layout.packed([[3, 4]]), source_layout=layout)
    expected = torch.cat([made(part, source=source)[0] for part in target.split([3, 4], 1)], 1)
    torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_the_decoder_starts_after_padding_as_without():
    made, source, target = model(), draw(2, 6), draw(2, 4, seed=5)
    layout, packed = Layout.padded([2, 4]), Layout.packed([[2, 4], [6]])
    state = made.encode(source, packed)
    y, after = made(target, state, layout)
    for cut in (1, 2, 3):
        first, between = made(target[:, :cut], state, layout.slice(0, cut))
        second, _ = made(target[:, cut:], between, layout.slice(cut))
        torch.testing.assert_close(torch.cat([first, second], 1)[:, 2:], y[:, 2:])
    alone, _ = made(target[:1, 2:], source=source[:1, :2])
    torch.testing.assert_close(y[:1, 2:], alone)
    more, _ = made(target[:, :1], after)
    longer, _ = made(torch.cat([target[:1, 2:], target[:1, :1]], 1), source=source[:1, :2])
    torch.testing.assert_close(more[:1], longer[:, -1:])


@torch.no_grad()
def test_a_source_without_tokens_gives_nothing_to_read():
    made, target = model(), draw(2, 4)
    empty, _ = made(target, source=draw(2, 0))
    padded, _ = made(target, source=draw(2, 3), source_layout=Layout.padded([0, 3]))
    torch.testing.assert_close(padded[:1], empty[:1])
    assert (padded[1] - empty[1]).abs().max() > 0.01


def test_gradients_reach_the_source_through_a_cut():
    made = model().train()
    source, target = draw(2, 5), draw(2, 6, seed=1)
    whole = made(target, source=source)[0].square().sum()
    state = made.encode(source)
    first, state = made(target[:, :2], state)
    second, _ = made(target[:, 2:], state)
    losses = (whole, torch.cat([first, second], 1).square().sum())
    wanted, found = (torch.autograd.grad(loss, list(made.parameters())) for loss in losses)
    for name, a, b in zip(dict(made.named_parameters()), wanted, found, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_gives_the_same_bits(kind, tmp_path):
    made = model(kind).float()
    made.save(tmp_path / "m")
    again = lw.load(tmp_path / "m").eval()
    assert again.config == made.config
    target, source = draw(2, 4), draw(2, 6)
    assert torch.equal(again(target, source=source)[0], made(target, source=source)[0])
    with torch.no_grad():
        _, state = made(target, source=source)
        assert state.nbytes == 2 * made.state_nbytes(4, 6)
        lw.save_state(state, tmp_path / "s")
        assert torch.equal(made(target, lw.load_state(tmp_path / "s")[0])[0], made(target, state)[0])


def test_tied_matrices_are_one():
    made = model("learned positions, tied")
    assert made.encoder.embedding.weight is made.decoder.embedding.weight is made.decoder.head.weight


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: model()(draw(1, 3)), "got neither"),
        (lambda: model()(draw(1, 3), model().encode(draw(1, 3)), source=draw(1, 3)), "got both"),
        (lambda: model(decoder="attention + mlp"), "give it cross_attention"),
        (lambda: model(decoder="attention(causal=false) + cross_attention"), "must be causal"),
        (lambda: model(encoder="attention + cross_attention"), "unknown part"),
        (lambda: model(decoder="perspectives(rwkv + cross_attention)"), "doesn't hand it the source"),
        (lambda: model(tie=True, source_vocab_size=5), "one vocabulary"),
        (lambda: lw.LanguageModel(5, 8, "cross_attention"), "unknown part"),
        (
            lambda: model()(
                draw(1, 6), source=draw(1, 5), layout=Layout.packed([[2, 2, 2]]), source_layout=Layout.packed([[2, 3]])
            ),
            "row 0 has 3 documents to decode and sources for 2",
        ),
    ],
)
def test_what_cannot_be_answered_is_one_clear_error(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
