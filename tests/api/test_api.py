"""Test of the types of the Python API, as a strict type checker sees them."""

import subprocess
import sys
from pathlib import Path

import pytest

# Uses every public name and every attribute.
SCRIPT = """
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bigramlm
from bigramlm import Run, Sweep, UserError


class Network(nn.Module):
    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.table(idx)
        return logits


def use(run: Run) -> float:
    status: str = run.status
    final: dict[str, float] = run.final
    best: dict[str, float] = run.best
    summary: dict[str, Any] = run.summary
    lr: float = run.config.optim.lr
    steps: list[int] = [record["step"] for record in run.metrics()]
    run.metrics().to_pandas()
    text: str = run.sample("The", max_new_tokens=5, temperature=0.5, top_k=3, top_p=0.9, seed=1)
    logits: torch.Tensor = run.logits(text)
    surprises: list[dict[str, Any]] = run.surprise(text)
    page: Path = run.look("The", output="page.html", compare=run).path
    module: nn.Module = run.model
    ids: list[int] = run.tokenizer.encode(text).tolist()
    folder: Path = run.folder
    print(status, best, summary, lr, steps, logits, module, ids, folder, surprises, page)
    return final["val/loss"]


def main() -> None:
    run: Run = bigramlm.train("data=bundled", "trainer.steps=5", model=Network)
    use(run)
    use(bigramlm.train(text="abc" * 100, model=Network(3, 8)))
    use(bigramlm.train(data=Path("my.txt")))
    use(bigramlm.load(run.folder, checkpoint=5, model=Network))
    use(bigramlm.load("latest", checkpoint="best", extensions=["my_models.py"]))
    sweep: Sweep = bigramlm.sweep("seed=1,2", model=Network)
    runs: list[Run] = list(sweep.runs)
    print(sweep.best, sweep.table()[0]["val/loss"], sweep.folder, len(runs), Sweep("latest").table().to_pandas())
    block_size: int = bigramlm.compose("model=gpt").data.block_size
    try:
        bigramlm.train("optim.lr=-1")
    except UserError as error:
        print(error, block_size)


main()
"""


@pytest.mark.slow
def test_a_script_passes_strict_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    script.write_text(SCRIPT.replace("best: dict[str, float]", "best: int"), "utf-8")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, "a wrong type is found"
