import asyncio
import io
import json
import logging

import pytest
import structlog

from service.logs import LibraryLine, Tally, configure_logs


@pytest.fixture
def lines():
    """Logs configured into a buffer, and put back as they were."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), root.level
    root.handlers = []  # the handlers of the test run are not ours to close
    configure_logs("info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def test_a_line_is_one_json_object_of_at_least_the_level(lines):
    log = structlog.get_logger("test")
    log.debug("unheard")
    log.info("serving", address="127.0.0.1:1", bundle="ação")
    (line,) = lines()
    assert (line["event"], line["level"], line["bundle"]) == ("serving", "info", "ação")
    assert line["timestamp"].endswith("Z")


class Full(io.StringIO):
    """A stream that takes nothing: its disk is full, or its reader is gone."""

    tried = 0

    def write(self, text: str) -> int:
        """See `TextIO.write`."""
        self.tried += text.startswith("{")
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        """See `TextIO.flush`."""
        raise BrokenPipeError


def test_a_log_that_cannot_be_written_stops_nobody(lines, capsys):
    full = Full()
    configure_logs("info", full)
    structlog.get_logger("another").info("serving")
    logging.getLogger("grpc").warning("that was %s", "it")
    assert full.tried == 2
    assert capsys.readouterr().err == ""


def test_a_librarys_error_tells_where_but_not_what(lines):
    try:
        raise ValueError("secret text")
    except ValueError:
        logging.getLogger("grpc").exception("Unexpected [%s]", "secret text")
    (line,) = lines()
    assert (line["logger"], line["level"], line["error"]) == ("grpc", "error", "ValueError")
    assert line["event"] == "Unexpected [%s]"
    assert "test_logs.py" in line["place"]
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize(
    ("template", "arguments", "event"),
    [
        ("pid %d, %.1f s", (7, 0.25), "pid 7, 0.2 s"),
        ("pid %d of %s", (7, "a secret"), "pid %d of %s"),
        ("%(pid)d", ({"pid": 7},), "%(pid)d"),
        ("100 %", (), "100 %"),
    ],
)
def test_numbers_are_filled_into_a_librarys_line_and_nothing_else(
    lines, template, arguments, event
):
    logging.getLogger("asyncio").warning(template, *arguments)
    assert lines()[0]["event"] == event


def test_a_record_without_an_error_has_no_place():
    record = logging.LogRecord("a", logging.WARNING, "", 1, "slow", (), None)
    assert "place" not in json.loads(LibraryLine().format(record))


async def test_what_comes_in_masses_is_one_line_a_period(lines):
    tally = Tally("refused", period_s=0.0)
    for code in ["RESOURCE_EXHAUSTED"] * 3 + ["DEADLINE_EXCEEDED"]:
        tally.add(code)
    assert lines() == []
    await asyncio.sleep(0)
    tally.tell()
    (line,) = lines()
    assert (line["event"], line["level"]) == ("refused", "warning")
    assert (line["RESOURCE_EXHAUSTED"], line["DEADLINE_EXCEEDED"]) == (3, 1)
    tally.add("RESOURCE_EXHAUSTED")
    tally.tell()
    assert lines()[1]["RESOURCE_EXHAUSTED"] == 1
    await asyncio.sleep(0)
    assert len(lines()) == 2, "nothing to tell is not told"
