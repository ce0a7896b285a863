"""What a network learns from texts before it sees a label."""

from pathlib import Path

import numpy as np
import torch

from model.bundle import TOKENIZER
from training.config import ConfigError, RunConfig
from training.encoding import corpus
from training.initial import begin_with_vectors
from training.loop.objectives import Detection
from training.loop.trainer import BEST, Ranks, Trainer, Watch
from training.origin import Origin
from training.pretraining.detector import Detector
from training.pretraining.replacement import Replacer
from training.progress import Display
from training.run import Run


def pretrain(
    config: RunConfig,
    base: Path,
    folder: Path,
    where: Ranks,
    display: Display,
    watch: Watch | None = None,
) -> None:
    """Teach the layers to tell which tokens of a text were replaced; `fit` can start from `folder`.

    The texts are those of the sources, each source's `epochs` times, and the unlabelled ones once a
    pass. Labels and stages say nothing here; no held-out text is read but to see how good it gets.
    Raises `ConfigError` where nothing would be learnt.
    """
    if config.train.epochs == 0:
        raise ConfigError("train.epochs=0 trains nothing")
    with Run.open(config, base, folder, where, display) as run:
        training = begin(run)
        if where.first:  # once the folder has shown to be this run's
            Origin.of_run(config, run.splits, None).keep(folder)
        training.fit(display, watch)
    display.say(
        f"{folder / BEST} and {folder / TOKENIZER} are what `fit --start-from {folder}` begins with"
    )


def begin(run: Run) -> Trainer:
    """The loop, at the weights that the run begins with or at those it had come to."""
    config, splits, where = run.config, run.splits, run.where
    texts = corpus(splits, run.encoded)
    torch.manual_seed(config.train.seed)
    network = Detector(run.shape)
    if config.train.token_vectors and where.first and not Trainer.begun(run.folder):
        begin_with_vectors(network, texts, config.train.seed)
    run.display.say(
        f"{len(texts):,} texts and {texts.lengths.sum():,} tokens to learn from, "
        f"{where.world_size} process(es) on {where.device}"
    )
    unlabelled = np.full(len(splits.unlabelled), len(splits.sources))
    epochs = [*(source.epochs for source in splits.sources), 1.0]
    source_of_row = np.concatenate([splits.train.sources, unlabelled])
    batches = run.batches(texts, source_of_row, epochs, stages=[1] * len(epochs))
    objective = Detection(
        run.encoded.validation,
        Replacer(texts, network.config.vocab_size, where.device),
        config.train.replaced_tokens,
    )
    fingerprint = f"pretrain-{config.steps_fingerprint}-{splits.digest}"
    return Trainer(network, batches, objective, config.train, fingerprint, run.folder, where)
