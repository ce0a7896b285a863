"""The loop: plain PyTorch, one process or many under `torchrun`."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.classifier import TextClassifier
from model.encoder import Encoder
from training.config import ConfigError, TrainConfig
from training.data.batches import TrainingBatch, TrainingBatches
from training.loop.checkpoint import Progress, load_checkpoint, save_checkpoint, write_whole
from training.loop.meter import Meter
from training.loop.objectives import Objective
from training.loop.optimizers import Optimizers
from training.progress import Display
from training.signals import deferred

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
TOKENS_TO_SEE, FEWEST_PASSES, MOST_PASSES = 4_000_000, 3, 20
FEWEST_STEPS = 200  # before which no gain says nothing: layers have hardly begun to learn

Tensors = tuple[Tensor, ...] | list[Tensor]

# Is given a run's history after each evaluation; what it raises ends the run.
Watch = Callable[[Sequence[dict[str, float]]], None]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run; `torchrun` sets it, else there is one."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the process that writes files and speaks."""
        return self.rank == 0


@contextlib.contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group if `torchrun` started us; leave it at the end."""
    if not dist.is_torchelastic_launched():
        yield Ranks(0, 1, torch.device(device))
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    local = dist.get_node_local_rank()
    try:
        index = local if device == "cuda" else None
        yield Ranks(
            dist.get_rank(),
            dist.get_world_size(),
            torch.device(device if index is None else f"{device}:{index}"),
        )
    finally:
        dist.destroy_process_group()


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then linear decay to zero (Devlin et al. 2019, appendix A.2)."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * max(0.0, (steps - step) / max(1, steps - warmup))


def averaging(step: int, decay: float) -> float:
    """Decay of the averaged weights at a step. It warms up, as in TensorFlow's moving averages: or
    else few steps leave them at what they began with."""
    return min(decay, (1 + step) / (10 + step))


def passes(tokens: int) -> int:
    """Epochs over so many tokens where none are set: few rows are seen often, many seldom."""
    return min(max(round(TOKENS_TO_SEE / tokens), FEWEST_PASSES), MOST_PASSES)


def in_half_precision(precision: str, device: torch.device) -> bool:
    """Do matrices multiply in bfloat16, while weights and sums stay in single precision
    (Kalamkar et al. 2019)? "auto" does where the device has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let a network's layers run compiled. They are alike: one is compiled for all of them, and for
    texts of any length."""
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]


@contextlib.contextmanager
def compiled(encoder: Encoder) -> Iterator[None]:
    """Meanwhile the layers run compiled."""
    compile_layers(encoder.stack())
    try:
        yield
    finally:
        for layer in encoder.stack():
            del layer.forward


class Trainer:
    """One run: owns the weights, their average, the optimiser and where the run stands, which is
    where the run folder's checkpoint left it. Raises `CheckpointError` for one of another run."""

    def __init__(
        self,
        network: TextClassifier,
        batches: TrainingBatches,
        objective: Objective,
        config: TrainConfig,
        fingerprint: str,
        run: Path,
        where: Ranks,
    ) -> None:
        # cuDNN makes a plan for each shape, tens of milliseconds, and batches are of many shapes.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.config, self.batches, self.objective = config, batches, objective
        self.fingerprint, self.run, self.where = fingerprint, run, where
        self.network = network.to(where.device)
        self.wrapped: nn.Module = self.network
        if where.world_size > 1:
            self.wrapped = DistributedDataParallel(self.network)
        self.average = AveragedModel(self.network, multi_avg_fn=self._averaged)
        self.optimizers = Optimizers(self.network, config)
        self.progress = Progress()
        self.epochs = passes(batches.tokens) if config.epochs is None else config.epochs
        half = in_half_precision(config.precision, where.device)
        self.autocast = torch.autocast(where.device.type, torch.bfloat16, enabled=half)
        if self.begun(run):
            self._restore()

    @staticmethod
    def begun(run: Path) -> bool:
        """Does this run folder hold a run to go on with?"""
        return (run / CHECKPOINT).exists()

    @property
    def checkpoint(self) -> Path:
        """Where the run is kept for going on."""
        return self.run / CHECKPOINT

    @property
    def best(self) -> Path:
        """Where the weights to keep are, so far: those of the best evaluation or of the last."""
        return self.run / BEST

    def fit(self, display: Display, watch: Watch | None = None) -> list[dict[str, float]]:
        """Train to the end or to no more gain; the network then holds the weights to keep. Asked
        to stop, by SIGINT or SIGTERM, it does so once the step under way is done and kept.

        `watch` is told first what lies behind, if anything does. Returns one entry an evaluation:
        step, loss, train_accuracy, learning_rate, validation accuracies, their mean as score,
        texts_per_s. Raises `ConfigError` where the loss is no longer finite.
        """
        if watch is not None and self.progress.history:
            watch(self.progress.history)
        lengths = [len(self.batches.plan(epoch)) for epoch in range(self.epochs)]
        steps, progress = sum(lengths), self.progress
        meter = Meter()
        fast = compiled(self.network.encoder) if self.config.compile else contextlib.nullcontext()
        with fast, deferred() as heard, display.steps(steps, progress.step) as bar:
            while progress.epoch < self.epochs and not self._stalled():
                evaluate_every = math.ceil(
                    lengths[progress.epoch] / self.config.evaluations_per_epoch
                )
                for batch in self.batches.iterate(progress.epoch, progress.batch):
                    self._step(batch, steps, meter)
                    bar.advance(meter.read)
                    ends = (
                        progress.batch == lengths[progress.epoch]
                        or progress.step == self.config.max_steps
                    )
                    if progress.batch % evaluate_every == 0 or ends:
                        self._evaluate(steps, meter, display, watch)
                    elif progress.step % self.config.checkpoint_every_steps == 0:
                        self._save()
                    if heard:  # after an evaluation that is due: who goes on begins behind it
                        self._save()
                        raise KeyboardInterrupt
                    if self._stalled():
                        break
                else:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
        if not progress.history:  # no step to train: what the run starts from is what it keeps
            self._evaluate(steps, meter, display, watch)
        self._save()
        if self.where.world_size > 1:
            dist.barrier()
        best = torch.load(self.best, map_location=self.where.device, weights_only=True)
        self.network.load_state_dict(best)
        return progress.history

    def _step(self, batch: TrainingBatch, steps: int, meter: Meter) -> None:
        config, progress = self.config, self.progress
        # Each step seeds its own dropout: a run that goes on draws what it would have drawn.
        torch.manual_seed((self.batches.seed * 1_000_003 + progress.step) * 4096 + self.where.rank)
        self.wrapped.train()
        self.optimizers.zero_grad()
        batch = batch.to(self.where.device)
        with self.autocast:
            outcome = self.objective.outcome(self.wrapped, batch)
        # DistributedDataParallel takes the mean over ranks; the loss is a sum over them.
        (outcome.loss * self.where.world_size).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        self.optimizers.step(learning_rate(progress.step, steps, config))
        if config.ema_decay:
            self.average.update_parameters(self.network)
        meter.add(outcome, batch)
        progress.step, progress.batch = progress.step + 1, progress.batch + 1

    def _averaged(self, averages: Tensors, weights: Tensors, number: Tensor | int) -> None:
        decay = averaging(self.progress.step, self.config.ema_decay)
        get_ema_multi_avg_fn(decay)(averages, weights, number)

    def _evaluate(self, steps: int, meter: Meter, display: Display, watch: Watch | None) -> None:
        progress = self.progress
        averaged = cast("TextClassifier", self.average.module)
        candidate = averaged if self.config.ema_decay else self.network
        entry = {
            "step": progress.step,
            "learning_rate": learning_rate(progress.step, steps, self.config),
            **meter.take(),
        }
        if progress.step and not math.isfinite(entry["loss"]):
            raise ConfigError(
                f"train.learning_rate={self.config.learning_rate}: the loss is {entry['loss']} at "
                f"step {progress.step}; {self.checkpoint} is of before"
            )
        scores = self.objective.scores(candidate, self.where.device)
        score = sum(scores.values()) / len(scores)
        better = score > progress.best_score
        if better:
            progress.best_score = score
            progress.evaluations_without_gain = 0
        else:
            progress.evaluations_without_gain += 1
        entry |= {f"accuracy/{name}": value for name, value in scores.items()}
        progress.history.append(entry | {"score": score})
        if self.where.first and (better or self.config.keep == "last"):
            write_whole(self.best, candidate.state_dict())
        self._save()
        display.evaluation(progress.history[-1], better)
        if watch is not None:
            watch(progress.history)

    def _stalled(self) -> bool:
        most, progress = self.config.max_steps, self.progress
        waited = progress.evaluations_without_gain >= self.config.patience
        return (waited and progress.step >= FEWEST_STEPS) or (
            most is not None and progress.step >= most
        )

    def _states(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }

    def _save(self) -> None:
        if self.where.first:
            save_checkpoint(self.checkpoint, self.fingerprint, self.progress, self._states())

    def _restore(self) -> None:
        self.progress, states = load_checkpoint(self.checkpoint, self.fingerprint)
        self.network.load_state_dict(states["network"])
        self.average.load_state_dict(states["average"])
        self.optimizers.load_state_dict(states["optimizers"])
