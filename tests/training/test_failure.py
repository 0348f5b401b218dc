import errno

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from lengthwise.errors import InputError
from lengthwise.training.failure import first_not_finite, full_disk_explained, gradients_not_finite, is_full_disk


class Overflow(nn.Module):
    def forward(self, x):
        return x / 0


def test_the_innermost_module_that_breaks_first_is_named():
    inner = nn.Sequential(nn.Linear(2, 2), Overflow(), nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2), inner)
    assert first_not_finite(model, lambda: model(torch.ones(1, 2))) == "first in 1.1 (Overflow)"
    assert not model[1][1]._forward_hooks


def test_a_parameter_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].bias[0] = torch.nan
    assert first_not_finite(model, lambda: model(torch.ones(1, 2))) == "in the parameter 1.bias"


def test_finite_logits_leave_the_loss_itself():
    model = nn.Linear(2, 2)
    assert "cross-entropy" in first_not_finite(model, lambda: model(torch.ones(1, 2)))


def test_a_gradient_that_is_not_finite_is_named():
    model = nn.Linear(2, 2)
    (model(torch.ones(1, 2)).sum() * torch.inf).backward()
    assert gradients_not_finite(model) == "in the gradient of weight and 1 more parameters"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError("x can't be written: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_known_in_every_guise(error, tmp_path):
    assert is_full_disk(error)
    expected = pytest.raises(InputError, match="is full; all is well")
    with expected, full_disk_explained(tmp_path, lambda: "all is well"):
        raise error


def test_other_errors_pass_through(tmp_path):
    assert not is_full_disk(ValueError("(os error 28)"))
    with pytest.raises(PermissionError), full_disk_explained(tmp_path, lambda: ""):
        raise PermissionError(errno.EACCES, "Permission denied")
