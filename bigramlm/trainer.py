"""The Trainer: the loop that makes a model from a config, a text and a device."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bigramlm.adapter.lora import LoRA
from bigramlm.checkpoint import STATE, Base, Checkpoint, Checkpoints
from bigramlm.cli import relative
from bigramlm.config import RunConfig, to_yaml
from bigramlm.data.batches import Batches, Split, Stream
from bigramlm.device.device import Device, is_small
from bigramlm.device.peak import peak
from bigramlm.errors import UserError
from bigramlm.evaluate import bits_per_character, mean_loss
from bigramlm.metrics import Metrics
from bigramlm.model.base import LanguageModel
from bigramlm.optim.base import learning_rate
from bigramlm.progress import bar
from bigramlm.run import RunFolder
from bigramlm.step import CompiledStep, Outcome, TrainStep

log = logging.getLogger(__name__)

# Final losses cover a whole split up to this many tokens, and that many spread evenly over a longer one.
WHOLE_SPLIT_UP_TO = 10_000_000

# The most compiled updates of a small model that one call takes: more gain little and take longer to compile.
TOGETHER_AT_MOST = 12


class Trainer:
    """Trains a model: evaluates, saves, steps and logs, in that order, until the last step.

    A state is numbered by the updates that made it: step 0 is the fresh model. What is evaluated or saved at step n is
    the state after n updates, so that a checkpoint's loss is that of its weights; what is logged of the training batch
    at step n is measured on that same state.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        model: LanguageModel,
        train: Split,
        val: Split,
        val_characters: int,
        tokenizer: str,
        lossless: bool = True,
        device: Device,
        folder: RunFolder,
        adapter: LoRA | None = None,
        base: Base | None = None,
        is_hopeless: Callable[[int, Mapping[str, float]], bool] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """model is on the device; tokenizer: as JSON, saved with checkpoints; lossless: whether it gives back all of
        the text, and so bits a character tell what they should.

        adapter: what is trained in the model, where that is not all of it, and saved with where its base is;
        is_hopeless: asked at every evaluation but the last, with the step and what was found, whether to end the run.
        clock: in seconds, of which differences count.
        """
        self.config_yaml = to_yaml(cfg)
        self.cfg = cfg.trainer
        self.optim = cfg.optim
        self.model = model
        if self.cfg.activation_checkpointing:
            model.checkpoint_activations()
        self.device = device
        self.tokenizer = tokenizer
        self.val_characters = val_characters
        self.lossless = lossless
        self.folder = folder
        self.adapter = adapter
        self.base = base
        self.checkpoints = Checkpoints(folder.path / "checkpoints", keep=self.cfg.keep_checkpoints)
        self.optimizer = cfg.optim.build(model, compiled=device.compile)
        self.scaler = torch.amp.GradScaler(device.torch.type, enabled=device.precision == "fp16")
        self.train_step = (CompiledStep if device.compile else TrainStep)(
            model,
            self.optimizer,
            device,
            self.scaler,
            grad_accumulation=self.cfg.grad_accumulation,
            grad_clip=cfg.optim.grad_clip,
            masked=train.masked,
        )
        if isinstance(self.train_step, CompiledStep):
            small = is_small(
                n_params=sum(p.numel() for p in model.parameters()), tokens=cfg.data.batch_size * train.block_size
            )
            self.train_step.compile(together=self._together() if small else 1)

        # One draw makes the whole update's batch, so that it is the same however it is cut for accumulation.
        rows = cfg.data.batch_size * self.cfg.grad_accumulation
        self.batches = Batches(train, batch_size=rows, seed=cfg.seed, device=device.torch)
        self.tokens_per_step = rows * train.block_size  # what is computed: of examples the padding too
        self.flops_per_token = model.flops_per_token(train.block_size)
        self.peak = peak(device) if self.flops_per_token else None
        if self.peak:
            log.info("peak, for MFU: %s GFLOP/s (%s)", f"{self.peak.flops / 1e9:,.0f}", self.peak.how)
        limit = None if self.cfg.eval_batches == "all" else int(self.cfg.eval_batches) * cfg.data.batch_size
        self.splits = {"train": train, "val": val}
        self.eval_blocks = {name: list(split.blocks(limit=limit)) for name, split in self.splits.items()}
        self.references: dict[str, float] = {}
        if isinstance(train, Stream) and isinstance(val, Stream):  # counting is of running text
            self.references = model.reference_losses(train.tokens, val.tokens)

        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, float] = {}
        self.final: dict[str, float] = {}
        self.stop_signal: int | None = None
        self.early_stopped = False
        self.is_hopeless = is_hopeless
        self.clock = clock
        self.pruned = False
        self.waited = 0  # evaluations since the best one
        self.evaluated = -1  # the step of the last one
        self._resumed: Checkpoint | None = None
        self._started = 0.0
        self._first_step = 0
        self._marked = (0.0, 0)  # when the speed was last measured, and at which step
        self._speed: dict[str, float] = {}  # what it was then

    def resume(self, checkpoint: Checkpoint) -> None:
        """Stand where the run stood when the checkpoint was saved. UserError where that cannot be."""
        checkpoint.restore(self.model, self.optimizer, self.adapter)
        with checkpoint.reading(STATE):
            if self.scaler.is_enabled() and checkpoint.state["scaler"]:
                self.scaler.load_state_dict(checkpoint.state["scaler"])
        self._resumed = checkpoint
        self.waited, self.evaluated = checkpoint.waited, checkpoint.evaluated
        self.step = checkpoint.step
        self.seconds = checkpoint.seconds
        self.best = self.checkpoints.best_at(checkpoint)

    def fit(self, metrics: Metrics) -> None:
        """Train up to the last step, or to the end of the step during which `stop_signal` was set.

        With `trainer.early_stopping_patience` the last step may come before `trainer.steps`. A run that is hopeless
        ends where that is found, without final losses, as `pruned`.
        """
        self._started = self.clock() - self.seconds
        self._first_step = self.step
        self._marked = (self.clock(), self.step)
        self.model.train()
        with progress_bar(self.step, self.cfg.steps) as shown, logging_redirect_tqdm():
            while True:
                step = self.step
                record: dict[str, float] = {}
                last = step == self.cfg.steps
                if self.stop_signal is not None:
                    self.save()
                    break
                if last or step % self.cfg.eval_every == 0:
                    record |= self.evaluate()
                    self.early_stopped = not last and self.out_of_patience()
                    last = last or self.early_stopped
                    self.pruned = not last and self.prune(record)
                if last or self.pruned or step % self.cfg.checkpoint_every == 0 or self.best.get("step") == step:
                    self.save()
                if last:
                    self.final = self.final_losses()
                    record |= {f"final/{name}": value for name, value in self.final.items()}
                elif not self.pruned:
                    loss, norm = self.update()
                    if step % self.cfg.log_every == 0:
                        record |= self.measure(loss, norm)
                        shown.set_postfix_str(f"loss {record['train/batch_loss']:.3f}{self._pace()}", refresh=False)
                    shown.update(self.step - shown.n)
                if record:
                    metrics.log(step, self.elapsed(), record)
                if last or self.pruned:
                    break
        self.tell()
        self.seconds = self.elapsed()

    def elapsed(self) -> float:
        """Seconds of training since the start, evaluations and saves included; those before a resume too."""
        return self.clock() - self._started

    def update(self) -> Outcome:
        """Take the next step, or several in one call where that is faster and nothing looks in between.

        Which steps share a call follows from their numbers and from when something looks, so that a resumed run takes
        the same calls as one that was not interrupted.
        """
        first, together = self.step, self.train_step.together
        if together > 1 and not self._undisturbed(first, together):
            together = 1
        steps = range(first, first + together)
        outcome = self.train_step([self.batches[n] for n in steps], [self.rate(n) for n in steps])
        self.step += together
        return outcome

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self.optim, step, self.cfg.steps)

    def _undisturbed(self, first: int, together: int) -> bool:
        looks = (self.cfg.eval_every, self.cfg.checkpoint_every, self.cfg.log_every, self.cfg.steps)
        since_a_record = first % self.cfg.log_every
        return (
            since_a_record > 0
            and (since_a_record - 1) % together == 0
            and all(first // every == (first + together - 1) // every for every in looks)
        )

    def _together(self) -> int:
        # A step that is recorded is taken alone; the others up to the next should be shared out without a rest.
        return max(n for n in range(1, TOGETHER_AT_MOST + 1) if (self.cfg.log_every - 1) % n == 0)

    def evaluate(self) -> dict[str, float]:
        """The losses over the fixed batches of both splits; the lowest val loss so far is `best`."""
        began = self._synchronized()
        record = {
            f"{split}/loss": mean_loss(self.model, covered, self.device) for split, covered in self.eval_blocks.items()
        }
        log.info(
            "step %*d/%d  train %.4f  val %.4f%s",
            *(len(str(self.cfg.steps)), self.step, self.cfg.steps, record["train/loss"], record["val/loss"]),
            self._pace() + self._left(),
        )
        self._require_finite(self.step, "val/loss", record["val/loss"])
        if not self.best or record["val/loss"] < self.best["val/loss"]:
            self.best = {"step": self.step, "val/loss": record["val/loss"]}
            self.waited = 0
        elif self.step != self.evaluated:  # a resumed run evaluates again where it goes on
            self.waited += 1
        self.evaluated = self.step
        self._leave_out(began)
        if self.lossless:
            record["val/bpc"] = self.bits(record["val/loss"])
        return record | self.references

    def bits(self, val_loss: float) -> float:
        """A loss over val in nats a token as bits a character."""
        return bits_per_character(val_loss, tokens=self.splits["val"].n_tokens, characters=self.val_characters)

    def out_of_patience(self) -> bool:
        """Whether the val loss has not been lower than its best for as many evaluations as early stopping waits."""
        patience = self.cfg.early_stopping_patience
        if patience == 0 or self.waited < patience:
            return False
        log.info(
            "early stopping: no lower val loss than step %d's in %d evaluations; checkpoint=best has that one",
            *(self.best["step"], self.waited),
        )
        return True

    def prune(self, record: Mapping[str, float]) -> bool:
        """Whether the search that the run is part of gives it up."""
        if self.is_hopeless is None or not self.is_hopeless(self.step, record):
            return False
        log.info("pruned: other trials were better at step %d", self.step)
        return True

    def _pace(self) -> str:
        pace = ""
        if self._speed:
            pace += f", {tqdm.format_sizeof(self._speed['tokens_per_second'])} tokens/s"
        if "mfu" in self._speed:
            pace += f", MFU {self._speed['mfu']:.0%}"
        return pace

    def _left(self) -> str:
        # Where there is no bar, the evaluations' lines say how long it will take.
        done = self.step - self._first_step
        if done == 0 or self.step == self.cfg.steps:
            return ""
        left = (self.cfg.steps - self.step) * (self.elapsed() - self.seconds) / done
        return f", {tqdm.format_interval(left)} left"

    def save(self) -> None:
        """Save a checkpoint of the state at this step. UserError, and nothing saved, where it is not finite."""
        began = self._synchronized()
        best = int(self.best["step"]) if self.best else None
        if self._resumed and (self._resumed.step, self._resumed.best) == (self.step, self.best):
            self.checkpoints.point(self.step, best=best)  # it is there: the run was resumed from it
        else:
            self._require_finite_state()
            self.checkpoints.save(
                self.step,
                model=self.model,
                optimizer=self.optimizer,
                tokenizer=self.tokenizer,
                config=self.config_yaml,
                state={
                    "seconds": self.elapsed(),
                    "best": self.best,
                    "scaler": self.scaler.state_dict(),
                    "waited": self.waited,
                    "evaluated": self.evaluated,
                },
                best=best,
                adapter=self.adapter,
                base=self.base,
            )
        self.tell()
        self._leave_out(began)

    def tell(self) -> None:
        """Say in the summary how far the run is."""
        seconds, steps = self.elapsed(), self.step - self._first_step
        speed: dict[str, Any] = self.speed(steps, seconds - self.seconds) if steps else {}
        if self.peak:
            speed["peak"] = vars(self.peak)
        self.folder.update_summary(step=self.step, best=self.best, seconds=round(seconds, 3), **speed)

    def speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Tokens a second, and the share of the device's peak that this is in matrix products (MFU), where it has any.

        Model FLOPs utilisation: Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", section 4.1.
        """
        rate = steps * self.tokens_per_step / seconds
        speed = {"tokens_per_second": round(rate, 1)}
        if self.peak:
            speed["mfu"] = round(rate * self.flops_per_token / self.peak.flops, 4)
        return speed

    def _require_finite(self, step: int, name: str, value: float) -> None:
        if not math.isfinite(value):
            rate, saved = self.rate(step), self.checkpoints.steps()
            clip = "" if self.optim.grad_clip else ", or optim.grad_clip=1"
            before = f"; resume={relative(self.folder.path)} with it goes on from step {saved[-1]}" if saved else ""
            raise UserError(
                f"step {step}: {name} is {value}, with a learning rate of {rate:.3g}; try a lower one, such as "
                f"optim.lr={min(1e-3, self.optim.lr / 10):.1g}{clip}{before}"
            )

    def _require_finite_state(self) -> None:
        # Weights, and the optimizer's means, which can overflow while the weights are still finite.
        tensors: list[tuple[str, Tensor]] = list(self.model.state_dict().items())
        for values in self.optimizer.state.values():
            tensors += [(f"the optimizer's {name}", value) for name, value in values.items() if torch.is_tensor(value)]
        floating = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
        totals = torch.stack([tensor.sum(dtype=torch.float32).to(self.device.torch) for _, tensor in floating]).tolist()
        for (name, tensor), total in zip(floating, totals, strict=True):
            # A sum can overflow where no summand has; only then is it worth to look at each of them.
            if not math.isfinite(total) and not tensor.isfinite().all():
                self._require_finite(self.step, name, total)

    def measure(self, loss: Tensor, norm: Tensor | None) -> dict[str, float]:
        """What is logged of a step that was just taken; waits for the device."""
        if norm is None:
            norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        record = {
            "train/batch_loss": loss.item(),
            "grad_norm": norm.item(),
            "lr": self.rate(self.step - 1),
        }
        self._require_finite(self.step - 1, "train/batch_loss", record["train/batch_loss"])
        if not self.scaler.is_enabled():  # which skips an update whose gradient overflows, and lowers its scale
            self._require_finite(self.step - 1, "grad_norm", record["grad_norm"])
        now = self.clock()
        since, at = self._marked
        self._speed = self.speed(self.step - at, now - since)
        self._marked = (now, self.step)
        return record | self._speed

    def final_losses(self) -> dict[str, float]:
        """The losses that count: over the whole val split, and over as much spread evenly over train.

        Also val's in bits a character, which compares models with different tokenizers.
        """
        val = self.splits["val"]
        val_limit = WHOLE_SPLIT_UP_TO // val.block_size if val.n_tokens > WHOLE_SPLIT_UP_TO else None
        train_limit = val_limit or val.n_rows
        covered = f"{WHOLE_SPLIT_UP_TO:,} tokens of val, spread evenly" if val_limit else "the whole of val"
        log.info("final losses: over %s, and as many %s of train", covered, "examples" if val.masked else "tokens")
        final = {
            f"{name}/loss": mean_loss(self.model, split.blocks(limit=limit), self.device)
            for (name, split), limit in zip(self.splits.items(), (train_limit, val_limit), strict=True)
        }
        final["val/bpc"] = self.bits(final["val/loss"])
        return final

    def _synchronized(self) -> float:
        # The clock once the device has done all it was given.
        self.device.synchronize()
        return self.clock()

    def _leave_out(self, began: float) -> None:
        # Evaluating and saving don't count in the speed: move its mark on by as much time as they took.
        since, at = self._marked
        self._marked = (since + self.clock() - began, at)


def progress_bar(step: int, steps: int) -> "tqdm[NoReturn]":
    """The bar on standard error, where that is a terminal: the time that is left, the loss, and the speed."""
    # Without tqdm's own rate, in steps: tokens a second are what compares, and both do not fit.
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return bar(steps, initial=step, bar_format=shown)
