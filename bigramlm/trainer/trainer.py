"""The Trainer: the loop that trains a model, from parts that are finished."""

from __future__ import annotations

import logging
import math
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
from bigramlm.errors import UserError
from bigramlm.logger.metrics import Metrics
from bigramlm.optim.base import Schedule
from bigramlm.trainer.config import TrainerConfig
from bigramlm.trainer.evaluate import Evaluator
from bigramlm.trainer.speed import Speedometer
from bigramlm.trainer.step import StepResult, TrainStep
from bigramlm.utils.console import relative
from bigramlm.utils.progress import bar

log = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """The end of training."""

    status: str = "running"
    """completed, stopped (it was asked to) or pruned (it was not worth continuing)."""
    final: dict[str, float] = field(default_factory=dict)
    """The final losses of a run that completed, by the metrics' names."""
    early_stopped: bool = False
    """True if it completed before its last step, since the val loss had ceased to fall."""
    references: dict[str, float] = field(default_factory=dict)
    """The losses that counting gives, by the metrics' names."""

    def to_summary(self) -> dict[str, Any]:
        """Return what the summary says of it; a run that completed has its sample to write yet."""
        if self.status == "pruned":
            return {"status": "pruned"}
        early = {"early_stopped": True} if self.early_stopped else {}
        return {"final": self.final, "references": self.references, **early}


@dataclass(frozen=True)
class Hooks:
    """Functions that the Trainer calls back."""

    write_summary: Callable[..., None] = lambda **_: None
    """Takes how far the run is, and how fast, as keywords."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked before every step."""
    should_prune: Callable[[int, Mapping[str, float]], bool] | None = None
    """Asked at every evaluation but the last, with the step and what was found."""


