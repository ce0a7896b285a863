"""One run from rows to bundle, in the order it happens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from model.bundle import TOKENIZER, Bundle, Source, check_place
from model.classifier import TextClassifier
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from training import report
from training.baseline import LinearBaseline
from training.batches import Dataset, TrainingBatches
from training.calibrate import Weights, abstention_threshold, alike, fit_sum, fit_temperature
from training.config import ConfigError, RunConfig
from training.evaluate import Labels, Logits, measure_sets, predict, softmax
from training.export import halve_weights
from training.families import beginnings
from training.initial import (
    ORIGIN,
    Origin,
    Start,
    begin_with,
    begin_with_vectors,
    drawn_back,
)
from training.linear import Domains, Languages, LinearClassifier
from training.objectives import Classification
from training.progress import Display
from training.release import release
from training.rows import Rows, concatenate
from training.splits import Splits, prepare
from training.train import Ranks, Trainer, Watch

# Enough to learn a vocabulary; more only take longer. Of long texts the beginning will do.
TOKENIZER_CHARACTERS, TOKENIZER_TEXT = 20_000_000, 1000


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a run trains on and chooses with, as ids of its own tokenizer.

    `linear` are those rows of `train` that linear models learn from, their targets by weight, and
    `domains` and `languages` theirs.
    """

    tokenizer: Tokenizer
    train: Dataset
    linear: Dataset
    domains: Domains | None
    languages: Languages
    validation: dict[str, Dataset]

    @property
    def truth(self) -> Labels:
        """The classes of the validation rows, all sets end to end."""
        return np.concatenate([rows.labels for rows in self.validation.values()])

    @property
    def weights(self) -> Weights:
        """What each of these rows counts: each set as much as the next."""
        return alike([len(rows) for rows in self.validation.values()])

    def logits(self, network: nn.Module, where: Ranks) -> Logits:
        """What a network says of these rows."""
        sets = self.validation.values()
        return np.concatenate([predict(network, rows, where.device) for rows in sets])


def fit(
    config: RunConfig,
    base: Path,
    run: Path,
    out: Path,
    where: Ranks,
    display: Display,
    start_from: Path | None = None,
    watch: Watch | None = None,
) -> Bundle | None:
    """Train and write the bundle into `out`; `run` keeps what a killed run needs to go on.

    `start_from` is the run folder of an earlier stage, or a bundle, whose tokenizer and weights
    this one begins with; `watch` follows the evaluations. Returns the bundle in the first process,
    None in the others.
    """
    check_place(out)
    start = None if start_from is None else Start.read(start_from)
    if start is None and config.train.epochs == 0:
        raise ConfigError("train.epochs=0 trains nothing; --start-from has to name what is trained")
    if out.resolve() in (run.resolve(), *run.resolve().parents):
        raise ConfigError(f"--run-dir {run}: must not be in the folder of the bundle, {out}")
    make_run_folder(run)
    splits = prepare(config, base, display)
    encoded = encode_splits(config, splits, run, where, given=start.tokenizer if start else None)
    network = untrained(config, splits, encoded)
    alone = start is None and where.first and not Trainer.begun(run)
    if config.train.token_vectors and alone:
        begin_with_vectors(network, corpus(splits, encoded), config.train.seed)
    identity = config.fingerprint
    if start is not None:
        start = start.speaking_of(splits.labels)
        begin_with(network, start)
        identity += f"-{start.identity}"
    origin = origin_of(config, splits, network.config, start)
    if where.first:
        (run / ORIGIN).write_text(origin.model_dump_json(indent=2), encoding="utf-8")
    display.say(
        f"{len(encoded.train):,} rows and {encoded.train.lengths.sum():,} tokens to train on, "
        f"{network.parameter_count:,} parameters, {where.world_size} process(es) on {where.device}"
    )
    history = trainer(config, splits, encoded, network, identity, run, where).fit(display, watch)
    if not where.first:
        return None
    if start is not None and config.train.start_share:
        drawn_back(network, start, config.train.start_share)
    if config.network.ngrams:
        display.say("fitting the linear part")
        network = with_linear_part(config, encoded, network, where)
    return finish(config, splits, encoded, network, history, origin, out, where, display)


