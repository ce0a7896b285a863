"""Logs: one JSON object a line on stderr, in which the text of a caller never appears."""

import asyncio
import contextlib
import json
import logging
import sys
import traceback
from collections import Counter
from datetime import UTC, datetime
from typing import TextIO, cast

import structlog


def configure_logs(level: str, stream: TextIO = sys.stderr) -> None:
    """Send our own lines of at least `level`, and the warnings of libraries, to `stream`."""
    sink = cast("TextIO", Unfailing(stream))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sink),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sink)
    handler.setFormatter(LibraryLine())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class Tally:
    """Counts what under load is too much for a line each; one line a period, with all of it.

    On the event loop only.
    """

    def __init__(self, event: str, period_s: float = 1.0) -> None:
        self._event, self._period_s = event, period_s
        self._counts: Counter[str] = Counter()

    def add(self, what: str) -> None:
        """Count one; it is told one period after the first."""
        if not self._counts:
            asyncio.get_running_loop().call_later(self._period_s, self.tell)
        self._counts[what] += 1

    def tell(self) -> None:
        """Write what has been counted, if anything has."""
        if self._counts:
            structlog.get_logger("realce.tally").warning(self._event, **self._counts)
            self._counts.clear()


class LibraryLine(logging.Formatter):
    """A library's record as a line of ours: where an error arose, but not what it says.

    The message of an error may quote what it failed on, and that may be a text; so may whatever
    is filled into a record, but for numbers.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        numbers = all(isinstance(one, int | float) for one in record.args or ())
        line = {
            "logger": record.name,
            "event": (record.getMessage() if numbers else str(record.msg))[:200],
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["place"] = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        return json.dumps(line, ensure_ascii=False)


class Unfailing:
    """A stream that lets go of what cannot be written: who asks for an answer gets it, though the
    disk of the log is full or its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See `TextIO.write`."""
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """See `TextIO.flush`."""
        with contextlib.suppress(OSError):
            self._stream.flush()
