"""How much the server takes on. What exceeds a limit is refused before it costs anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from boxtune.serving.errors import busy


@dataclass(frozen=True)
class Limits:
    """body_bytes: of one request. image_pixels: width × height of one image. queue: requests that are accepted and not yet
    answered. memory_bytes: of their bodies and decoded images together. seconds: from the start of a request to its response.
    """

    body_bytes: int = 20 * 2**20
    image_pixels: int = 50_000_000
    queue: int = 256
    memory_bytes: int = 2 * 2**30
    seconds: float = 120


class Admission:
    """The requests that are accepted and not yet answered, and the memory that they hold."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests, self.bytes = 0, 0

    @contextmanager
    def enter(self) -> Iterator["Place"]:
        """A place in the queue, until the block ends. Raises RequestError if the queue is full."""
        if self.requests >= self.limits.queue:
            raise busy(
                f"{self.requests} requests are waiting, which is the most that this server accepts. Try again later."
            )
        place = Place(self)
        self.requests += 1
        try:
            yield place
        finally:
            self.requests -= 1
            self.bytes -= place.bytes


class Place:
    """One accepted request."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self.bytes = 0

    def reserve(self, count: int) -> None:
        """Hold `count` more bytes. Raises RequestError if all requests together hold too many."""
        if self._admission.bytes + count > self._admission.limits.memory_bytes:
            raise busy("the images that are waiting fill this server's memory. Try again later.")
        self._admission.bytes += count
        self.bytes += count

    @contextmanager
    def part(self) -> Iterator["Place"]:
        """A place for one of several images of the request, whose memory is given back when the block ends."""
        part = Place(self._admission)
        try:
            yield part
        finally:
            self._admission.bytes -= part.bytes
