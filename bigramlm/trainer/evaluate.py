"""Measurement of a model's losses on the train and val splits."""

import logging
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bigramlm.data.batches import IGNORED, Split, Stream, to_device
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel

log = logging.getLogger(__name__)

# Final losses cover the whole val split, or, if it is longer than this, this many evenly spread tokens of the split.
MAX_FINAL_TOKENS = 10_000_000

# The number of logits that a forward pass of an evaluation computes, by device. On a CPU they take 1 MiB in fp32, so
# that the activations stay in the cache.
LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 20, "mps": 1 << 20}


class Evaluator:
    """An evaluator of the model on both splits, during and after training."""

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
        """Select the blocks that every evaluation during training uses.

        rows: the number of blocks per split; None means all blocks. val_characters: the number of characters in the val
        split. lossless: if True, decoding the tokens returns the original text. Otherwise bits per character are
        misleading, and evaluations during training do not report them.
        """
        self.model = model
        self.splits = splits
        self.device = device
        self.val_characters = val_characters
        self.lossless = lossless
        self.blocks = {name: list(split.blocks(limit=rows)) for name, split in splits.items()}
        self.references: dict[str, float] = {}
        """The losses of n-gram models that are fitted by counting, by metric name. They are reference values."""
        train, val = splits["train"], splits["val"]
        if isinstance(train, Stream) and isinstance(val, Stream):  # counting requires running text
            self.references = model.reference_losses(train.tokens, val.tokens)

    def evaluate(self) -> dict[str, float]:
        """Return the losses over the selected blocks of both splits, by metric name.

        Waits until the device has finished.
        """
        return {f"{split}/loss": mean_loss(self.model, blocks, self.device) for split, blocks in self.blocks.items()}

    def bits(self, val_loss: float) -> dict[str, float]:
        """Convert a val loss to bits per character, by metric name.

        Returns an empty dict if the tokenizer is not lossless, because bits per character would be misleading.
        """
        return {"val/bpc": self._bits(val_loss)} if self.lossless else {}

    def final(self) -> dict[str, float]:
        """Return the final losses of both splits, by metric name.

        The val loss covers the whole val split, or MAX_FINAL_TOKENS evenly spread tokens if the split is longer. The
        train loss covers the same number of rows, evenly spread over the train split. The val loss is also given in
        bits per character, a unit that is comparable between different tokenizers. If there is a reference loss on the
        whole train split, `train/whole_loss` is the model's loss on the same tokens.
        """
        val = self.splits["val"]
        val_limit = MAX_FINAL_TOKENS // val.block_size if val.n_tokens > MAX_FINAL_TOKENS else None
        train_limit = val_limit or val.n_rows
        covered = f"{MAX_FINAL_TOKENS:,} evenly spread val tokens" if val_limit else "the whole val split"
        log.info(
            "final losses: on %s and as many train %s",
            covered,
            "examples" if val.masked else "tokens",
        )
        final = {
            f"{name}/loss": mean_loss(self.model, split.blocks(limit=limit), self.device)
            for (name, split), limit in zip(self.splits.items(), (train_limit, val_limit), strict=True)
        }
        final["val/bpc"] = self._bits(final["val/loss"])
        if any(name.startswith("train/") for name in self.references):
            whole = self.model.loss_by_counts(self.splits["train"].tokens)
            final |= {} if whole is None else {"train/whole_loss": whole}
        return final

    def _bits(self, val_loss: float) -> float:
        return bits_per_character(val_loss, tokens=self.splits["val"].n_tokens, characters=self.val_characters)


@torch.inference_mode()
def mean_loss(model: LanguageModel, blocks: Iterable[tuple[Tensor, Tensor]], device: Device) -> float:
    """Compute the mean cross-entropy in nats over all targets that are not ignored.

    blocks: pairs of inputs and targets, each of shape (rows, T). Their token ids may have any integer type and be on
    any device. The model is evaluated in eval mode, so dropout is off, and its mode is restored afterwards. Waits until
    the device has finished.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), device=device.torch)
    count = torch.zeros((), dtype=torch.int64, device=device.torch)
    for inputs, targets in blocks:
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
    """Convert a loss from nats per token to bits per character.

    Bits per character are comparable between different tokenizers. tokens, characters: the lengths of the same text.
    """
    return loss / math.log(2) * tokens / characters
