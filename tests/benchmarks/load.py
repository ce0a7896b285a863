"""A load generator, in a process of its own. Prints one JSON object.

    python -m tests.benchmarks.load closed HOST:PORT --callers 64 --per-call 1 --seconds 5
    python -m tests.benchmarks.load open HOST:PORT --rate 200 --deadline 1 --cancel-share 0.5
    python -m tests.benchmarks.load stream HOST:PORT --callers 2 --per-call 64

`closed`: callers who each wait for an answer before they call again, until SIGTERM at the latest.
`open`: calls arrive by chance (Poisson) however slow the answers are. `stream`: bulk streams with a
window of messages under way. Latency counts from when a call was sent; `late_p99_ms` says by how
much the generator itself was behind its schedule, so that its own limits are not taken for the
server's.
"""

import argparse
import asyncio
import collections
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from protos.realce.v1 import classifier_pb2 as pb
from service.types import View
from tests.benchmarks.arrivals import Seconds, cancellations, poisson
from tests.benchmarks.calls import Call, summary, write_trace
from tests.benchmarks.figures import strict
from tests.benchmarks.http import HttpChannel
from tests.benchmarks.requests import Request, in_stream, messages, mixture
from tests.benchmarks.texts import LENGTHS, chosen

SERVICE = "/realce.v1.Classifier"
STATUS = "grpc-status-details-bin"
CONNECT_S = 20.0
PATIENCE_S = 60.0  # of callers without a deadline: nobody waits for ever
CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),  # every call counts once
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # channels are connections
)


