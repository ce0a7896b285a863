"""All that is to be measured on a GPU, with one command: `python -m tests.benchmarks.gpu`.

Further arguments go to `python -m tests.benchmarks`. The server gets batches and a queue that are
worth a GPU.
"""

import sys

from tests.benchmarks.__main__ import main

SCENARIOS = (
    "parity",
    "bulk",
    "workers",
    "unary",
    "views",
    "overload",
    "memory",
    "reload",
    "training",
)
SERVE = "--max-batch-tokens 16384 --max-queue-tokens 1048576"
OPTIONS = ("--device", "cuda", "--count", "8192", "--serve", SERVE)

if __name__ == "__main__":
    sys.exit(main([*SCENARIOS, *OPTIONS, *sys.argv[1:]]))
