"""All that is to be measured on a GPU, with one command: `python -m tests.benchmarks.gpu`.

Further arguments go to `python -m tests.benchmarks`.
"""

import sys

from tests.benchmarks.__main__ import main

SCENARIOS = ("parity", "unary", "bulk", "views", "overload", "memory", "reload")

if __name__ == "__main__":
    sys.exit(main([*SCENARIOS, "--device", "cuda", *sys.argv[1:]]))
