import torch

from lengthwise.caches.recent import Recent


def test_keeps_the_last_inputs_and_stays_as_it_is():
    inputs = torch.arange(6.0).view(1, 3, 2)
    cache = Recent(inputs)
    joined, after = cache.extend(torch.full((1, 1, 2), 9.0))
    assert joined[0, :, 0].tolist() == [0, 2, 4, 9]
    assert after.inputs[0, :, 0].tolist() == [2, 4, 9]
    assert torch.equal(cache.inputs, torch.arange(6.0).view(1, 3, 2))


def test_forgets_the_rows_whose_document_ends():
    cache = Recent(torch.ones(2, 3, 2)).forget(torch.tensor([True, False]))
    assert cache.inputs[:, :, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
