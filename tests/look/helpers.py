"""Synthetic content of the page, and the page in a browser."""

import base64
import copy
from pathlib import Path
from typing import Any

from bigramlm.dev.browser import Browser
from bigramlm.look.page import page
from tests.dev.helpers import eventually, settled

# The overrides of a run that is looked at.
WORDS = ("data=bundled", "trainer.steps=20", "trainer.eval_every=10", "logger=none", "sample.max_new_tokens=5")

TOKENS = ["\n", " ", "a", "b", "Q", "7"]
KINDS = ["space", "space", "vowel", "consonant", "capital", "digit"]
IDS = [2, 3, 1, 2, 4, 0, 3, 5]
STEPS = [0, 1000, 10000]
SECTIONS = ("passage", "worst", "table", "attention", "lens", "embedding", "weights", "activations", "sampling")


def encoded(values: list[float]) -> str:
    return base64.b64encode(bytes(round(value) for value in values)).decode()


def table_bytes(*rows: list[float]) -> str:
    """Return rows of probabilities as the bytes of a table."""
    return encoded([255 * p**0.5 for row in rows for p in row])


def attention_of(offset: int) -> str:
    """Return the weights of a head that looks `offset` tokens back, or at the first."""
    n = len(IDS)
    return encoded([255.0 * (j == max(0, i - offset)) for i in range(n) for j in range(n)])


def content() -> dict[str, Any]:
    """Return content for every section, with six tokens and eight positions."""
    n, size = len(IDS), len(TOKENS)
    surprise = [None, 0.5, 2.0, 1.0, 4.0, 3.0, 0.1, 6.0]
    top = [None, *([[2, 0.5], [3, 0.25], [1, 0.125], [4, 0.06], [0, 0.03]] for _ in range(n - 1))]
    used = [1, 2, 3, 0, 4, 5]  # the tokens by their use
    uniform = [1 / size] * size
    sharp = [[0.0] * size for _ in range(size)]
    for at in range(size):
        sharp[at][(at + 1) % size], sharp[at][at] = 0.75, 0.25
    return copy.deepcopy(
        {
            "tokens": TOKENS,
            "kinds": KINDS,
            "compare": {"label": "the other", "loss": 17.6, "own_loss": 16.6},
            "passage": {
                "ids": IDS,
                "windows": [0, 4],
                "surprise": surprise,
                "rank": [None, 1, 2, 1, 6, 5, 1, 7],
                "top": top,
                "ngram": [None, 1.5, 1.0, 1.0, 4.5, 3.0, 0.1, 7.0],
                "ngram_order": 5,
                "difference": [None, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
            },
            "worst": {"n_tokens": 1234, "mean": 1.5, "places": [place("a", "Q", "b\n"), place(" b", "7", " a")]},
            "table": {
                "size": size,
                "tokens": used,
                "alphabet": [3, 0, 1, 2, 5, 4],
                "model": table_bytes(*sharp),
                "counts": table_bytes(*[uniform] * size),
                "missing": [[2, 3, 0.9, 0.5], [4, 0, 0.8, 0.7]],
            },
            "attention": {
                "ids": IDS,
                "layers": 2,
                "heads": 2,
                "weights": [[attention_of(1), attention_of(2)], [attention_of(0), attention_of(9)]],
                "kinds": [
                    [kind("previous token", 0.9), kind("mixed", 0.2)],
                    [kind("same token", 0.7), kind("first token", 0.8)],
                ],
            },
            "lens": {
                "ids": IDS,
                "layers": ["embedding", "h.0"],
                "top": [
                    [[[1, 0.5], [2, 0.3], [3, 0.1]] for _ in IDS],
                    [[[token, 0.9], [1, 0.05], [0, 0.01]] for token in [*IDS[1:], 0]],
                ],
                "surprise": [[2.0] * (n - 1) + [None], [0.105] * (n - 1) + [None]],
            },
            "embedding": {"tokens": used, "x": [0, 1, 2, 3, 4, 5], "y": [5, 4, 3, 2, 1, 0], "share": [0.4, 0.2]},
            "weights": [{"name": f"h.{n}.weight", "edges": [-1, 2], "counts": [1, 5, 2], "std": 0.5} for n in range(3)],
            "activations": {
                "units": [{"name": "h.0.mlp", "never": 0.125, "edges": [-0.1, 3], "counts": [9, 3, 1]}],
                "stream": {"layers": ["embedding", "h.0"], "norm": [1.0, 4.0]},
            },
            "sampling": {
                "ids": IDS,
                "logits": [[2.0, 1.5, 0.75, 0.0, -1.0, -3.0]] * n,
                "tokens": [[3, 2, 1, 0, 4, 5]] * n,
                "tail": [[]] * n,
            },
            "history": {
                "steps": STEPS,
                "surprise": [[None, *[1.8] * (n - 1)], [None, 6.0, *[1.0] * (n - 2)], surprise],
                "table": [table_bytes(*[uniform] * size), table_bytes(*[uniform] * size), table_bytes(*sharp)],
                "embedding": [
                    {"x": [0] * size, "y": [0] * size},
                    {"x": [9] * size, "y": [1] * size},
                    {"x": [0, 1, 2, 3, 4, 5], "y": [5, 4, 3, 2, 1, 0]},
                ],
            },
        }
    )


def place(before: str, token: str, after: str) -> dict[str, Any]:
    return {"before": before, "token": token, "after": after, "surprise": 9.25, "expected": " ", "p": 0.4}


def kind(name: str, score: float) -> dict[str, Any]:
    scores = {"previous token": 0.1, "first token": 0.1, "same token": 0.1, "induction": 0.1}
    return {"name": name, "scores": {**scores, name: score} if name in scores else scores}


def show(window: Browser, folder: Path, data: dict[str, Any], *, width: int = 1280, dark: bool = False) -> None:
    """Open the page of this content, in a window in which all of it is on the screen."""
    facts, notes = [("model", "gpt")], ["An n-gram model has no attention."]
    (folder / "look.html").write_text(page(data, title="Inside", facts=facts, notes=notes), "utf-8")
    window.set_viewport(width=width, height=8000, dark=dark)
    window.open(folder / "look.html")
    eventually(window, "return onScreen.size === Object.keys(DRAWN).length && stale.size === 0")
    settled(window)
    assert window.console_errors() == []
