import torch
from torch import nn

from lengthwise.systems import min_rnn


def test_the_loop_equals_the_librarys_gru():
    torch.manual_seed(0)
    gru, x = nn.GRU(5, 5, batch_first=True).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(min_rnn.gru_as_a_loop(gru, x), gru(x)[0])


def test_shares_of_parameters_are_the_published_ones():
    assert min_rnn.share_error() == 0


def test_training_step_times_names_all_contestants():
    times = min_rnn.training_step_times(length=8, batch=1, dim=4, repeats=1)
    assert times.keys() == {"log", "plain", "loop", "library"}
    assert all(t > 0 for t in times.values())
