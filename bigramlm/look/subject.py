"""The model that is looked at, with its tokenizer and its text."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.config.run_config import RunConfig
from bigramlm.data.batches import Examples, Split, Stream, on_device
from bigramlm.data.corpus import Corpus, tokenized
from bigramlm.data.pairs import row_length
from bigramlm.data.text import check_length
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import Device
from bigramlm.engine.load import load_model
from bigramlm.engine.sampling import place
from bigramlm.errors import UserError
from bigramlm.model.base import LanguageModel
from bigramlm.runs.summary import RunSummary
from bigramlm.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from torch import nn

    from bigramlm.model.python import ModelFactory


@dataclass(frozen=True)
class Subject:
    """A trained model in evaluation mode, on its device."""

    checkpoint: Checkpoint
    model: LanguageModel
    tokenizer: Tokenizer
    cfg: RunConfig
    device: Device

    @property
    def run_folder(self) -> Path | None:
        """The run folder of the checkpoint; None for a checkpoint alone."""
        folder = self.checkpoint.path.parent
        return folder.parent if folder.name == "checkpoints" else None

    @property
    def label(self) -> str:
        """The name of the run, or the name of the checkpoint's folder."""
        return self.checkpoint.path.name if self.run_folder is None else RunSummary.read(self.run_folder).label

    def earlier(self) -> list[int]:
        """Return the steps of the run's checkpoints up to this one, in ascending order."""
        if self.run_folder is None:
            return []
        steps = Checkpoints(self.run_folder / "checkpoints").steps()
        return [step for step in steps if step <= self.checkpoint.step]

    def logits(self, idx: Tensor) -> Tensor:
        """Return the logits (B, T, V) for token ids idx (B, T), in fp32."""
        with torch.inference_mode(), self.device.autocast():
            logits, _ = self.model(idx.to(self.device.torch))
        found: Tensor = logits.float()
        return found


def open_subject(
    checkpoint: Checkpoint,
    device: DeviceConfig,
    *,
    base: str | None = None,
    passed: nn.Module | ModelFactory | None = None,
) -> Subject:
    """Load the model of a checkpoint; an adapter's base may be at the location `base`."""
    model, tokenizer, cfg = load_model(checkpoint, base, passed)
    return Subject(checkpoint, model.eval(), tokenizer, cfg, place(model, device))


def earlier_subjects(subject: Subject, steps: Iterable[int]) -> Iterator[Subject]:
    """Yield the subject with the weights of the run's checkpoints at these steps.

    All of them share a copy of the model, which has the weights of the last one.
    """
    model = copy.deepcopy(subject.model)
    for step in steps:
        assert subject.run_folder is not None
        checkpoint = Checkpoint(subject.run_folder / "checkpoints" / f"step_{step}")
        checkpoint.load_weights(model)
        yield replace(subject, checkpoint=checkpoint, model=model)


def read_corpus(subject: Subject) -> Corpus:
    """Read and tokenize the text that the model was trained on.

    Nothing is downloaded. Raises UserError if the text is missing, or is not the text of the run.
    """
    cfg = subject.cfg.data
    if subject.run_folder is None:
        raise UserError("the checkpoint belongs to no run, which would say what its text is")
    text = cfg.read()
    sha256 = RunSummary.read(subject.run_folder).part("data").get("sha256")
    if text.sha256 != sha256:  # a config of someone else could name a private file of this machine
        raise UserError(f"{cfg.file()} is not the text that the run was trained on: its SHA-256 is a different one")
    return tokenized(text, subject.cfg.tokenizer, subject.tokenizer, cfg.kept_in())


def split_of(subject: Subject, corpus: Corpus, name: str) -> Split:
    """Return the train or val split of the text, as training and evaluation use it."""
    tokens, size = on_device(corpus.ids[name], subject.device.torch), subject.cfg.data.block_size
    if corpus.bounds:
        return Examples(tokens, corpus.bounds[name], block_size=row_length(corpus.bounds, size))
    check_length(len(tokens), split=name, block_size=size, text=str(subject.cfg.data.file()))
    return Stream(tokens, block_size=size)
