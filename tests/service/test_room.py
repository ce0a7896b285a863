from service.room import Hold, Room


def test_what_is_held_is_free_again_once_released():
    room = Room(10)
    first, second = Hold(room), Hold(room)
    assert first.take(6)
    assert second.take(3)
    assert second.take(1)
    assert (room.held, first.size, second.size) == (10, 6, 4)
    assert second.take(0)
    assert not second.take(1)
    assert (room.held, second.size) == (10, 4)
    first.release()
    first.release()
    assert (room.held, first.size) == (4, 0)
    third = Hold(room)
    assert not third.take(7)
    assert third.take(6)
    third.release()
    assert room.held == 4
