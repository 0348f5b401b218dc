from __future__ import annotations

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers.relative_attention import RelativeAttention


def test_local_with_a_block_as_long_as_the_row_equals_global():
    torch.manual_seed(0)
    whole, local = RelativeAttention(8, heads=2, length=9), RelativeAttention(8, heads=2, length=9, block=12)
    local.load_state_dict(whole.state_dict())
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(local(x)[0], whole(x)[0])


def test_equals_the_formula():
    torch.manual_seed(0)
    mixer, x = RelativeAttention(6, heads=2, length=4).double(), torch.randn(1, 7, 6).double()
    q, k, v = mixer.project(x)
    o = torch.zeros(1, 7, 2, 3).double()
    for h in range(2):
        for i in range(7):
            logits = [
                q[0, i, h] @ k[0, j, h] + (q[0, i, h] @ mixer.relative[h, 3 - i + j] if i - j < 4 else 0)
                for j in range(i + 1)
            ]
            p = (torch.stack(logits) / 3**0.5).softmax(0)
            o[0, i, h] = p @ v[0, : i + 1, h]
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj(o.flatten(2)))


@pytest.mark.parametrize("arguments", [{"length": 0}, {"block": 0}])
def test_what_makes_no_sense_is_told(arguments):
    with pytest.raises(InputError, match="must be at least 1 token, got 0"):
        RelativeAttention(8, heads=2, **arguments)
