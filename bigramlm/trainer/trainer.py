"""The Trainer, which runs the training loop."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bigramlm.checkpoint.checkpoint import Checkpoint, Progress
from bigramlm.checkpoint.manager import CheckpointManager
from bigramlm.data.batches import Batches
from bigramlm.errors import UserError, require
from bigramlm.logger.metrics import Metrics
from bigramlm.optim.base import Schedule
from bigramlm.trainer.config import TrainerConfig
from bigramlm.trainer.evaluate import Evaluator
from bigramlm.trainer.overfit import verdict
from bigramlm.trainer.speed import Speedometer
from bigramlm.trainer.step import StepResult, TrainStep
from bigramlm.trainer.vitals import Vitals
from bigramlm.utils.console import relative
from bigramlm.utils.progress import LazyText, bar

log = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """The outcome of training."""

    status: str = "running"
    """running, completed, stopped (by a signal) or pruned (because other trials of the search were better)."""
    final: dict[str, float] = field(default_factory=dict)
    """The final losses of a completed run, by metric name."""
    early_stopped: bool = False
    """True if early stopping ended the run before `trainer.steps`, because the val loss no longer decreased."""
    references: dict[str, float] = field(default_factory=dict)
    """The losses of n-gram models that are fitted by counting, by metric name. They are reference values."""

    def to_summary(self) -> dict[str, Any]:
        """Return the outcome as entries of summary.json.

        The status `completed` is omitted, because the run is not completed before its sample is written.
        """
        if self.status == "pruned":
            return {"status": "pruned"}
        early = {"early_stopped": True} if self.early_stopped else {}
        return {"final": self.final, "references": self.references, **early}


@dataclass(frozen=True)
class Hooks:
    """The functions through which the Trainer reports progress and can be stopped."""

    write_summary: Callable[..., None] = lambda **_: None
    """Called at every save and at the end, with the progress and the speed as keyword arguments."""
    should_stop: Callable[[], bool] = lambda: False
    """Called before every step. If it returns True, the run saves a checkpoint and ends."""
    should_prune: Callable[[int, Mapping[str, float]], bool] | None = None
    """Called at every evaluation except the last, with the step and the losses. If it returns True, the run is pruned.
    None disables pruning."""
    before_save: Callable[[], None] = lambda: None
    """Called before every save. If it raises an exception, nothing is saved."""
    write_sample: Callable[[int], str] = lambda _: ""
    """Called with the step, every `trainer.sample_every` steps. Generates a sample, records it and returns it."""


class Trainer:
    """The training loop.

    At every step, the loop evaluates, saves, updates and logs, in this order, if the action is due. Step n starts with
    the weights after n updates, so step 0 starts with the initial weights. The evaluation, the checkpoint and the batch
    loss of step n all belong to these weights.
    """

    def __init__(
        self,
        cfg: TrainerConfig,
        train_step: TrainStep,
        batches: Batches,
        evaluator: Evaluator,
        checkpoints: CheckpointManager,
        schedule: Schedule,
        hooks: Hooks = Hooks(),
    ) -> None:
        self.cfg, self.train_step, self.batches = cfg, train_step, batches
        self.evaluator, self.checkpoints = evaluator, checkpoints
        self.schedule, self.hooks = schedule, hooks
        self.model = train_step.model
        flops = self.model.flops_per_token(batches.block_size)
        self.speed = Speedometer(train_step.device, tokens_per_step=batches.tokens_per_batch, flops_per_token=flops)
        self.vitals = Vitals(train_step, schedule)
        self.progress = Progress()
        self.result = TrainResult()
        self._started, self._initial = 0.0, Progress()
        self._metrics: Metrics | None = None
        self._batch_losses: list[float] = []
        self._shown_loss: Tensor | float | None = None

    def start(self, resume_from: Checkpoint | None = None, *, seconds: float = 0.0) -> None:
        """Restore the state from a checkpoint; without a checkpoint, start at step 0.

        seconds: the time that a new run has already spent on counting n-grams, which is part of its training time.
        Raises UserError if the checkpoint cannot be restored.
        """
        self.progress = Progress(seconds=seconds) if resume_from is None else self.checkpoints.restore(resume_from)
        self.train_step.start_at(self.progress.step)

    def fit(self, metrics: Metrics) -> TrainResult:
        """Train until the run is completed, stopped or pruned, and return the outcome.

        The run completes after `trainer.steps` steps, or earlier with `trainer.early_stopping_patience`. In all three
        cases a checkpoint is saved. Only a completed run has final losses. Raises UserError if a loss, a gradient norm,
        a weight or an optimizer state value is not finite.
        """
        self._begin()
        self._metrics = metrics
        cfg, result, should_stop = self.cfg, self.result, self.hooks.should_stop
        on_cpu = self.train_step.device.torch.type == "cpu"
        with progress_bar(self.progress.step, cfg.steps) as pbar, logging_redirect_tqdm():
            pbar.postfix = LazyText(self._bar_text)
            while result.status == "running":
                step = self.progress.step
                record: dict[str, float] = {}
                if should_stop():
                    self.save()
                    result.status = "stopped"
                    break
                if step % cfg.eval_every == 0 or step == cfg.steps:
                    record = self.evaluate()
                    result.status = self._status_after(record)
                is_best = self.progress.best.get("step") == step
                if result.status != "running" or step % cfg.checkpoint_every == 0 or is_best or cfg.keeps(step):
                    self.save()
                if result.status == "completed":
                    self._judge_overfitting()
                    result.final = self.evaluator.final()
                    record |= {f"final/{name}": value for name, value in result.final.items()}
                    self._warn_if_diverged(result.final["train/loss"])
                elif result.status == "running":
                    if cfg.sample_every and step % cfg.sample_every == 0:
                        self.sample(metrics)
                    is_measured = cfg.vitals_every > 0 and step % cfg.vitals_every == 0
                    step_result, vitals = self.update_with_vitals(metrics) if is_measured else (self.update(), {})
                    if step % cfg.log_every == 0:
                        record |= self.measure(step_result)
                        self._shown_loss = record["train/batch_loss"]
                    elif on_cpu:
                        self._shown_loss = step_result.loss
                    record |= vitals
                    pbar.update(self.progress.step - pbar.n)
                if record:
                    metrics.log(step, self.elapsed(), record)
        metrics.sync()  # both before the summary says how the run ended
        self.checkpoints.sync()
        self.write_summary()
        self.progress.seconds, self._metrics = self.elapsed(), None
        return self.result

    def _begin(self) -> None:
        self.result = TrainResult(references=self.evaluator.references)
        self._initial = Progress(self.progress.step, self.progress.seconds)
        self._started = self.speed.clock() - self.progress.seconds
        self.speed.start(self.progress.step)
        self.model.train()

    def _bar_text(self) -> str:
        # Called only when the bar is drawn. The loss of a step on a GPU is read for a record only: the GPU would wait.
        return "" if self._shown_loss is None else f", loss {float(self._shown_loss):.3f}{self.speed}"

    def _judge_overfitting(self) -> None:
        if n := self.cfg.overfit_batches:
            log.info("overfit: %s", verdict(self.model, self.batches, n, self.train_step.device, self._batch_losses))

    def _warn_if_diverged(self, loss: float) -> None:
        guessing = math.log(self.model.vocab_size)
        if self.progress.step and not self.cfg.overfit_batches and loss > guessing + 1:
            lr = min(1e-3, self.schedule.cfg.lr / 10)
            log.warning(
                "the final train loss, %.4g, is far above %.4g, that of guessing: training has diverged; try a lower "
                "learning rate, such as optim.lr=%.1g",
                *(loss, guessing, lr),
            )

    def _status_after(self, record: dict[str, float]) -> str:
        # The status after an evaluation with these losses.
        step = self.progress.step
        if step == self.cfg.steps:
            return "completed"
        if self.out_of_patience():
            self.result.early_stopped = True
            return "completed"
        if self.hooks.should_prune is not None and self.hooks.should_prune(step, record):
            log.info("pruned: other trials were better at step %d", step)
            return "pruned"
        return "running"

    def elapsed(self) -> float:
        """Return the duration of the training so far in seconds.

        Evaluations, saves and the training before a resume are included.
        """
        return self.speed.clock() - self._started

    def update(self) -> StepResult:
        """Take the next step and return its result.

        If the step shares a compiled call, the other steps of the call are taken too. None of them is evaluated, saved
        or logged.
        """
        result = None
        while result is None:
            n = self.progress.step
            result = self.train_step(self.batches[n], self.schedule(n))
            self.progress.step = n + 1
        return result

    def update_with_vitals(self, metrics: Metrics) -> tuple[StepResult, dict[str, float]]:
        """Take the next step, and measure the vital signs of the layers before and after.

        Returns the result of the step and the signs, by metric name. Training is the same without the measurement.
        """
        start, step = self.speed.synchronized(), self.progress.step
        draws = metrics.draws_histograms and step % self.cfg.eval_every == 0
        self.vitals.begin(self.batches[step], histograms=draws)
        self.speed.exclude_since(start)
        result = self.update()
        start = self.speed.synchronized()
        record = self.vitals.end(step, result)
        metrics.histograms(step, self.vitals.histograms)
        self.speed.exclude_since(start)
        return result, record

    def evaluate(self) -> dict[str, float]:
        """Evaluate the model on both splits and return the losses, by metric name.

        The lowest val loss so far is recorded in `progress.best`. Raises UserError if the val loss is not finite.
        """
        start, progress = self.speed.synchronized(), self.progress
        record = self.evaluator.evaluate()
        val_loss = record["val/loss"]
        log.info(
            "step %*d/%d  train %.4f  val %.4f%s",
            len(str(self.cfg.steps)),
            progress.step,
            self.cfg.steps,
            record["train/loss"],
            val_loss,
            f"{self.speed}{self._left()}",
        )
        self._require_finite(progress.step, "val/loss", val_loss)
        if not progress.best or val_loss < progress.best["val/loss"]:
            progress.best = {"step": progress.step, "val/loss": val_loss}
            progress.waited = 0
        elif progress.step != progress.evaluated:  # a resumed run repeats the evaluation of its first step
            progress.waited += 1
        progress.evaluated = progress.step
        self.speed.exclude_since(start)
        return record | self.evaluator.bits(val_loss) | self.evaluator.references

    def sample(self, metrics: Metrics) -> None:
        """Write a sample to the log, samples.txt and the loggers.

        The generation has a random state of its own, so training is the same without it.
        """
        start, step = self.speed.synchronized(), self.progress.step
        text = self.hooks.write_sample(step)
        metrics.text(step, "sample", text)
        log.info("step %*d/%d  sample:", len(str(self.cfg.steps)), step, self.cfg.steps)
        for line in excerpt(text):
            log.info("  | %s", line)
        self.speed.exclude_since(start)

    def out_of_patience(self) -> bool:
        """Check whether early stopping must end the run."""
        patience = self.cfg.early_stopping_patience
        if patience == 0 or self.progress.waited < patience:
            return False
        log.info(
            "early stopping: no val loss below that of step %d in %d evaluations; checkpoint=best loads that step",
            self.progress.best["step"],
            self.progress.waited,
        )
        return True

    def _left(self) -> str:
        # Without a progress bar, the evaluation lines are the only place that shows the remaining time.
        done = self.progress.step - self._initial.step
        if done == 0 or self.progress.step == self.cfg.steps:
            return ""
        left = (self.cfg.steps - self.progress.step) * (self.elapsed() - self._initial.seconds) / done
        return f", {tqdm.format_interval(left)} left"

    def save(self) -> None:
        """Save a checkpoint of the current state, after the records up to it.

        If the state is not finite, nothing is saved and UserError is raised.
        """
        self.hooks.before_save()
        start = self.speed.synchronized()
        if not self.checkpoints.has(self.progress):
            self.progress.seconds = self.elapsed()
            self._require_finite_state()
            self.progress.metrics_bytes = None if self._metrics is None else self._metrics.length
        self.checkpoints.save(self.progress, None if self._metrics is None else self._metrics.sync)
        self.write_summary()
        self.speed.exclude_since(start)

    def write_summary(self) -> None:
        """Write the progress and the average speed to summary.json."""
        seconds, steps = self.elapsed(), self.progress.step - self._initial.step
        speed: dict[str, Any] = self.speed.average(steps, seconds - self._initial.seconds) if steps else {}
        if self.speed.peak:
            speed["peak"] = vars(self.speed.peak)
        self.hooks.write_summary(step=self.progress.step, best=self.progress.best, seconds=round(seconds, 3), **speed)

    def measure(self, result: StepResult) -> dict[str, float]:
        """Return the metrics of the step that was just taken, by metric name.

        Waits until the device has finished. Raises UserError if the loss or the gradient norm is not finite.
        """
        step, norm = self.progress.step - 1, result.grad_norm
        if norm is None:
            norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        record = {"train/batch_loss": result.loss.item(), "grad_norm": norm.item(), "lr": self.schedule(step)}
        self._require_finite(step, "train/batch_loss", record["train/batch_loss"])
        self._batch_losses.append(record["train/batch_loss"])
        if not self.train_step.scaler.is_enabled():  # an enabled scaler skips updates whose gradient overflows
            self._require_finite(step, "grad_norm", record["grad_norm"])
        return record | self.speed.measure(self.progress.step)

    def _require_finite(self, step: int, name: str, value: float) -> None:
        require(
            math.isfinite(value) or step > 0 or name == "grad_norm",
            f"step 0: {name} is {value} before the first update, so the cause is the model or its initial weights; "
            "preflight=true says more",
        )
        if not math.isfinite(value):
            lr, saved = self.schedule(step), self.checkpoints.steps()
            clip = "" if self.train_step.grad_clip else ", or optim.grad_clip=1"
            run = relative(self.checkpoints.folder.parent)
            resume = f"; to continue from step {saved[-1]}, add resume={run}" if saved else ""
            raise UserError(
                f"step {step}: {name} is {value} at a learning rate of {lr:.3g}; try a lower learning rate, such as "
                f"optim.lr={min(1e-3, self.schedule.cfg.lr / 10):.1g}{clip}{resume}"
            )

    def _require_finite_state(self) -> None:
        # Includes the optimizer's moments, because they can overflow while the weights are still finite.
        tensors: list[tuple[str, Tensor]] = list(self.model.state_dict().items())
        for values in self.train_step.optimizer.state.values():
            tensors += [(f"the optimizer's {name}", value) for name, value in values.items() if torch.is_tensor(value)]
        floating = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
        device = self.train_step.device.torch
        totals = torch.stack([tensor.sum(dtype=torch.float32).to(device) for _, tensor in floating]).tolist()
        for (name, tensor), total in zip(floating, totals, strict=True):
            # A sum can overflow although every element is finite, so the elements are checked only if the sum is not.
            if not math.isfinite(total) and not tensor.isfinite().all():
                self._require_finite(self.progress.step, name, total)


def excerpt(text: str, max_lines: int = 8, width: int = 74) -> list[str]:
    """Return the first lines of a text, wrapped to a width."""
    lines = [part for line in text.splitlines() for part in (textwrap.wrap(line, width) or [""])]
    return lines if len(lines) <= max_lines else [*lines[: max_lines - 1], "…"]


def progress_bar(step: int, steps: int) -> tqdm[NoReturn]:
    """Build the progress bar with the remaining time, the loss and the speed.

    The bar is shown only if standard error is a terminal, and if there are steps to take.
    """
    # Does not show tqdm's steps/s: only tokens/s are comparable between runs, and there is no room for both.
    bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return bar(steps, hidden=step >= steps, initial=step, bar_format=bar_format)
