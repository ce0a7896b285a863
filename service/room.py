"""Room for answers: a budget of bytes, held by those under way until they are sent."""


class Room:
    """So many bytes, of which `held` are in use."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def fits(self, size: int) -> bool:
        """Is there room for `size` bytes more?"""
        return self.held + size <= self.most


class Hold:
    """What one call's answers hold of a room, until it is released."""

    __slots__ = ("_room", "size")

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0

    def take(self, size: int) -> None:
        """Hold `size` bytes more."""
        self._room.held += size
        self.size += size

    def release(self) -> None:
        """Give all of it back; once more does nothing."""
        self._room.held -= self.size
        self.size = 0
