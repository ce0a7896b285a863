"""Room for answers: a budget of bytes, held by those under way until they are sent."""

from dataclasses import dataclass


@dataclass(slots=True)
class Room:
    """So many bytes at `most`, of which `held` are in use."""

    most: int
    held: int = 0


class Hold:
    """What one call's answers hold of a room, until it is released."""

    __slots__ = ("_room", "size")

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0

    def take(self, size: int) -> bool:
        """Hold `size` bytes more; False where there is no room for them."""
        if self._room.held + size > self._room.most:
            return False
        self._room.held += size
        self.size += size
        return True

    def release(self) -> None:
        """Give all of it back; once more does nothing."""
        self._room.held -= self.size
        self.size = 0