class Generator:
    """Sends requests over channels, in turn, and keeps what came of each call.

    Messages go out and come in as bytes: the generator shares the machine with the server.
    """

    def __init__(
        self,
        channels: Sequence[Any],
        requests: Sequence[Request],
        deadline_s: float | None,
    ) -> None:
        self.calls: list[Call] = []
        self._channels, self._requests = channels, requests
        self._unary: list[Any] = [one.unary_unary(f"{SERVICE}/Classify") for one in self._channels]
        self._timeout_s = PATIENCE_S if deadline_s is None else deadline_s
        self._sent = 0
        self._stopped = False

    def stop(self) -> None:
        """Let the callers of `closed` make no more calls."""
        self._stopped = True

    async def closed(
        self, callers: int, seconds: float, most: int, hang_up: Callable[[int], float]
    ) -> None:
        """`callers` who wait for their answer, until `seconds` are over or `most` calls were made.

        `hang_up` tells after how many seconds the caller of the nth call gives up.
        """
        end = time.monotonic() + seconds

        async def caller(number: int) -> None:
            while not self._stopped and self._sent < most and (now := time.monotonic()) < end:
                await self._call(number, now, hang_up(self._sent))

        await asyncio.gather(*(caller(number) for number in range(callers)))

    async def open(self, times: Seconds, waits: Seconds) -> None:
        """A call at each of `times`, whose caller hangs up after the seconds in `waits`."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, (at, wait) in enumerate(zip(times.tolist(), waits.tolist(), strict=True)):
                due = began + at
                # Also when behind: the answers that have come must be taken in.
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._call(number, due, wait))

    async def streams(self, count: int, seconds: float, window: int) -> None:
        """`count` bulk streams, each with up to `window` messages sent and not yet answered."""
        requests, end = in_stream(self._requests), time.monotonic() + seconds
        await asyncio.gather(
            *(self._stream(number, requests, end, window) for number in range(count))
        )

    async def _call(self, number: int, due: float, hang_up_s: float) -> None:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        sent = time.monotonic()
        call = self._unary[number % len(self._unary)](request.content, timeout=self._timeout_s)
        hang_up = None
        if hang_up_s < float("inf"):
            hang_up = asyncio.get_running_loop().call_later(hang_up_s, call.cancel)
        code, told, size = "OK", False, 0
        try:
            size = len(await call)
        except grpc.RpcError as error:
            code, told = error.code().name, _told(error)
        except asyncio.CancelledError:
            if not call.cancelled():  # it is this task that was cancelled, not the call
                raise
            code = "CANCELLED"
        finally:
            if hang_up is not None:
                hang_up.cancel()
        seconds, asked = time.monotonic() - sent, len(request.content)
        self.calls.append(Call(due, sent, seconds, code, request.texts, told, asked, size))

    async def _stream(
        self, number: int, requests: Sequence[Request], end: float, window: int
    ) -> None:
        under_way: collections.deque[tuple[float, Request]] = collections.deque()
        room = asyncio.Semaphore(window)

        async def send() -> AsyncIterator[bytes]:
            while time.monotonic() < end:
                await room.acquire()
                request = requests[self._sent % len(requests)]
                self._sent += 1
                under_way.append((time.monotonic(), request))
                yield request.content

        def end_one(code: str, told: bool, size: int) -> None:
            sent, request = under_way.popleft()
            seconds, asked = time.monotonic() - sent, len(request.content)
            self.calls.append(Call(sent, sent, seconds, code, request.texts, told, asked, size))

        channel = self._channels[number % len(self._channels)]
        stream = channel.stream_stream(f"{SERVICE}/ClassifyStream")
        try:
            async for content in stream(send()):
                answer = pb.ClassifyStreamResponse.FromString(content)
                failed = answer.HasField("error")
                code = _code(answer.error.code) if failed else "OK"
                end_one(code, failed, len(content))
                room.release()
        except grpc.RpcError as error:
            while under_way:
                end_one(error.code().name, _told(error), 0)


def _told(error: Any) -> bool:
    """Did the server say why, or cut the call off because too many wait?"""
    said = any(key == STATUS for key, _ in error.trailing_metadata() or ())
    return said or error.code() is grpc.StatusCode.CANCELLED


def _code(number: int) -> str:
    return next((one.name for one in grpc.StatusCode if one.value[0] == number), str(number))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("mode", choices=("closed", "open", "stream"))
    top.add_argument("target", metavar="HOST:PORT", help="http://HOST:PORT for HTTP")
    top.add_argument("--seconds", type=float, default=5.0)
    top.add_argument("--callers", type=int, default=1, help="callers, or streams")
    top.add_argument("--per-call", type=int, default=1, help="texts in a call")
    top.add_argument("--most", type=int, default=1 << 40, help="closed: stop after so many calls")
    top.add_argument("--rate", type=float, default=50.0, help="open: calls a second")
    top.add_argument("--window", type=int, default=8, help="stream: messages under way")
    top.add_argument("--deadline", type=float, help="of each call, in seconds")
    top.add_argument("--cancel-share", type=float, default=0.0, help="callers that hang up")
    top.add_argument("--cancel-after", type=float, default=0.2, help="seconds, on average")
    top.add_argument("--channels", type=int, default=1, help="connections")
    top.add_argument("--views", nargs="*", default=[], choices=[view.value for view in View])
    top.add_argument("--half", action="store_true", help="tensors in float16")
    top.add_argument("--mix", action="store_true", help="all kinds of calls by chance")
    top.add_argument("--count", type=int, default=1280, help="how many different texts")
    top.add_argument("--texts", type=Path, metavar="FILE", help="texts, else made ones")
    top.add_argument("--lengths", choices=LENGTHS, default="reviews", help="of made texts")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--trace", type=Path, metavar="NPZ", help="write every call there")
    top.add_argument("--wait", action="store_true", help="say READY; begin at a line on stdin")
    return top


async def run(options: argparse.Namespace) -> list[Call]:
    """Connect, then make the calls that the command line asks for; what came of them.

    Raises `TimeoutError` where no server answers.
    """
    texts = chosen(options.texts, options.count, lengths=options.lengths, seed=options.seed)
    requests = (
        mixture(texts, options.seed)
        if options.mix
        else messages(texts, options.per_call, views=options.views, half=options.half)
    )
    channels = [connect(options.target) for _ in range(options.channels)]
    try:
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
        generator = Generator(channels, requests, options.deadline)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, generator.stop)
        if options.wait:
            print("READY", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        if options.mode == "open":
            times = poisson(options.rate, options.seconds, options.seed)
            await generator.open(times, _waits(len(times), options))
        elif options.mode == "stream":
            await generator.streams(options.callers, options.seconds, options.window)
        else:
            waits = _waits(1 << 14, options).tolist()
            await generator.closed(
                options.callers, options.seconds, options.most, lambda n: waits[n % len(waits)]
            )
    finally:
        for channel in channels:
            await channel.close(None)
    return generator.calls


def connect(target: str) -> Any:
    """A channel of grpc.aio, or what looks like one to the unary calls of `Generator`."""
    if target.startswith("http://"):
        return HttpChannel(target)
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)


def _waits(count: int, options: argparse.Namespace) -> Seconds:
    return cancellations(count, options.cancel_share, options.cancel_after, options.seed)


def main() -> None:
    """Run and print the summary."""
    options = parser().parse_args()
    calls = asyncio.run(run(options))
    if options.trace:
        write_trace(options.trace, calls)
    print(json.dumps(strict(summary(calls, options.deadline))))


if __name__ == "__main__":
    main()
