"""The loss of a model over a split."""

import logging
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bigramlm.data.batches import IGNORED, Split, Stream, to_device
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel

log = logging.getLogger(__name__)

# Final losses cover a whole split up to this many tokens, and that many spread evenly over a longer one.
WHOLE_SPLIT_UP_TO = 10_000_000

# Logits computed at once in an evaluation: on a CPU 1 MiB of them in fp32, so that activations stay in its cache.
LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 20, "mps": 1 << 20}


class Evaluator:
    """The losses of a model over the splits train and val: over a fixed part of each on the way, and at the end."""

    def __init__(
        self,
        model: LanguageModel,
        splits: Mapping[str, Split],
        device: Device,
        *,
        rows: int | None = None,
        val_characters: int,
        lossless: bool = True,
    ) -> None:
        """Prepare the blocks that evaluations cover.

        rows: of each split at an evaluation on the way, None for all; val_characters: what val's tokens are of;
        lossless: whether the tokenizer gives back all of the text, and so bits a character tell what they should.
        """
        self.model = model
        self.splits = splits
        self.device = device
        self.val_characters = val_characters
        self.lossless = lossless
        self.blocks = {name: list(split.blocks(limit=rows)) for name, split in splits.items()}
        self.references: dict[str, float] = {}
        """The losses that counting gives, by the metrics' names."""
        train, val = splits["train"], splits["val"]
        if isinstance(train, Stream) and isinstance(val, Stream):  # counting is of running text
            self.references = model.reference_losses(train.tokens, val.tokens)

    def evaluate(self) -> dict[str, float]:
        """Return the losses over the fixed part of both splits; waits for the device."""
        return {f"{split}/loss": mean_loss(self.model, blocks, self.device) for split, blocks in self.blocks.items()}

    def bits(self, val_loss: float) -> dict[str, float]:
        """Return a loss over val in bits a character, by the metric's name; nothing where they would mislead."""
        return {"val/bpc": self._bits(val_loss)} if self.lossless else {}

    def final(self) -> dict[str, float]:
        """Return the losses that count: over the whole val split, and over as much spread evenly over train.

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
        return {**final, "val/bpc": self._bits(final["val/loss"])}

    def _bits(self, val_loss: float) -> float:
        return bits_per_character(val_loss, tokens=self.splits["val"].n_tokens, characters=self.val_characters)


@torch.inference_mode()
def mean_loss(model: LanguageModel, covered: Iterable[tuple[Tensor, Tensor]], device: Device) -> float:
    """Compute the mean cross-entropy in nats over all targets that count, of these (inputs, targets), each (M, T).

    Waits for the device. The ids may be of any type, and not yet on the device. Dropout is off while it runs.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), device=device.torch)
    count = torch.zeros((), dtype=torch.int64, device=device.torch)
    for inputs, targets in covered:
        rows = max(1, LOGITS_AT_ONCE[device.torch.type] // (model.vocab_size * inputs.shape[1]))
        for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
            x, y = to_device(x, device.torch).long(), to_device(y, device.torch).long()
            with device.autocast():
                _, loss = model(x, y)
            assert loss is not None
            n = (y != IGNORED).sum()
            total += loss.float() * n
            count += n
    model.train(was_training)
    return total.item() / count.item()


def bits_per_character(loss: float, *, tokens: int, characters: int) -> float:
    """Convert a loss in nats per token to bits per character, the same measure for every tokenizer."""
    return loss / math.log(2) * tokens / characters
