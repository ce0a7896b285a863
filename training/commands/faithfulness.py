"""`realce-train faithfulness`: whether answers hang on the tokens that accounts name."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from model.bundle import read_bundle
from training.commands.options import add_texts, texts_of, write
from training.data.batches import Dataset
from training.data.formats import DataError
from training.evaluation.faithfulness import FEWEST_TOKENS, faithfulness, table


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "faithfulness",
        help="test whether answers hang on the tokens that a bundle's accounts name",
        description="Erase from texts the tokens that each view ranks first, then all but those, "
        "and measure how far the answer's probability falls (DeYoung et al. 2020).",
    )
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    add_texts(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    texts, bundle = texts_of(options), read_bundle(options.bundle)
    encodings = [
        encoding
        for encoding in bundle.tokenizer.encode_batch(texts, offsets=False)
        if len(encoding.input_ids) >= FEWEST_TOKENS
    ]
    if len(encodings) < 2:
        raise DataError(
            f"--texts {options.texts}: {len(encodings)} of {len(texts):,} texts have the "
            f"{FEWEST_TOKENS} tokens that it takes to erase a share of them; give 2 at least"
        )
    erasures = faithfulness(bundle, Dataset.encode(encodings))
    if options.json is not None:
        figures = {name: erasure.figures() for name, erasure in erasures.items()}
        content = {"bundle": bundle.fingerprint, "texts": len(encodings), "views": figures}
        write("--json", options.json, json.dumps(content, indent=2) + "\n")
    Console().print(table(erasures, len(encodings)))
    return 0