def make_run_folder(run: Path) -> None:
    """Raises `ConfigError` where there can be none."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run-dir {run}: cannot be made: {error.strerror}") from error


def encode_splits(
    config: RunConfig, splits: Splits, run: Path, where: Ranks, given: bytes | None = None
) -> Encoded:
    """Learn the tokenizer, unless one is given or the run has begun with one, and read the rows."""
    tokenizer = _tokenizer(config, splits.train, run, where, given)
    validation = {name: encode(rows, tokenizer) for name, rows in splits.validation.items()}
    train = encode(splits.train, tokenizer)
    counted = splits.linear > 0
    return Encoded(
        tokenizer=tokenizer,
        train=train,
        linear=train.weighted(splits.linear),
        domains=None if splits.domains is None else splits.domains[counted],
        languages=splits.train.languages[counted],
        validation=validation,
    )


def corpus(splits: Splits, encoded: Encoded) -> Dataset:
    """The rows to train on, then the unlabelled texts, with no share of any class."""
    texts = splits.unlabelled
    nothing = np.zeros((len(texts), len(splits.labels)), dtype=np.float32)
    more = Dataset.encode(encoded.tokenizer.encode_batch(texts, offsets=False), nothing)
    return encoded.train.joined(more)


def untrained(config: RunConfig, splits: Splits, encoded: Encoded) -> TextClassifier:
    """The network as its seed draws it, its linear part to come."""
    network_config = ModelConfig(
        vocab_size=encoded.tokenizer.vocab_size,
        classes=len(splits.labels),
        **config.network.model_dump() | {"ngrams": 0},
    )
    torch.manual_seed(config.train.seed)
    return TextClassifier(network_config)


def trainer(
    config: RunConfig,
    splits: Splits,
    encoded: Encoded,
    network: TextClassifier,
    identity: str,
    run: Path,
    where: Ranks,
) -> Trainer:
    """The loop over these rows; its checkpoints in `run` are known by `identity`."""
    batches = TrainingBatches(
        dataset=encoded.train,
        source_of_row=splits.train.sources,
        source_epochs=[source.epochs for source in splits.sources],
        source_stages=[source.stage for source in splits.sources],
        max_batch_tokens=config.train.max_batch_tokens,
        crop_tokens=config.train.crop_tokens,
        seed=config.train.seed,
        rank=where.rank,
        world_size=where.world_size,
    )
    objective = Classification(
        encoded.validation, config.train.token_dropout, config.train.label_smoothing
    )
    fingerprint = f"{identity}-{splits.digest}"
    return Trainer(network, batches, objective, config.train, fingerprint, run, where)


def with_linear_part(
    config: RunConfig, encoded: Encoded, network: TextClassifier, where: Ranks
) -> TextClassifier:
    """The fitted network and a linear part, with the shares and the bias of their sum that suit the
    validation rows. What features say has a share in each domain and language: how far it may be
    trusted depends on how much was there to learn it from.

    Fitted one by one, because together the linear part, which learns faster, would leave the
    encoder only what no one can learn; and not to what a teacher labelled, because a linear teacher
    has nothing to tell a linear part.
    """
    domains = max(1, len(config.domains))
    shape = network.config.model_copy(update={"ngrams": config.network.ngrams, "domains": domains})
    linear = LinearClassifier.fit(
        encoded.linear,
        shape,
        config.train.linear_strength,
        encoded.domains,
        encoded.languages,
        beginnings(encoded.tokenizer.pieces),
    ).to(where.device)
    kinds = domains, linear.spoken.shape[1]  # [K, L]
    each = torch.eye(math.prod(kinds)).unflatten(1, kinds)
    pieces = [encoded.logits(linear.shared(one), where) for one in each]
    ((deep,), wide), bias = fit_sum(
        [[encoded.logits(network, where)], pieces], encoded.truth, encoded.weights
    )
    linear = linear.shared(torch.from_numpy(wide).unflatten(0, kinds))
    said = {f"linear.{name}": table for name, table in linear.part.state_dict().items()}
    both = TextClassifier(shape).to(where.device)
    both.load_state_dict(network.state_dict() | said)
    with torch.no_grad():
        both.head.weight.mul_(deep)
        both.head.bias.mul_(deep).add_(linear.bias).add_(torch.from_numpy(bias).to(where.device))
    return both


def finish(
    config: RunConfig,
    splits: Splits,
    encoded: Encoded,
    network: TextClassifier,
    history: list[dict[str, float]],
    origin: Origin,
    out: Path,
    where: Ranks,
    display: Display,
) -> Bundle:
    """From fitted weights to a bundle: calibrate, measure once on test, release."""
    half = config.weights == "float16"
    if half:
        halve_weights(network)
    tokenizer = encoded.tokenizer
    logits = encoded.logits(network, where)
    temperature = fit_temperature(logits, encoded.truth, encoded.weights)
    threshold = abstention_threshold(softmax(logits, temperature))
    probabilities = {
        name: softmax(predict(network, encode(rows, tokenizer), where.device), temperature)
        for name, rows in splits.test.items()
    }
    metrics = measure_sets(probabilities, splits.test)
    if config.train.baseline:
        display.say("fitting the linear baseline on the labelled rows")
        for name, values in _baseline(splits).items():
            metrics[name]["linear_accuracy"] = values["accuracy"]
    for name, values in metrics.items():
        display.say(_spoken(name, values))
    everything = np.concatenate(list(probabilities.values()))
    truth = concatenate(list(splits.test.values())).labels
    return release(
        out,
        network,
        tokenizer,
        {
            "name": config.name,
            "version": config.version,
            "labels": splits.labels,
            "languages": tuple(sorted({source.language for source in config.sources})),
            "temperature": temperature,
            "abstention_threshold": threshold,
            "metrics": metrics,
            "sources": origin.sources,
            "license": origin.license,
        },
        half_weights=half,
        settings=config.train.model_dump() | {"steps": int(history[-1]["step"])},
        warnings=splits.warnings,
        plots={
            "loss.png": report.loss_plot(history),
            **report.measured_plots(everything, truth, splits.labels),
        },
        display=display,
    )


def encode(rows: Rows, tokenizer: Tokenizer) -> Dataset:
    """Rows as token ids."""
    return Dataset.encode(tokenizer.encode_batch(rows.texts, offsets=False), rows.targets)


def _tokenizer(
    config: RunConfig, rows: Rows, run: Path, where: Ranks, given: bytes | None
) -> Tokenizer:
    """The run's tokenizer, kept in the run folder by the first process."""
    path, max_tokens = run / TOKENIZER, config.network.max_tokens
    if where.first and not (path.exists() and Trainer.begun(run)):
        if given is None:
            sample = _sample(rows, np.random.default_rng(config.train.seed))
            learnt = Tokenizer.train(
                sample, vocab_size=config.train.vocab_size, max_tokens=max_tokens
            )
            given = learnt.to_json()
        path.write_bytes(given)
    if where.world_size > 1:
        dist.barrier()
    return Tokenizer.from_json(path.read_bytes(), max_tokens=max_tokens)


