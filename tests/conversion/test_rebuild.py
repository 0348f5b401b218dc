from __future__ import annotations

import pytest
import torch

from lengthwise.conversion.rebuild import rebuild
from lengthwise.errors import InputError
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel

TOKENS = torch.arange(40).remainder(11)[None]


def language_model(layers="3*(attention(heads=2) + mlp)"):
    torch.manual_seed(0)
    return LanguageModel(11, 8, layers, position="learned(length=16)").eval()


def test_blocks_take_the_weights_of_full_attention():
    model = language_model()
    sparse = rebuild(model, layers="attention(heads=2) + mlp + 2*(attention(heads=2, pattern=blocks(8, 1)) + mlp)")
    for (name, ours), (other, theirs) in zip(sparse.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        assert ours is not theirs
        assert torch.equal(ours, theirs)
    assert not sparse.training
    torch.testing.assert_close(sparse(TOKENS[:, :16])[0], model(TOKENS[:, :16])[0])  # all within two blocks
    assert sparse.config["layers"] != model.config["layers"]


def test_an_encoder_becomes_a_longformer_with_a_longer_table():
    torch.manual_seed(0)
    model = Encoder(11, 8, "2*(attention(heads=2, bias=true) + mlp)", position="learned(length=16)").eval()
    long = rebuild(model, layers="2*(longformer(heads=2, window=16, first=1) + mlp)", length=40)
    torch.testing.assert_close(long(TOKENS[:, :16])[0], model(TOKENS[:, :16])[0])
    part = long.stack.layers[0].part
    assert torch.equal(part.global_k_proj.weight, part.k_proj.weight)
    assert torch.equal(long.position.weight[16:32], model.position.weight)
    assert long(TOKENS)[0].shape == (1, 40, 8)


def test_a_trained_global_projection_stays():
    torch.manual_seed(0)
    model = Encoder(11, 8, "longformer(heads=2, window=4)", position="learned(length=16)")
    torch.nn.init.ones_(model.stack.layers[0].part.global_q_proj.weight)
    long = rebuild(model, length=32)
    assert (long.stack.layers[0].part.global_q_proj.weight == 1).all()


def test_a_table_stretches_from_its_first_to_its_last_row():
    model = language_model()
    table = rebuild(model, length=31, fill="interpolate").position.weight
    torch.testing.assert_close(table[::2], model.position.weight)
    torch.testing.assert_close(table[1], (model.position.weight[0] + model.position.weight[1]) / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "3*(attention(heads=2) + swiglu)"}, "the weights don't fit"),
        ({"layers": "2*(attention(heads=2) + mlp)"}, "the weights don't fit: the new layers lack"),
        ({"layers": "3*(attention(heads=2) + mlp(hidden=9))"}, "should be"),
        ({"length": 32, "fill": "tiles"}, "did you mean tile"),
    ],
)
def test_what_does_not_fit_is_told(settings, message):
    with pytest.raises(InputError, match=message):
        rebuild(language_model(), **settings)


def test_only_a_table_has_a_length():
    with pytest.raises(InputError, match="the model has rope"):
        rebuild(LanguageModel(11, 8, "attention(heads=2)", position="rope"), length=32)
    with pytest.raises(InputError, match="got Linear"):
        rebuild(torch.nn.Linear(2, 2))
