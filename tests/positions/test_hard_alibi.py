import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.attention import attention, attention_reference
from lengthwise.ops.patterns import causal, hard_alibi
from lengthwise.positions.hard_alibi import HardALiBi


def definition(heads, masked, length):
    """The mask of each head, written as the loop that defines it."""
    masks = torch.zeros(heads, length, length, dtype=torch.bool)
    for head in range(heads):
        for query in range(length):
            for key in range(query + 1):
                masks[head, query, key] = head >= masked or query - key <= head
    return masks


@pytest.mark.parametrize(("heads", "masked", "length"), [(16, 8, 37), (4, 3, 9), (5, 5, 7), (3, 1, 5)])
def test_masks_are_the_definition(heads, masked, length):
    place = torch.arange(length)
    ours = torch.stack([head.mask(place, place) for head in hard_alibi(heads=heads, masked=masked).heads])
    assert torch.equal(ours, definition(heads, masked, length))


@pytest.mark.parametrize(("queries", "keys"), [(37, 37), (1, 37), (300, 300), (5, 290)])
@pytest.mark.parametrize("kv_heads", [16, 8, 2])
def test_attention_is_the_softmax_under_these_masks(queries, keys, kv_heads):
    torch.manual_seed(0)
    q = torch.randn(2, queries, 16, 4, dtype=torch.float64)
    k, v = torch.randn(2, 2, keys, kv_heads, 4, dtype=torch.float64)
    seen = definition(16, 8, keys)[:, -queries:]
    again = (x.repeat_interleave(16 // kv_heads, 2) for x in (k, v))
    logits, values = torch.einsum("bihd,bjhd->bhij", q, next(again)) / 2, next(again)
    expected = torch.einsum("bhij,bjhd->bihd", logits.masked_fill(~seen, -torch.inf).softmax(-1), values)
    pattern = hard_alibi(heads=16, masked=8)
    torch.testing.assert_close(attention(q, k, v, pattern=pattern), expected)
    torch.testing.assert_close(attention_reference(q, k, v, pattern=pattern), expected)


def test_heads_with_windows_read_no_more_than_those(monkeypatch):
    """And the heads that see alike are one call."""
    from lengthwise.ops import attention as module

    sizes = []
    inner = module.attention

    def watched(q, k, v, **settings):
        sizes.append((q.shape[2], k.shape[1]))
        return inner(q, k, v, **settings)

    monkeypatch.setattr(module, "attention", watched)
    q, k = torch.randn(1, 1, 8, 4), torch.randn(1, 1000, 8, 4)
    inner(q, k, k, pattern=hard_alibi(heads=8, masked=4))
    assert sizes == [(1, 1), (1, 2), (1, 3), (1, 4), (4, 1000)]


def test_documents_of_a_row_stay_apart_where_keys_are_left_out():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 20, 4, 4, dtype=torch.float64)
    documents = torch.tensor([[0] * 9 + [1] * 11, [0] * 17 + [1] * 3])
    settings = {"pattern": hard_alibi(heads=4, masked=3), "key_documents": documents}
    for count in (20, 5):
        own = {**settings, "query_documents": documents[:, -count:]}
        torch.testing.assert_close(
            attention(q[:, -count:], k, v, **own), attention_reference(q[:, -count:], k, v, **own)
        )


def test_the_position_narrows_what_attention_sees():
    attention = build("attention(heads=4, position=hard_alibi(masked=2))", dim=8)
    assert attention.pattern == hard_alibi(heads=4, masked=2)
    assert build("attention(heads=4, pattern=hard_alibi)", dim=8).pattern == attention.pattern
    model = LanguageModel(11, 16, "2*attention(heads=4)", position="hard_alibi(heads=4)")
    assert all(branch.part.pattern == attention.pattern for branch in model.stack.layers)


def test_without_masked_heads_all_see_the_past():
    assert hard_alibi(heads=4, masked=0) == causal()


def test_the_cache_keeps_all_tokens_for_all_heads():
    attention = build("attention(heads=4, pattern=hard_alibi)", dim=8)
    assert attention.state_nbytes(100) == build("attention(heads=4)", dim=8).state_nbytes(100)
    assert attention.growth == "linear"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "heads=8"),
        ({"heads": 0}, "at least 1"),
        ({"heads": 2, "masked": -1}, "at least 0"),
        ({"heads": 2, "masked": 3}, "3 masked"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        HardALiBi(**settings)