def _sample(
    rows: Rows, generator: np.random.Generator, characters: int = TOKENIZER_CHARACTERS
) -> Iterator[str]:
    """Texts to learn a vocabulary from, of each language as many characters: or else the language
    with the longer texts gets most of the pieces, and the other's words are cut to bits."""
    languages = sorted(set(rows.languages))
    for language in languages:
        left = characters // len(languages)
        for i in generator.permutation(np.flatnonzero(rows.languages == language)):
            if left <= 0:
                break
            text = rows.texts[i][:TOKENIZER_TEXT]
            left -= len(text)
            yield text


def _baseline(splits: Splits) -> dict[str, dict[str, Any]]:
    """The linear baseline's metrics of every test set, learnt from the labelled rows."""
    rows = splits.train.take(np.flatnonzero(splits.linear))
    weights = splits.linear[splits.linear > 0, None]
    baseline = LinearBaseline.fit(rows.texts, rows.targets * weights)
    probabilities = {name: baseline.probabilities(rows.texts) for name, rows in splits.test.items()}
    return measure_sets(probabilities, splits.test)


def origin_of(
    config: RunConfig, splits: Splits, network: ModelConfig, start: Start | None
) -> Origin:
    """What the weights of a run come from: its sources and those of what it begins with, whose
    licence stays theirs unless the run has one of its own."""
    counts = np.bincount(splits.train.sources, minlength=len(splits.sources))
    sources = [
        Source(
            name=source.name,
            language=source.language,
            rows=int(count) or splits.texts_of.get(source.name, 0),
            license=source.license,
            origin=source.origin,
            domain=source.domain or "",
        )
        for source, count in zip(splits.sources, counts, strict=True)
    ]
    sources = [source for source in sources if source.rows]
    licence, before = config.license, start.origin if start else None
    if before is not None:
        names, way = {source.name for source in sources}, f"{before.name} {before.version}"
        sources += [
            source.model_copy(update={"origin": f"{source.origin} (by way of {way})".strip()})
            for source in before.sources
            if source.name not in names
        ]
        if "license" not in config.model_fields_set:
            licence = before.license
    return Origin(
        name=config.name,
        version=config.version,
        license=licence,
        labels=splits.labels,
        heads=network.heads,
        sources=tuple(sources),
    )


def _spoken(name: str, values: dict[str, Any]) -> str:
    linear = values.get("linear_accuracy")
    beside = "" if linear is None else f" (linear baseline {linear:.2%})"
    return (
        f"test {name}: accuracy {values['accuracy']:.2%}{beside}, "
        f"{values['accuracy_at_80']:.2%} on the surest 80%, "
        f"macro-F1 {values['macro_f1']:.2%}, calibration error {values['ece']:.2%} "
        f"over {values['rows']:,} rows"
    )
