"""Train a network of your own: a module that returns logits (B, T, V)."""

import torch
from torch import nn

import bigramlm


class RecurrentModel(nn.Module):
    """A recurrent network: an embedding, a GRU and a linear head."""

    def __init__(self, vocab_size: int, block_size: int) -> None:  # noqa: ARG002 - a GRU has no maximum length
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 32)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, T, V) for token ids idx (B, T)."""
        x = self.embedding(idx)  # (B, T, 32)
        x, _ = self.gru(x)  # (B, T, 32)
        logits: torch.Tensor = self.head(x)  # (B, T, V)
        return logits


def main() -> None:
    """Train the network, resume it for more steps, and sweep its learning rate."""
    options = ("data=bundled", "data.block_size=16", "optim.lr=3e-3", "trainer.eval_every=50")
    run = bigramlm.train(*options, "trainer.steps=100", model=RecurrentModel)
    print(run)

    # The same call with resume= continues the run, to the same bits as if it had never stopped.
    run = bigramlm.train(f"resume={run.folder}", "trainer.steps=200", model=RecurrentModel)
    print(run)
    print(run.sample("The ", max_new_tokens=100))

    sweep = bigramlm.sweep(*options, "trainer.steps=50", "optim.lr=1e-3,1e-2", model=RecurrentModel)
    print(sweep.table())


if __name__ == "__main__":
    main()
