import itertools

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.options.training import to_mapping
from lengthwise.training.batches import Rows, check_division, rows_of_steps
from tests.training.runs import corpus, options
from tests.training.test_fit import Bigram

SIZES = (30, 5, 2, 41, 7, 1, 12)
"""Of files, some shorter and some longer than a row, so that nine steps are several epochs."""

KINDS = [{}, {"packing": "cut"}, {"packing": "arrival"}, {"packing": "greedy"}, {"carry_state": True}]


@pytest.mark.parametrize("kind", KINDS, ids=["windows", "cut", "arrival", "greedy", "streams"])
def test_batches_from_a_later_step_are_the_same_as_those_of_a_run_from_the_start(kind, tmp_path):
    settings = to_mapping(options(tmp_path, **kind))
    whole = list(itertools.islice(rows_of_steps(corpus(SIZES), settings, 0), 9))
    later = list(itertools.islice(rows_of_steps(corpus(SIZES), settings, 5), 4))
    for a, b in zip(whole[5:], later, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert (a.layout is None) == (kind == {})
        assert a.layout is None or torch.equal(a.layout.starts, b.layout.starts)


def test_parts_add_up_to_the_whole():
    torch.manual_seed(0)
    model = Bigram().double()
    tokens = torch.randint(7, (6, 9))
    mask = torch.rand(6, 8) > 0.3
    rows = Rows(tokens[:, :-1], tokens[:, 1:], None, mask)
    assert rows.count == int(mask.sum())
    whole, _ = rows.loss(model, None)
    parts = [part.loss(model, None)[0] for part in rows.divide(3)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_masked_targets_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    model = Bigram().double()
    tokens = torch.tensor([[1, 2, 3]])
    rows = Rows(tokens[:, :-1], tokens[:, 1:], None, torch.tensor([[True, False]]))
    loss, _ = rows.loss(model, None)
    assert loss.item() == pytest.approx(-torch.log_softmax(model.table.weight[1], 0)[2].item(), rel=1e-12)
    loss.backward()
    assert model.table.weight.grad[2].abs().sum() == 0


@pytest.mark.parametrize("sizes", [(4, 3, 1), (6, 2, 2), (0, 1, 1), (4, 1, 0)])
def test_rows_that_do_not_divide_are_refused(sizes):
    with pytest.raises(InputError, match="batch"):
        check_division(*sizes)
