"""Runs and sweeps as objects: what they found, and the models that they trained."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

from bigramlm.api.arguments import path_in, require_model, require_type
from bigramlm.api.records import Page, Records, Table
from bigramlm.api.state import torch_state
from bigramlm.config.run_config import RunConfig, SampleConfig
from bigramlm.config.run_config import load as load_config
from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require
from bigramlm.runs.find import PLAN, find_sweep, saved_config
from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps import plan
from bigramlm.sweeps.results import Results
from bigramlm.utils import paths
from bigramlm.utils.console import relative

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.device.device import Device
    from bigramlm.look.subject import Subject
    from bigramlm.model.base import LanguageModel
    from bigramlm.model.python import ModelFactory
    from bigramlm.tokenizer.base import Tokenizer


@dataclass
class _SampleArguments(SampleConfig):
    seed: int = 1337

    prefix: ClassVar[str] = ""  # messages name the arguments of `Run.sample`

    def __post_init__(self) -> None:
        require_type("prompt", self.prompt, str, "a str")
        for name in ("max_new_tokens", "top_k", "seed"):
            require_type(name, getattr(self, name), Integral, "a whole number")
        for name in ("temperature", "top_p"):
            require_type(name, getattr(self, name), Real, "a number")
        require_type("stop_at_end", self.stop_at_end, int, "True or False")  # a bool is an int
        super().__post_init__()
        require(0 <= self.seed < 2**62, f"seed={self.seed}: must be 0 or more and below 2**62")


class Run:
    """A run: its config, its results and its trained model.

    All facts are read from the run folder when they are asked for. The model is loaded at its first use.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        checkpoint: str | int = "last",
        model: nn.Module | ModelFactory | None = None,
    ) -> None:
        """Create a handle for the run in a folder, as `bigramlm.train` and `load` do.

        checkpoint: the checkpoint that `model` and `tokenizer` are loaded from: `last`, `best` or a step. model: the
        model that was passed to `bigramlm.train`, if there was one. Raises UserError if the folder contains no run.
        """
        self.folder = paths.typed(path_in("folder", folder), "folder")
        is_job = (self.folder.parent / PLAN).exists()  # a job of a sweep that has not begun has no folder
        require(
            is_job or any((self.folder / name).exists() for name in ("config.yaml", "summary.json")),
            f"folder={relative(self.folder)}: contains no run, neither config.yaml nor summary.json; bigramlm.load() "
            "finds a run by its name or as latest, and bigramlm.Sweep() opens a sweep",
        )
        require_model(model)
        self._which = str(checkpoint)
        self._passed = model

    def __repr__(self) -> str:
        found = self._read()
        parts = [f"status={found.status!r}"]
        if found.final_loss is not None:
            parts.append(f"val_loss={found.final_loss:.4f}")
        return f"<bigramlm.Run {relative(self.folder)} {' '.join(parts)}>"

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json; empty if there is no such file."""
        return self._read().summary

    @property
    def name(self) -> str:
        """The name of the run: that of `name=`, or else what was typed, shortened."""
        return self._read().label

    @property
    def note(self) -> str:
        """The note on the run, from `note=`; empty if there is none."""
        return self._read().note

    @property
    def status(self) -> str:
        """The status of the run.

        It is completed, stopped, pruned, failed, killed, running, or pending if the run has not begun.
        """
        return self._read().status

    @property
    def final(self) -> dict[str, float]:
        """The final losses by metric name, e.g. `val/loss`; empty before completion."""
        return dict(self._read().part("final"))

    @property
    def best(self) -> dict[str, float]:
        """The lowest val loss during training, as `step` and `val/loss`.

        It is empty before the first evaluation.
        """
        return dict(self._read().part("best"))

    @property
    def config(self) -> RunConfig:
        """The resolved config of the run. Raises UserError if the run has saved none."""
        return load_config(saved_config(self.folder))

    def metrics(self) -> Records:
        """Return the records of metrics.jsonl, one dictionary per record."""
        return Records(self._read().records)

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The trained model, on the device that was chosen for it, in evaluation mode."""
        from bigramlm.engine.load import load_model

        with torch_state():
            model, _, _ = load_model(self._checkpoint, None, self._passed)
            self._place(model)
        return model.eval()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._checkpoint.tokenizer(self.config.tokenizer)

    def sample(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = SampleConfig.max_new_tokens,
        temperature: float = SampleConfig.temperature,
        top_k: int = SampleConfig.top_k,
        top_p: float = SampleConfig.top_p,
        stop_at_end: bool = SampleConfig.stop_at_end,
        seed: int = 1337,
    ) -> str:
        """Return the prompt and its continuation, as `scripts/sample.py` prints them.

        The arguments are the fields of that command. Raises UserError if the tokenizer cannot encode the prompt.
        """
        from bigramlm.engine import sampling
        from bigramlm.generate import truncate_at

        cfg = _SampleArguments(max_new_tokens, prompt, temperature, top_k, top_p, stop_at_end, seed)
        ids, end = self._encode(prompt), sampling.end_token(cfg, self.tokenizer)
        model = self.model
        with torch_state():
            device = self._place(model)
            new = [int(token) for token in sampling.stream_tokens(cfg, model, [ids], device, int(seed), end)]
        return str(self.tokenizer.decode(ids + truncate_at(new, end)))

    def logits(self, text: str) -> Tensor:
        """Return the logits (T, V) of the T tokens of a text, on the CPU in fp32.

        Row t scores the token that follows token t. Raises UserError if the text is empty, is longer than the block
        size, or contains characters that the tokenizer cannot encode.
        """
        import torch

        require_type("text", text, str, "a str")
        ids, model = self._encode(text) if text else [], self.model
        require(
            0 < len(ids) <= model.block_size,
            f"logits(): the text has {len(ids)} tokens; it must have 1 to {model.block_size}, the model's block size",
        )
        with torch_state(), torch.inference_mode():
            device = self._place(model)
            with device.autocast():
                logits, _ = model(torch.tensor([ids], device=device.torch))
        found: Tensor = logits[0].float().cpu().clone()
        return found

    def surprise(self, text: str) -> Records:
        """Return the surprise of the model at each token of a text, one record per token.

        A record contains the text of the token, the surprise -log p in nats, and the rank, which is 1 if no token was
        likelier. The first token has no prediction, so both are None. A text of more tokens than the block size is cut
        into blocks, as in an evaluation. Raises UserError if the text is empty or the tokenizer cannot encode it.
        """
        from bigramlm.look.surprise import predict

        require_type("text", text, str, "a str")
        require(text != "", "surprise(): the text is empty; give a text")
        ids, subject = self._encode(text), self._subject()
        with torch_state():
            found = predict(subject, ids)
        surprise, rank = [None, *found.surprise[1:].tolist()], [None, *found.rank[1:].tolist()]
        return Records(
            {"token": self.tokenizer.decode([token]), "surprise": nats, "rank": place}
            for token, nats, place in zip(ids, surprise, rank, strict=True)
        )

    def look(
        self,
        prompt: str = "",
        *,
        text: str | os.PathLike[str] | None = None,
        output: str | os.PathLike[str] | None = None,
        compare: Run | None = None,
    ) -> Page:
        """Write the page that shows what the model has learned, as `scripts/look.py` does.

        A notebook shows the returned page. The arguments are the fields of that command; compare is another run.
        Raises UserError if the tokenizer cannot encode the passage, or the file cannot be written.
        """
        from bigramlm.look.inside import look

        require_type("prompt", prompt, str, "a str")
        require(compare is None or isinstance(compare, Run), f"compare={compare!r}: must be a bigramlm.Run")
        path = None if output is None else paths.typed(path_in("output", output), "output")
        file = None if text is None else path_in("text", text)
        require(not (prompt and file), "look(): prompt= and text= cannot be combined; omit one of them")
        subject, other = self._subject(), None if compare is None else compare._subject()
        with torch_state():
            written, _ = look(subject, prompt=prompt, file=file, output=path, other=other)
        return Page(written)

    def _subject(self) -> Subject:
        from bigramlm.look.subject import Subject

        model = self.model
        with torch_state():
            return Subject(self._checkpoint, model, self.tokenizer, self.config, self._place(model))

    @functools.cached_property
    def _checkpoint(self) -> Checkpoint:
        from bigramlm.engine.load import open_checkpoint

        return open_checkpoint(str(self.folder), self._which)

    def _place(self, model: LanguageModel) -> Device:
        # Sets PyTorch's threads too, which the caller restores.
        from bigramlm.engine.sampling import place

        is_cpu = self.config.device.name == "cpu"
        return place(model, DeviceConfig(name="cpu") if is_cpu else DeviceConfig())

    def _encode(self, text: str) -> list[int]:
        from bigramlm.tokenizer.base import start_tokens

        tokenizer = self.tokenizer  # outside of the block: a failure to load it is not about the text
        try:
            return start_tokens(tokenizer, text)
        except UserError as error:
            raise UserError(f"text {text!r}: {error}") from None

    def _read(self) -> RunSummary:
        return RunSummary.read(self.folder)


