"""On a GPU every part gives what it gives on the processor: values, gradients and states. Skipped without one."""

import pytest
import torch

import lengthwise as lw
from lengthwise.contract import Layout, map_state, state_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

PARTS = [
    "attention(heads=2, position=rope)",
    "attention(heads=2, window=16)",
    "attention(heads=2, kv_heads=1, position=alibi)",
    "attention(heads=2, pattern=causal() & (window(16) | first(2)))",
    "linear_attention(heads=2)",
    "deltanet(heads=2)",
    "mamba",
    "min_gru",
    "min_lstm",
    "gru",
    "lstm",
    "megalodon(chunk=64)",
    "mlp + swiglu",
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("expression", PARTS)
def test_values_gradients_and_states_equal_the_processors(expression, packed):
    torch.manual_seed(0)
    here = lw.build(expression, dim=32)
    there = lw.build(expression, dim=32)
    there.load_state_dict(here.state_dict())
    there.cuda()
    x = torch.randn(2, 200, 32)
    layout = Layout.packed([[90, 110], [1, 199]]) if packed else None
    results = []
    for module, device in ((here, "cpu"), (there, "cuda")):
        inputs = x.to(device).requires_grad_()
        at = None if layout is None else layout.to(device)
        first, state = module(inputs[:, :150], None, None if at is None else at.slice(0, 150))
        second, state = module(inputs[:, 150:], state, None if at is None else at.slice(150))
        (first.square().mean() + second.square().mean()).backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        tensors = [first, second, inputs.grad, *gradients, *state_tensors(map_state(torch.Tensor.detach, state))]
        results.append([t.detach().cpu() for t in tensors])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


def test_a_language_model_trains_and_decodes():
    torch.manual_seed(0)
    model = lw.LanguageModel(64, 64, "attention + mamba + deltanet + swiglu").cuda()
    tokens = torch.randint(0, 64, (4, 65), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", torch.bfloat16):
            logits, _ = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    with torch.no_grad():
        whole, _ = model(tokens)
        logits, state = model(tokens[:, :40])
        for t in range(40, 65):
            step, state = model(tokens[:, t : t + 1], state)
            torch.testing.assert_close(step[:, 0], whole[:, t], rtol=2e-3, atol=2e-3)
