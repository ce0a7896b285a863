"""Logs: one JSON object a line on stderr, in which the text of a caller never appears."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

import structlog


def configure_logs(level: str, stream: TextIO = sys.stderr) -> None:
    """Send our own lines of at least `level`, and the warnings of libraries, to `stream`."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LibraryLine())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class LibraryLine(logging.Formatter):
    """A library's record as a line of ours: where an error arose, but not what it says.

    The message of an error may quote what it failed on, and that may be a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line = {
            "logger": record.name,
            "event": str(record.msg)[:200],  # the template, without what would be filled in
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["place"] = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        return json.dumps(line, ensure_ascii=False)