class Sweep:
    """A sweep: its runs, and the table of their results."""

    def __init__(self, folder: str | os.PathLike[str] = "latest", *, model: ModelFactory | None = None) -> None:
        """Refer to the sweep in a folder; `latest` is the sweep that was used last.

        model: the factory that was passed to `bigramlm.sweep`, if there was one. Raises UserError if there is no such
        sweep.
        """
        self.folder = find_sweep(path_in("folder", folder))
        require_model(model)
        self._passed = model

    def __repr__(self) -> str:
        return f"<bigramlm.Sweep {relative(self.folder)} {Results(plan.Sweep(self.folder)).count()}>"

    @property
    def runs(self) -> Sequence[Run]:
        """The runs of all jobs, in the order of the job numbers."""
        sweep = plan.Sweep(self.folder)
        return [Run(sweep.path(sweep.jobs[number]), model=self._passed) for number in sorted(sweep.jobs)]

    @property
    def best(self) -> Run:
        """The completed run with the lowest final val loss.

        Raises UserError if no run has completed, or if their losses cannot be compared.
        """
        best = Results(plan.Sweep(self.folder)).best
        if best is None:
            raise UserError(f"{relative(self.folder)}: no run has completed with a loss that can be compared")
        return Run(best.folder, model=self._passed)

    def table(self) -> Table:
        """Return the results as one dictionary per run, best run first.

        The table is shown as the shell prints it.
        """
        results = Results(plan.Sweep(self.folder))
        return Table(results.to_records(), results.text())
