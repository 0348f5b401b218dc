"""Sequential position encodings: the encoder against PyTorch's, the table, and every use against its formula."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.positions.seqpe import SeqPE
from lengthwise.positions.seqpe_encoder import DigitEncoder, Strings
from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.optimizer import decays
from tests.stirred import stir


def stirred(module, seed=10):
    """Weights away from where they begin, at which encodings are all but alike."""
    torch.manual_seed(seed)
    return stir(module, 0.2)


def digits(encoder, positions):
    """The digits that the encoder writes for positions given by their coordinates."""
    codes = encoder.codes(torch.tensor(positions))
    strings = Strings.of(codes, encoder.axes * encoder.digits, share=False)
    table = strings.symbols[:-1].view(-1, len(codes)) if len(codes) == 1 else strings.symbols.view(-1, len(codes))[:-1]
    return (table % 10).T.tolist()


def by_pytorch(encoder, positions):
    """e by torch.nn.TransformerEncoderLayer with the encoder's weights, every string written out."""
    width = encoder.summary.shape[0]
    lines = [[int(c) for n in row for c in str(int(n)).zfill(encoder.digits)] for row in positions]
    symbols = torch.tensor(lines)
    x = encoder.tokens[symbols] + encoder.places
    if encoder.axis is not None:
        x = x + encoder.axis.repeat_interleave(encoder.digits, 0)
    x = torch.cat([x, encoder.summary.expand(len(x), 1, -1)], dim=1)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    for block in encoder.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            width,
            block.heads,
            4 * width,
            dropout=0,
            activation=lambda y: functional.gelu(y, approximate="tanh"),
            batch_first=True,
            norm_first=True,
            dtype=x.dtype,
        )
        weights = {
            f"{name}.{kind}": getattr(module, kind)
            for name, module in {
                "self_attn.out_proj": block.o_proj,
                "norm1": block.attention_norm,
                "norm2": block.norm,
                "linear1": block.up,
                "linear2": block.down,
            }.items()
            for kind in ("weight", "bias")
        }
        weights |= {f"self_attn.in_proj_{kind}": getattr(block.qkv_proj, kind) for kind in ("weight", "bias")}
        x = torch.func.functional_call(layer, weights, (x,), {"src_mask": mask})
    return encoder.head(encoder.norm(x[:, -1]))


@pytest.mark.parametrize(("width", "blocks", "axes"), [(8, 2, 1), (128, 2, 1), (16, 1, 2), (8, 3, 3)])
def test_the_encoder_is_pytorchs(width, blocks, axes):
    encoder = stirred(DigitEncoder(6, width=width, blocks=blocks, positions=1000, axes=axes)).double()
    for positions in (torch.randint(0, 1000, (40, axes)), torch.arange(205).unsqueeze(1).repeat(1, axes)):
        found, expected = encoder(positions), by_pytorch(encoder, positions)
        assert (found - expected).abs().max() < 1e-10
        d_e, weights = torch.randn_like(found), list(encoder.parameters())
        gradients = (torch.autograd.grad(e, weights, d_e) for e in (found, expected))
        for of_found, of_expected in zip(*gradients, strict=True):
            assert (of_found - of_expected).abs().max() < 1e-10 * max(1, float(of_expected.abs().max()))


def test_float32_is_as_exact_as_its_numbers():
    encoder = stirred(DigitEncoder(64, width=64, positions=20_000))
    positions = torch.cat([torch.arange(300), torch.randint(20_000, (200,))])[:, None]
    found, expected = encoder(positions), by_pytorch(copy.deepcopy(encoder).double(), positions)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9999), min_size=1, max_size=30))
def test_what_strings_share_changes_nothing(numbers):
    encoder = stirred(DigitEncoder(4, width=8, positions=10_000)).double()
    positions = torch.tensor(numbers)[:, None]
    alone = encoder.read(Strings.of(encoder.codes(positions), encoder.digits, share=False))
    assert (encoder(positions) - alone).abs().max() < 1e-12


def test_a_window_shares_what_its_numbers_begin_with():
    strings = Strings.of(torch.arange(1000), 4, share=True)
    assert len(strings.symbols) == 1 + 10 + 100 + 1000 + 1000


def test_digits():
    four, pairs = DigitEncoder(4, positions=10_000), DigitEncoder(4, positions=100, axes=2)
    assert digits(four, [[0], [9999], [120]]) == [[0, 0, 0, 0], [9, 9, 9, 9], [0, 1, 2, 0]]
    assert digits(pairs, [[7, 12], [99, 0]]) == [[0, 7, 1, 2], [9, 9, 0, 0]]
    assert [DigitEncoder(4, positions=p).digits for p in (1, 10, 11, 20_000)] == [1, 1, 2, 5]


def test_its_tables_are_kept_from_weight_decay():
    encoder = DigitEncoder(4, axes=2)
    assert not any(decays(p) for p in (encoder.tokens, encoder.places, encoder.axis, encoder.summary))
    assert decays(encoder.head.weight)


