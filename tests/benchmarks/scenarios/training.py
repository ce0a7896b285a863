"""Training steps of our network and of the same sizes out of torch's own encoder.

Batches are those of a run: texts of like length together. Both compute in bfloat16 where a run
does, and on a GPU both have their layers compiled.
"""

import itertools
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from model.bundle import read_bundle
from model.classifier import TextClassifier
from tests.benchmarks.bench import Bench, Key, Phase
from tests.benchmarks.figures import Figures
from tests.benchmarks.peers.torch_encoder import TorchClassifier
from tests.benchmarks.report import Result
from tests.benchmarks.texts import chosen
from training.config import TrainConfig
from training.data.batches import Dataset, TrainingBatch, TrainingBatches
from training.loop.objectives import classification_loss, drop_tokens
from training.loop.optimizers import Optimizers
from training.loop.trainer import compile_layers, in_half_precision

OURS, PEER = "realce", "torch.nn.TransformerEncoder"
SHOWN = ("tokens_per_s", "times_torch")
LOADS = {"short reviews": "reviews", "1 to 512 words": "wide"}
WARM_UP_STEPS = 5
CONFIG = TrainConfig(token_dropout=0.15)


def run(bench: Bench) -> Result:
    """Tokens of training in a second, in turns."""
    name, folder = bench.first
    bundle = read_bundle(folder)
    config = bundle.manifest.config.model_copy(update={"ngrams": 0, "dropout": 0.1})
    device = torch.device(bench.options.device)
    phases: dict[Key, Phase] = {}
    for load, lengths in LOADS.items():
        options = bench.options
        texts = chosen(options.texts, options.count, lengths=lengths, seed=options.seed)
        encodings = bundle.tokenizer.encode_batch(texts, offsets=False)
        classes = np.eye(config.classes, dtype=np.float32)[np.arange(len(texts)) % config.classes]
        batches = TrainingBatches(
            Dataset.encode(encodings, classes),
            np.zeros(len(texts), np.int64),
            [1.0],
            [1],
            CONFIG.max_batch_tokens,
            CONFIG.crop_tokens,
            seed=options.seed,
        )
        for system, network in {OURS: TextClassifier, PEER: TorchClassifier}.items():
            torch.manual_seed(options.seed)
            loop = _Loop(network(config), batches, device)
            phases[system, name, load] = partial(loop.measure, bench.seconds)
    result = Result("training", bench.interleave(phases), SHOWN)
    result.relate("times_torch", "tokens_per_s", PEER)
    return result


class _Loop:
    """One network's training, that goes on from round to round."""

    def __init__(self, network: nn.Module, batches: TrainingBatches, device: torch.device) -> None:
        torch.backends.cuda.enable_cudnn_sdp(False)  # as in a run
        self._device = device
        self._network = network.to(device).train()
        self._optimizers = Optimizers(network, CONFIG)
        if device.type == "cuda":
            compile_layers(network.encoder.layers)
        half = in_half_precision("auto", device)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
        self._batches = _endless(batches)
        for _ in range(WARM_UP_STEPS):
            self._step(next(self._batches))

    def measure(self, seconds: float) -> Figures:
        """Steps for so long; tokens are those of texts, without padding."""
        tokens, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            tokens += self._step(next(self._batches))
        return {"tokens_per_s": tokens / taken}

    def _step(self, batch: TrainingBatch) -> int:
        self._optimizers.zero_grad()
        batch = batch.to(self._device)
        input_ids = drop_tokens(batch.input_ids, batch.attention_mask, CONFIG.token_dropout)
        with self._autocast:
            logits = self._network(input_ids, batch.attention_mask)
        classification_loss(logits.float(), batch.targets, batch.rows, 0.0).backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), CONFIG.gradient_clip)
        self._optimizers.step(CONFIG.learning_rate)
        return int(batch.attention_mask.sum())


def _endless(batches: TrainingBatches) -> Iterator[TrainingBatch]:
    for epoch in itertools.count():
        yield from batches.iterate(epoch)