class Trainer:
    """Trains a model: evaluates, saves, steps and logs, in that order, until the last step.

    A state is numbered by the updates that made it: step 0 is the fresh model. What is evaluated or saved at step n is
    the state after n updates, so that a checkpoint's loss is that of its weights; what is logged of the training batch
    at step n is measured on that same state.
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
        self.progress = Progress()
        self.result = TrainResult()
        self._started, self._began_with = 0.0, Progress()

    def start(self, resume_from: Checkpoint | None = None, *, seconds: float = 0.0) -> None:
        """Stand where the run stood when the checkpoint was saved, or at step 0. UserError where that cannot be.

        seconds: what it took to get ready, which counts as training.
        """
        self.progress = Progress(seconds=seconds) if resume_from is None else self.checkpoints.restore(resume_from)
        self.train_step.start_at(self.progress.step)

    def fit(self, metrics: Metrics) -> TrainResult:
        """Train up to the last step, or until it is asked to stop, which it answers with a save.

        With `trainer.early_stopping_patience` the last step may come before `trainer.steps`. A run that is pruned ends
        where that is found, without final losses. UserError where a loss, a gradient or the weights are not finite.
        """
        self._begin()
        cfg, should_stop, ends = self.cfg, self.hooks.should_stop, (self.progress.step, self.cfg.steps)
        with progress_bar(self.progress.step, cfg.steps) as shown, logging_redirect_tqdm():
            while self.result.status == "running":
                step = self.progress.step
                record: dict[str, float] = {}
                if should_stop():
                    self.save()
                    self.result.status = "stopped"
                    break
                if step % cfg.eval_every == 0 or step % cfg.checkpoint_every == 0 or step in ends:
                    record = self._look(step)
                if self.result.status == "completed":
                    self.result.final = self.evaluator.final()
                    record |= {f"final/{name}": value for name, value in self.result.final.items()}
                elif self.result.status == "running":
                    result = self.update()
                    if step % cfg.log_every == 0:
                        assert result is not None, "a step that is recorded is taken alone"
                        record |= self.measure(result)
                        shown.set_postfix_str(f"loss {record['train/batch_loss']:.3f}{self.speed}", refresh=False)
                    while result is None:  # it waits for the steps that share its call, at which nothing looks
                        result = self.update()
                    shown.update(self.progress.step - shown.n)
                if record:
                    metrics.log(step, self.elapsed(), record)
        self.write_summary()
        self.progress.seconds = self.elapsed()
        return self.result

    def _begin(self) -> None:
        self.result = TrainResult(references=self.evaluator.references)
        self._began_with = Progress(self.progress.step, self.progress.seconds)
        self._started = self.speed.clock() - self.progress.seconds
        self.speed.start(self.progress.step)
        self.model.train()

    def _look(self, step: int) -> dict[str, float]:
        # Evaluates and saves where it is time to, and finds whether the run ends here.
        record: dict[str, float] = {}
        last = step == self.cfg.steps
        if last or step % self.cfg.eval_every == 0:
            record = self.evaluate()
            self.result.early_stopped = not last and self.out_of_patience()
            last = last or self.result.early_stopped
            if not last and self.hooks.should_prune is not None and self.hooks.should_prune(step, record):
                log.info("pruned: other trials were better at step %d", step)
                self.result.status = "pruned"
        if last:
            self.result.status = "completed"
        is_best = self.progress.best.get("step") == step
        if self.result.status != "running" or step % self.cfg.checkpoint_every == 0 or is_best:
            self.save()
        return record

    def elapsed(self) -> float:
        """Seconds of training since the start, evaluations and saves included; those before a resume too."""
        return self.speed.clock() - self._started

    def update(self) -> StepResult | None:
        """Take the next step, and return what came of it; None where it waits for others to share a call."""
        n = self.progress.step
        result = self.train_step(self.batches[n], self.schedule(n))
        self.progress.step = n + 1
        return result

    def evaluate(self) -> dict[str, float]:
        """Return the losses over a part of both splits; the lowest val loss so far is `best`."""
        began, progress = self.speed.synchronized(), self.progress
        record = self.evaluator.evaluate()
        val_loss = record["val/loss"]
        log.info(
            "step %*d/%d  train %.4f  val %.4f%s",
            *(len(str(self.cfg.steps)), progress.step, self.cfg.steps, record["train/loss"], val_loss),
            f"{self.speed}{self._left()}",
        )
        self._require_finite(progress.step, "val/loss", val_loss)
        if not progress.best or val_loss < progress.best["val/loss"]:
            progress.best = {"step": progress.step, "val/loss": val_loss}
            progress.waited = 0
        elif progress.step != progress.evaluated:  # a resumed run evaluates again where it goes on
            progress.waited += 1
        progress.evaluated = progress.step
        self.speed.leave_out(began)
        return record | self.evaluator.bits(val_loss) | self.evaluator.references

    def out_of_patience(self) -> bool:
        """Tell whether the val loss has not improved for as many evaluations as early stopping waits."""
        patience = self.cfg.early_stopping_patience
        if patience == 0 or self.progress.waited < patience:
            return False
        log.info(
            "early stopping: no lower val loss than step %d's in %d evaluations; checkpoint=best has that one",
            *(self.progress.best["step"], self.progress.waited),
        )
        return True

    def _left(self) -> str:
        # Where there is no bar, the evaluations' lines say how long it will take.
        done = self.progress.step - self._began_with.step
        if done == 0 or self.progress.step == self.cfg.steps:
            return ""
        left = (self.cfg.steps - self.progress.step) * (self.elapsed() - self._began_with.seconds) / done
        return f", {tqdm.format_interval(left)} left"

    def save(self) -> None:
        """Save a checkpoint of the state at this step. UserError, and nothing saved, where it is not finite."""
        began = self.speed.synchronized()
        if not self.checkpoints.has(self.progress):
            self.progress.seconds = self.elapsed()
            self._require_finite_state()
        self.checkpoints.save(self.progress)
        self.write_summary()
        self.speed.leave_out(began)

    def write_summary(self) -> None:
        """Say in the summary how far the run is."""
        seconds, steps = self.elapsed(), self.progress.step - self._began_with.step
        speed: dict[str, Any] = self.speed.over(steps, seconds - self._began_with.seconds) if steps else {}
        if self.speed.peak:
            speed["peak"] = vars(self.speed.peak)
        self.hooks.write_summary(step=self.progress.step, best=self.progress.best, seconds=round(seconds, 3), **speed)

    def measure(self, result: StepResult) -> dict[str, float]:
        """Return what is logged of a step that was just taken; waits for the device."""
        step, norm = self.progress.step - 1, result.grad_norm
        if norm is None:
            norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        record = {"train/batch_loss": result.loss.item(), "grad_norm": norm.item(), "lr": self.schedule(step)}
        self._require_finite(step, "train/batch_loss", record["train/batch_loss"])
        if not self.train_step.scaler.is_enabled():  # which skips an update whose gradient overflows
            self._require_finite(step, "grad_norm", record["grad_norm"])
        return record | self.speed.measure(self.progress.step)

    def _require_finite(self, step: int, name: str, value: float) -> None:
        if not math.isfinite(value):
            lr, saved = self.schedule(step), self.checkpoints.steps()
            clip = "" if self.train_step.grad_clip else ", or optim.grad_clip=1"
            run = relative(self.checkpoints.folder.parent)
            before = f"; resume={run} with it resumes from step {saved[-1]}" if saved else ""
            raise UserError(
                f"step {step}: {name} is {value}, with a learning rate of {lr:.3g}; try a lower one, such as "
                f"optim.lr={min(1e-3, self.schedule.optim.lr / 10):.1g}{clip}{before}"
            )

    def _require_finite_state(self) -> None:
        # Weights, and the optimizer's means, which can overflow while the weights are still finite.
        tensors: list[tuple[str, Tensor]] = list(self.model.state_dict().items())
        for values in self.train_step.optimizer.state.values():
            tensors += [(f"the optimizer's {name}", value) for name, value in values.items() if torch.is_tensor(value)]
        floating = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
        device = self.train_step.device.torch
        totals = torch.stack([tensor.sum(dtype=torch.float32).to(device) for _, tensor in floating]).tolist()
        for (name, tensor), total in zip(floating, totals, strict=True):
            # A sum can overflow where no summand has; only then is it worth to look at each of them.
            if not math.isfinite(total) and not tensor.isfinite().all():
                self._require_finite(self.progress.step, name, total)


def progress_bar(step: int, steps: int) -> tqdm[NoReturn]:
    """Make the bar on standard error, if that is a terminal: the time that is left, the loss, and the speed."""
    # Without tqdm's own rate, in steps: tokens a second are what compares, and both do not fit.
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return bar(steps, initial=step, bar_format=shown)
