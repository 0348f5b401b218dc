from __future__ import annotations

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers.relative_attention import RelativeAttention
from lengthwise.positions.alibi import ALiBi


def test_local_with_a_block_as_long_as_the_row_equals_global():
    torch.manual_seed(0)
    whole, local = RelativeAttention(8, heads=2, length=9), RelativeAttention(8, heads=2, length=9, block=12)
    local.load_state_dict(whole.state_dict())
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(local(x)[0], whole(x)[0])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("block", [None, 3], ids=["global", "local"])
def test_equals_the_formula(causal, block):
    torch.manual_seed(0)
    mixer = RelativeAttention(6, heads=2, length=4, block=block, causal=causal).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    x, o = torch.randn(1, 10, 6).double(), torch.zeros(1, 10, 2, 3).double()
    q, k, v = mixer.project(x)
    for h in range(2):
        for i in range(10):
            seen = [j for j in range(10) if not (causal and j > i) and (block is None or 0 <= i // 3 - j // 3 <= 1)]
            content = [q[0, i, h] @ k[0, j, h] for j in seen]
            distance = [q[0, i, h] @ mixer.relative[h, 3 + j - i] if abs(i - j) < 4 else 0 for j in seen]
            logits = torch.stack([a + b for a, b in zip(content, distance, strict=True)])
            o[0, i, h] = (logits / 3**0.5).softmax(0) @ v[0, seen, h]
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj(o.flatten(2)))


def test_embeddings_begin_with_the_deviation_of_the_paper():
    relative = RelativeAttention(64, heads=2, length=512).relative.detach()
    assert relative.shape == (2, 512, 32)
    assert float(relative.std()) == pytest.approx(32**-0.5, rel=0.02)  # four deviations of that of 32768 numbers: 1.6 %


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be at least 1 token, got 0"),
        ({"block": 0}, "block must be at least 1 token, got 0"),
        ({"position": ALiBi()}, "ALiBi adds to the logits"),
    ],
)
def test_what_makes_no_sense_is_told(arguments, message):
    with pytest.raises(InputError, match=message):
        RelativeAttention(8, heads=2, **arguments)
