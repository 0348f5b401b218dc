"""Layers that are computed again in the backward pass: the same values and gradients, in less memory."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lengthwise.channels import CHANNELS
from lengthwise.contract import Layout, SequenceModule
from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.mixers import MIXERS
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.recompute import Recompute
from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.fit import next_token_loss
from tests.stirred import stir


def both(layers, dim=8, **settings):
    """The layers as they are and recomputed, with equal parameters away from the zeros at which some begin silent."""
    torch.manual_seed(0)
    plain, again = (build(e, dim, **settings).train() for e in (f"{layers} + mlp", f"recompute({layers} + mlp)"))
    again.load_state_dict(stir(plain, 0.1).state_dict())
    return plain, again


def gradients(module, x, cut):
    """Outputs of a sequence in two pieces, and the gradients of a random projection of them."""
    x = x.clone().requires_grad_()
    head, state = module(x[:, :cut])
    y = torch.cat([head, module(x[:, cut:], state)[0]], 1) if module.causal else module(x)[0]
    torch.manual_seed(1)
    loss = (y * torch.randn_like(y)).sum() + auxiliary_loss(module)
    return y, torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True)


@pytest.mark.parametrize("part", [*MIXERS, *CHANNELS])
def test_any_part_gives_the_same_values_and_gradients(part):
    plain, again = both(part)
    assert isinstance(again, Recompute)
    x = torch.randn(2, 11, 8)
    (y, slopes), (z, others) = (gradients(module, x, 6) for module in (plain, again))
    assert torch.equal(y, z)
    for a, b in zip(slopes, others, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class Noisy(SequenceModule):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x, state=None, layout=None):
        return nn.functional.dropout(self.weight * x), None

    def state_nbytes(self, length):
        return 0


def test_random_numbers_are_the_same_again():
    plain, again = both("noisy", parts={"noisy": Noisy})
    x, found = torch.randn(2, 9, 8), []
    for module in (plain, again):
        torch.manual_seed(5)
        y = module(x)[0]
        torch.rand(7)  # what else is drawn until the backward pass changes nothing
        found.append((y, torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(a, b)


def test_layouts_are_passed_on():
    plain, again = both("attention(heads=2)")
    x, layout = torch.randn(1, 9, 8), Layout.packed([[4, 5]])
    assert torch.equal(plain(x, None, layout)[0], again(x, None, layout)[0])
    assert not torch.equal(again(x)[0], again(x, None, layout)[0])


def test_a_loss_of_a_part_is_taken_once():
    module = both("routing_attention(heads=2, clusters=2, members=3)")[1]
    x = torch.randn(2, 9, 8)
    loss = module(x)[0].sum() + auxiliary_loss(module)
    loss.backward()
    assert auxiliary_loss(module) == 0


def kept(run):
    """Bytes of the activations that a forward pass keeps for its backward pass."""
    seen = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())


def test_nothing_is_kept_inside_of_a_layer():
    x = torch.randn(4, 64, 32, requires_grad=True)
    plain, again = both("6*(attention(heads=2) + mlp)", dim=32)
    assert kept(lambda: plain(x)) > 50 * x.nbytes
    assert kept(lambda: again(x)) == 13 * x.nbytes  # the inputs of the layers


def test_training_needs_less_memory():
    """Twelve blocks with the activations of one: a third at most, the logits and the inputs of layers included."""
    torch.manual_seed(0)
    tokens, peaks = torch.randint(0, 16, (4, 129)), []
    for layers in ("12*(attention(heads=2) + mlp)", "recompute(12*(attention(heads=2) + mlp))"):
        model = LanguageModel(16, 32, layers).train()
        next_token_loss(model, tokens).backward()  # the gradients exist
        peaks.append(peak_bytes(lambda model=model: next_token_loss(model, tokens).backward()))
    assert peaks[1] < peaks[0] / 3


def test_without_gradients_nothing_is_wrapped(monkeypatch):
    again = both("attention(heads=2)")[1]
    x = torch.randn(1, 9, 8)
    expected = again(x)[0]
    monkeypatch.setattr("lengthwise.models.recompute.checkpoint", None)
    with torch.no_grad():  # the norm is another kernel there, which rounds otherwise
        torch.testing.assert_close(again(x)[0], expected, atol=1e-6, rtol=1e-6)


def test_inside_a_model_it_counts_as_its_layers():
    model = LanguageModel(16, 8, "mlp + recompute(2*(mamba + mlp) + layernorm)")
    assert model.stack.layers[1].normed
    assert isinstance(model.norm, nn.Identity)
    assert model.growth == "constant"
    with pytest.raises(InputError, match=r"recompute takes layers, as recompute\(2"):
        build("recompute(mlp, 2)", dim=8)
    with pytest.raises(InputError, match="argument"):
        build("recompute(mlp, every=2)", dim=8)


@pytest.mark.parametrize(
    "position",
    [
        "randomised(fire(length=4, heads=2), length=40)",
        "randomised(rope, length=40)",
        "seqpe(heads=2, width=8, shift=1, positions=99)",
        "seqpe(heads=2, width=8, use=attn_mul, shift=0.5, positions=99)",
    ],
)
def test_passes_before_the_backward_pass_leave_each_its_own_positions(position):
    """What is drawn for a pass is found again, though another pass, and one in evaluation, came between."""
    tokens, found = torch.randint(11, (2, 1, 9), generator=torch.Generator().manual_seed(1)), []
    for layers in ("2*(attention(heads=2) + mlp)", "recompute(2*(attention(heads=2) + mlp))"):
        torch.manual_seed(0)
        model = LanguageModel(vocab_size=11, dim=8, layers=layers, position=position).double().train()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
        torch.manual_seed(2)
        losses = [model(t)[0].square().sum() for t in tokens]
        model.eval()(tokens[0])
        model.train()
        sum(losses).backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for expected, grad in zip(*found, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
