from lengthwise.positions.none import NoPosition


def test_it_holds_nothing():
    position = NoPosition()
    assert list(position.parameters()) == []
    assert list(position.buffers()) == []
    assert position.state_dict() == {}
    assert position.hooks == ()
