from service.room import Hold, Room


def test_what_is_held_is_free_again_once_released():
    room = Room(10)
    first, second = Hold(room), Hold(room)
    first.take(6)
    second.take(3)
    second.take(1)
    assert (room.held, first.size, second.size) == (10, 6, 4)
    assert room.fits(0)
    assert not room.fits(1)
    first.release()
    first.release()
    assert (room.held, first.size) == (4, 0)
    third = Hold(room)
    third.take(6)
    assert not room.fits(1)
    third.release()
    assert room.held == 4