def test_gradients_of_every_use():
    for use in ("attn_scalar", "attn_mul", "attn_add", "input_add"):
        seqpe = stirred(SeqPE(8, heads=2, use=use, width=8, positions=50)).double().eval()
        q, k = (torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        places = torch.tensor([0, 1, 12])

        def used(q, k, *weights, seqpe=seqpe, places=places):
            if seqpe.has("bias"):
                return seqpe.bias(places, places, 2).written()
            if seqpe.has("embed"):
                return seqpe.embed(q.flatten(2), places)
            return seqpe.rotate(q, k, places, places)

        assert torch.autograd.gradcheck(used, (q, k, *seqpe.parameters()), fast_mode=True)


@pytest.mark.parametrize("layout", [None, Layout.packed([[5, 7], [12]])])
def test_a_bias_is_attention_on_more_channels(layout):
    torch.manual_seed(10)
    position = stirred(SeqPE(32, heads=4, width=16, positions=100, strength=0.7)).double()
    layer = lw.build("attention(heads=4, kv_heads=2)", dim=32, position=position).double().eval()
    for weight in (layer.q_proj.weight, layer.k_proj.weight):
        weight.data.mul_(20)
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    q, k, v = layer.project(x)
    k, v = (y.repeat_interleave(2, dim=2) for y in (k, v))
    places = torch.arange(12).expand(2, -1) if layout is None else layout.positions
    documents = torch.zeros(2, 12) if layout is None else layout.documents
    e = position.encodings.encoder(places.reshape(-1, 1)).view(2, 12, -1)
    u, w = (y.unflatten(-1, (4, 4)) * 0.7**0.5 for y in position.read(e).chunk(2, dim=-1))
    wide_q, wide_k = (torch.cat(pair, dim=-1).transpose(1, 2) for pair in ((q, u), (k, w)))
    seen = torch.ones(12, 12).tril().bool() & (documents[:, :, None] == documents[:, None])
    o = functional.scaled_dot_product_attention(wide_q, wide_k, v.transpose(1, 2), seen[:, None], scale=8**-0.5)
    expected = layer.o_proj(o.transpose(1, 2).flatten(2))
    assert (layer(x, None, layout)[0] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("use", ["attn_mul", "attn_add"])
def test_queries_and_keys_are_multiplied_or_added_to(use):
    position = stirred(SeqPE(16, heads=4, kv_heads=2, use=use, width=8, positions=100)).double()
    q, k = torch.randn(2, 9, 4, 4).double(), torch.randn(2, 9, 2, 4).double()
    u, w = position.read(position.encodings.encoder(torch.arange(9)[:, None])).split([16, 8], dim=-1)
    u, w = u.view(9, 4, 4), w.view(9, 2, 4)
    expected = (q * u, k * w) if use == "attn_mul" else (q + u, k + w)
    for found, wanted in zip(position.rotate(q, k, torch.arange(9), torch.arange(9)), expected, strict=True):
        assert (found - wanted).abs().max() < 1e-12


def test_queries_and_keys_begin_as_they_are():
    position = SeqPE(16, heads=4, use="attn_mul")
    position.read.weight.data.zero_()
    q, k = torch.randn(1, 5, 4, 4), torch.randn(1, 5, 4, 4)
    found = position.rotate(q, k, torch.arange(5), torch.arange(5))
    assert torch.equal(found[0], q)
    assert torch.equal(found[1], k)


def test_a_grid_counts_rows_and_columns():
    flat = stirred(SeqPE(8, heads=2, width=8, positions=100, grid=[3, 4], use="input_add"))
    coordinates = torch.tensor([[0, 0, 0], [0, 0, 3], [0, 1, 0], [1, 0, 0], [2, 2, 1]])
    places = torch.tensor([0, 3, 4, 12, 33])
    expected = flat.encodings.encoder(coordinates)
    assert (flat.embed(torch.zeros(1, 5, 8), places)[0] - expected).abs().max() < 1e-6


def model_with(position, layers="2*(attention(heads=2) + mlp)"):
    torch.manual_seed(10)
    model = lw.LanguageModel(32, dim=16, layers=layers, position=position)
    return stirred(model)


def calls_of(model):
    """How many positions each call of the model's encoder was given, from now on."""
    (encoder,) = {module for module in model.modules() if isinstance(module, DigitEncoder)}
    found = []
    encoder.register_forward_hook(lambda _, args, __: found.append(len(args[0])))
    return found


@pytest.mark.parametrize("use", ["attn_scalar", "attn_mul", "attn_add", "input_add"])
def test_one_table_serves_all_layers_and_rows(use):
    model = model_with(f"seqpe(heads=2, use={use}, width=8, contrast=0, transfer=0, shift=0)")
    calls, tokens = calls_of(model), torch.randint(0, 32, (3, 20))
    for _ in range(2):
        model.train()(tokens)[0].sum().backward()
    assert calls == [20, 20]


def test_layers_share_the_encoder_and_have_maps_of_their_own():
    model = model_with("seqpe(heads=2, use=attn_mul, width=8)")
    first, second = [part for part in model.modules() if isinstance(part, SeqPE)]
    assert first.encodings is second.encodings
    assert first.read is not second.read


def test_decoding_encodes_few_positions_and_follows_the_weights():
    model = model_with("seqpe(heads=2, width=8, positions=1000)").eval()
    calls, tokens = calls_of(model), torch.randint(0, 32, (1, 150))
    with torch.no_grad():
        whole, _ = model(tokens)
        state = None
        for i in range(150):
            logits, state = model(tokens[:, i : i + 1], state)
            assert (logits[:, 0] - whole[:, i]).abs().max() < 1e-5
        assert calls == [150]
        model(tokens[:, :1], state)
        assert len(calls) == 2
        (encoder,) = {module for module in model.modules() if isinstance(module, DigitEncoder)}
        encoder.head.weight.mul_(2)
        assert (model(tokens)[0] - whole).abs().max() > 1e-4
        encoder.head.weight.div_(2)
        assert (model(tokens)[0] - whole).abs().max() < 1e-5


def test_a_window_far_from_the_beginning_needs_no_table_from_there():
    layer = stirred(lw.build("attention(heads=2, window=4, position=seqpe(width=8))", dim=16)).eval()
    calls = calls_of(layer)
    far = Layout(torch.arange(9000, 9010)[None], torch.zeros(1, 10, dtype=torch.long))
    layer(torch.randn(1, 10, 16), None, far)
    assert calls == [10]


def test_a_table_isnt_copied_and_not_used_behind_a_backward_pass():
    model = model_with("seqpe(heads=2, width=8)").train()
    tokens = torch.randint(0, 32, (1, 12))
    logits, _ = model(tokens)
    copy.deepcopy(model)
    (logits.sum() + auxiliary_loss(model)).backward()
    x = torch.randn(1, 12, 16)
    model.stack(x)[0].sum().backward()  # a layer on its own, without a new pass


@pytest.mark.parametrize("use", ["attn_scalar", "attn_mul", "input_add"])
def test_recomputed_layers_give_the_same_gradients(use):
    position = f"seqpe(heads=2, use={use}, width=8, shift=0)"
    plain = model_with(position)
    again = model_with(position, "recompute(2*(attention(heads=2) + mlp))")
    tokens, gradients = torch.randint(0, 32, (2, 12)), []
    for model in (plain, again):
        torch.manual_seed(11)
        logits, _ = model.train()(tokens)
        weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
        ((logits * weights).sum() + auxiliary_loss(model)).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(1, float(a.abs().max()))


def test_it_is_saved_and_loaded(tmp_path):
    for use in ("attn_scalar", "attn_mul"):
        model = model_with(f"seqpe(heads=2, use={use}, width=8)").eval()
        model.save(tmp_path / use)
        tokens = torch.randint(0, 32, (1, 12))
        assert torch.equal(lw.load(tmp_path / use).eval()(tokens)[0], model(tokens)[0])


def test_positions_that_cant_be_written():
    encoder = DigitEncoder(4, positions=1000)
    for wrong in (1000, -1):
        with pytest.raises(InputError, match=f"from 0 to 999, got {wrong}"):
            encoder(torch.tensor([[3], [wrong]]))
    model = model_with("seqpe(heads=2, width=8, positions=10)").eval()
    with pytest.raises(InputError, match="positions=11"):
        model(torch.zeros(1, 11, dtype=torch.long))


def test_bad_input():
    with pytest.raises(InputError, match="fractions"):
        SeqPE(8, heads=2, width=8).bias(torch.arange(3.0), torch.arange(3.0), 2)
    with pytest.raises(InputError, match="heads=4"):
        SeqPE(8, heads=2, width=8).bias(torch.arange(3), torch.arange(3), 4)
    with pytest.raises(InputError, match="head_dim=8"):
        lw.build("attention(heads=2, head_dim=8, position=seqpe(use=attn_mul))", dim=8)
    layer = lw.build("attention(heads=2, kv_heads=1, position=seqpe(use=attn_mul))", dim=8)
    with pytest.raises(InputError, match="kv_heads=1"):
        layer(torch.randn(1, 3, 8))
    for wrong in (
        {"heads": None},
        {"use": "attn_dot"},
        {"width": 0},
        {"width": 100},
        {"heads": 3},
        {"positions": 0},
        {"grid": [0]},
        {"grid": 101, "positions": 100},
        {"grid": [10, 10], "positions": 10**7},
        {"contrast": -1},
        {"shift": 2},
        {"reduction": "sum"},
        {"samples": 0},
    ):
        with pytest.raises(InputError):
            SeqPE(8, **{"heads": 2, **wrong})
