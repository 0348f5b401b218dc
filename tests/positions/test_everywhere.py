"""Every position encoding with every kind of pattern: in one pass, token by token, and packed with other documents."""

import pytest
import torch

from lengthwise import LanguageModel
from lengthwise.contract import Layout
from lengthwise.ops import attention as dispatcher
from lengthwise.positions import POSITIONS
from tests.stepping import in_pieces

ARGUMENTS = {
    "learned": "length=48",
    "grid": "width=6, height=8",
    "t5": "buckets=8, max_distance=12",
    "fire": "length=6",
    "hard_alibi": "masked=2",
    "randomised": "fire(length=6), length=64, longest=48",
    "seqpe": "width=16, positions=48",
}
"""The encodings that need more than their name, for models of width 16 with 4 heads."""

PATTERNS = {
    "all of the past": "kv_heads=4",
    "fewer keys": "kv_heads=2",
    "window": "window=5",
    "window and first": "pattern=window(4) | first(2)",
    "blocks": "pattern=blocks(4, previous=1)",
    "two patterns": "pattern=per_head(window(3), strided(3))",
}

TRAINED = 6
"""The length of which each of the lengths here is a multiple."""


def build(position: str, attention: str) -> LanguageModel:
    torch.manual_seed(0)
    where = f"{position}({ARGUMENTS.get(position, '')})"
    layers = f"2*(attention(heads=4, {attention}) + mlp)"
    model = LanguageModel(vocab_size=11, dim=16, layers=layers, position=where)
    for parameter in model.parameters():  # so large that every logit counts
        torch.nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


@pytest.fixture(params=PATTERNS)
def attention(request):
    return PATTERNS[request.param]


@pytest.mark.parametrize("position", POSITIONS)
def test_decoding_far_beyond_equals_one_pass(position, attention):
    model, tokens = build(position, attention), torch.randint(11, (2, 7 * TRAINED))
    whole, _ = model(tokens)
    with torch.no_grad():
        logits, _ = in_pieces(model, tokens, range(TRAINED, 7 * TRAINED))
    torch.testing.assert_close(logits, whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("position", POSITIONS)
def test_packed_documents_equal_separate_ones(position, attention):
    model = build(position, attention)
    lengths = [[3, 3 * TRAINED, 1], [2 * TRAINED, 4, 5]]
    rows = [[torch.randint(11, (1, n)) for n in row] for row in lengths]
    layout = Layout.packed(lengths)
    packed = torch.zeros(layout.positions.shape, dtype=torch.long)
    for row, documents in enumerate(rows):
        joined = torch.cat(documents, dim=1)[0]
        packed[row, : len(joined)] = joined
    logits, _ = model(packed, layout=layout)
    for row, documents in enumerate(rows):
        alone = torch.cat([model(document)[0] for document in documents], dim=1)[0]
        torch.testing.assert_close(logits[row, : len(alone)], alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("position", POSITIONS)
def test_tiles_equal_what_is_written_out(position, attention, monkeypatch):
    """Values and gradients, where there is no room for a mask or a bias of all queries and keys."""
    model, tokens = build(position, attention), torch.randint(11, (2, 5 * TRAINED))
    found = []
    for room in (2**22, 30):
        monkeypatch.setattr(dispatcher, "WRITTEN", room)
        model.zero_grad()
        logits, _ = model(tokens)
        logits.logsumexp(-1).sum().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for written, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, written, atol=1e-8, rtol=1e-8)
