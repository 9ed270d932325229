"""Pairs of prompt and completion: what is learned of them, how they are told apart, and where a text ends."""

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigramlm.cli import prepare, sample
from bigramlm.data.batches import IGNORED, Batches, Examples, Split
from bigramlm.data.compression import zstd
from bigramlm.data.config import PairsConfig
from bigramlm.data.pairs import row_length
from bigramlm.device.device import Device
from bigramlm.engine import build
from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.generate import stream
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.trainer.evaluate import Evaluator, mean_loss
from bigramlm.trainer.preflight import check_targets, whole
from bigramlm.trainer.step import CompiledStep, TrainStep
from tests.helpers import Cli, assert_refused, refuses, resumed, run_config, summary, table

CPU = torch.device("cpu")
SUMS = [(f"{a} + {b} =", f" {a + b}") for a in range(6) for b in range(6)]
GPT = ("model=gpt", "model.n_layer=1", "model.n_embd=32", "model.n_head=2")
SHORT = (*GPT, "trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=1", "logger=none")

Pairs = list[tuple[str, str]]


def written(path: Path, pairs: Pairs, **names: str) -> Path:
    """Return a file of JSONL with these pairs, compressed as its name says."""
    prompt, completion = names.get("prompt", "prompt"), names.get("completion", "completion")
    raw = "".join(json.dumps({prompt: a, completion: b}) + "\n" for a, b in pairs).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(raw))
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    order = np.random.default_rng(0).permutation(len(SUMS))
    return written(tmp_path / "sums.jsonl", [SUMS[n] for n in order])


def examples(lengths: list[tuple[int, int]], block_size: int | None = None) -> tuple[Examples, list[list[int]]]:
    """Examples of so many tokens of prompt and of targets each, all tokens different; and these tokens."""
    at = np.cumsum([0, *(n for pair in lengths for n in pair)])
    bounds = np.stack([at[:-1:2], at[1::2], at[2::2]], axis=1)
    length = row_length({"train": bounds}, block_size or 1000)
    tokens = torch.arange(1, at[-1] + 1, dtype=torch.int32)
    return Examples(tokens, bounds, block_size=length), [tokens[a:b].tolist() for a, _, b in bounds]


# The loss


def gpt(**fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = GPTConfig(n_layer=1, n_head=2, n_embd=32, zero_init=False, **fields)
    return model.build(vocab_size=60, block_size=16)


LENGTHS = [(3, 1), (2, 9), (1, 2), (5, 4), (1, 1), (2, 2), (6, 1), (1, 7)]


def by_hand(model: LanguageModel, tokens: list[list[int]]) -> tuple[float, int]:
    """Return the sum of the losses of completions, each example alone and unpadded, and how many tokens they have."""
    total, count = 0.0, 0
    for (prompt, _), ids in zip(LENGTHS, tokens, strict=True):
        logits, _ = model(torch.tensor([ids[:-1]]))
        p = logits[0].double().log_softmax(-1)
        for place in range(prompt, len(ids)):
            total -= p[place - 1, ids[place]].item()
            count += 1
    return total, count


def test_the_loss_is_of_the_completion_alone() -> None:
    model, (split, tokens) = gpt().eval(), examples(LENGTHS)
    x, y = split.rows(torch.arange(8), CPU)
    logits, loss = model(x, y)
    total, count = by_hand(model, tokens)
    assert loss is not None
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    logits.retain_grad()
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.any(-1), y != IGNORED), "nothing else pulls at the logits"
    other, _ = model(torch.where((y == IGNORED) & (x == 0), 7, x))
    torch.testing.assert_close(other[y != IGNORED], logits[y != IGNORED]), "what stands in the padding does not matter"


def taken(split: Examples, *, parts: int, model: LanguageModel, compiled: bool = False) -> list[torch.Tensor]:
    """Return the loss and the gradients of one update of 8 rows."""
    device = Device(CPU, "fp32", compile=compiled)
    optimizer = run_config("optim=sgd", "optim.grad_clip=0").optim.build(model, compiled=compiled)
    kind = CompiledStep if compiled else TrainStep
    step = kind(model, optimizer, device, grad_accumulation=parts, masked=True)
    result = step(Batches(split, batch_size=8, seed=0)[0], 0.0)
    assert result is not None
    assert not isinstance(step, CompiledStep) or step.is_compiled
    return [result.loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_accumulation_makes_the_gradient_of_the_whole_batch() -> None:
    split, tokens = examples(LENGTHS)
    whole = taken(split, parts=1, model=gpt())
    total, count = by_hand(gpt().eval(), tokens)
    assert whole[0].item() == pytest.approx(total / count, rel=1e-5)
    for parts in (2, 4, 8):
        torch.testing.assert_close(taken(split, parts=parts, model=gpt()), whole, rtol=1e-4, atol=1e-6)


INDUCTOR = (
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=INDUCTOR)])
def test_a_compiled_step_accumulates_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, and not compiled, in the short one."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=backend))
    split, _ = examples(LENGTHS)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Bigram(vocab_size=60, block_size=16))
    compiled = taken(split, parts=4, model=models[0], compiled=True)
    torch.testing.assert_close(compiled, taken(split, parts=1, model=models[1]), rtol=1e-4, atol=1e-6)


def test_evaluation_is_the_mean_over_all_targets_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (split, tokens) = gpt(), examples(LENGTHS)
    total, count = by_hand(model.eval(), tokens)
    for at_once in (1, 60 * split.block_size * 3, 1 << 20):  # a row, three, all
        monkeypatch.setattr("bigramlm.trainer.evaluate.LOGITS_AT_ONCE", {"cpu": at_once})
        found = mean_loss(model, split.blocks(limit=None), Device(CPU, "fp32", compile=False))
        assert found == pytest.approx(total / count, rel=1e-5)


def test_the_first_batch_is_looked_at_where_targets_count() -> None:
    split, _ = examples(LENGTHS)
    x, y = split.rows(torch.arange(8), CPU)
    check_targets(x, y)
    for shifted in (y.roll(1, dims=1), y.roll(-1, dims=1)):
        with refuses("inputs"):
            check_targets(x, shifted)
    targets = whole(x, y)
    for row, (p, t) in enumerate(LENGTHS):
        assert targets[row, : p + t - 1].tolist() == [*x[row, 1 : p + t - 1].tolist(), int(y[row, p + t - 2])]
        assert (targets[row, p + t - 1 :] == IGNORED).all()


# Runs


def test_it_learns_what_follows_and_stops(cli: Cli, tool: Cli, sums: Path, tmp_path: Path) -> None:
    fast = ("optim.lr=1e-2", "trainer.steps=150", "trainer.log_every=50", "data.train_fraction=0.97", "logger=none")
    ended = cli("data=pairs", f"data.path={sums}", *GPT, *fast, "sample.temperature=0")
    assert ended.code == 0, ended.err
    assert "data: pairs, 325 characters in 36 examples, vocabulary of 14\n" in ended.err
    assert "split: 34 examples train, 2 val, with completions of " in ended.err
    lines = [json.loads(line) for line in sums.read_text().splitlines()]
    first = lines[34]["prompt"]  # of val
    shown = (ended.folder / "samples.txt").read_text().removeprefix("---- step 150\n")
    assert shown.startswith(first + " ")
    assert "<|endoftext|>" not in shown
    known = lines[:34]
    for line in known[:2]:
        done = tool(sample.main, f"run={ended.folder}", f"prompt={line['prompt']}", "temperature=0")
        assert done.out == line["prompt"] + line["completion"] + "\n"
        on = ("stop_at_end=false", "max_new_tokens=4")
        done = tool(sample.main, f"run={ended.folder}", f"prompt={line['prompt']}", "temperature=0", *on)
        assert done.out.startswith(line["prompt"] + line["completion"] + "<|endoftext|>")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": line["prompt"]}) + "\n" for line in known))
    done = tool(sample.main, f"run={ended.folder}", f"prompts_file={prompts}", "temperature=0")
    assert [json.loads(line) for line in done.out.splitlines()] == known, "ends of one batch come at different times"
    done = tool(sample.main, f"run={ended.folder}", f"prompt={known[0]['prompt']}", "temperature=0", "num_samples=3")
    text = known[0]["prompt"] + known[0]["completion"]
    assert done.out == "".join(f"---- {n} of 3\n{text}\n" for n in (1, 2, 3))
    again = tool(sample.main, f"run={ended.folder}", f"prompt={first}", "temperature=0")
    assert again.out == shown, "a run ends with what sample.py writes"


def test_losses_are_those_of_completions_computed_by_hand(cli: Cli, tmp_path: Path) -> None:
    pairs = [("", "to be"), ("or not", " to be"), ("a", "b"), ("that is", " it"), ("", "or"), ("be", " not to be")]
    ended = cli("data=pairs", f"data.path={written(tmp_path / 'a.jsonl', pairs)}", "data.train_fraction=0.5", *SHORT)
    assert ended.code == 0, ended.err
    model, tokenizer, _ = load_model(open_checkpoint(str(ended.folder)))
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1

    def loss(some: Pairs) -> tuple[float, int]:
        total, count = 0.0, 0
        for prompt, completion in some:
            context = tokenizer.encode(prompt).tolist() or [0]  # there is no newline: sampling starts from token 0
            for token in [*tokenizer.encode(completion).tolist(), tokenizer.vocab_size - 1]:
                logits, _ = model.eval()(torch.tensor([context]))
                total -= logits[0, -1].log_softmax(-1)[token].item()
                context.append(token)
                count += 1
        return total, count

    final = summary(ended.folder)["final"]
    assert isinstance(final, dict)
    train, val = loss(pairs[:3]), loss(pairs[3:])
    assert final["train/loss"] == pytest.approx(train[0] / train[1], rel=1e-5)
    assert final["val/loss"] == pytest.approx(val[0] / val[1], rel=1e-5)
    characters = sum(len(completion) for _, completion in pairs[3:])
    assert final["val/bpc"] == pytest.approx(val[0] / math.log(2) / characters, rel=1e-5)
    last = json.loads((ended.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val/loss"] == pytest.approx(final["val/loss"], rel=1e-6)
    assert not {name for name in last if "best" in name or "ngram" in name}, "nothing is counted of pairs"


def test_a_run_that_is_resumed_is_the_run_that_was_not_interrupted(cli: Cli, sums: Path) -> None:
    config = ("data=pairs", f"data.path={sums}", *SHORT, "data.batch_size=5", "trainer.grad_accumulation=2")
    whole, half = cli(*config, "trainer.steps=8"), cli(*config)
    assert resumed(cli, half.folder, "trainer.steps=8").code == 0
    weights = [(run.folder / "checkpoints" / "step_8" / "model.safetensors").read_bytes() for run in (whole, half)]
    assert weights[0] == weights[1]
    samples = [(run.folder / "samples.txt").read_text() for run in (whole, half)]
    assert samples[1].endswith(samples[0])
    sums.write_text(sums.read_text().replace("5", "4"))
    assert_refused(resumed(cli, half.folder, "trainer.steps=9"), sums, "SHA-256")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".ndjson"])
def test_files_may_be_compressed_and_several_and_have_other_fields(tmp_path: Path, suffix: str) -> None:
    for name, some in (("a", SUMS[:20]), ("b", SUMS[20:])):
        written(tmp_path / f"{name}{suffix}", some, prompt="question", completion="answer")
    found = PairsConfig(path=f"{tmp_path}/*{suffix}", prompt_field="question", completion_field="answer").read()
    assert [(example.prompt, example.completion) for example in found.kept] == SUMS
    assert [Path(file.path).name for file in found.files] == [f"a{suffix}", f"b{suffix}"]


def test_it_does_not_matter_how_pairs_are_stored(cli: Cli, tmp_path: Path) -> None:
    for name, some in (("a", SUMS[:20]), ("b", SUMS[20:])):
        written(tmp_path / f"{name}.jsonl.gz", some, prompt="question", completion="answer")
    fields = ("data.prompt_field=question", "data.completion_field=answer")
    one = cli("data=pairs", f"data.path={tmp_path}/*.gz", *fields, *SHORT)
    assert one.code == 0, one.err
    two = cli("data=pairs", f"data.path={written(tmp_path / 'whole.jsonl', SUMS)}", *SHORT)
    losses = [summary(run.folder)["final"] for run in (one, two)]
    assert losses[0] == losses[1]


def test_a_sweep_of_pairs(cli: Cli, sums: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    typed = ("-m", "data=pairs", f"data.path={sums}", *SHORT, f"hydra.sweep.dir={folder}")
    assert cli(*typed, "seed=1,2", run_dir=False).code == 0
    again = cli(*typed, "seed=1,2,3", f"sweep={folder}", run_dir=False)
    assert_refused(again, "hydra.sweep.dir", field="sweep", value=folder)
    assert cli(*typed[:-1], "seed=1,2,3", f"sweep={folder}", run_dir=False).code == 0
    assert sorted((row["job"], row["status"]) for row in table(folder)) == [(job, "completed") for job in "012"]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "wordpiece"])
def test_tokenizers_learn_from_prompts_and_completions(cli: Cli, tmp_path: Path, tokenizer: str) -> None:
    pairs = [(f"What is {n}?", f" It is {n}, of course.") for n in range(40)]
    size = {"bpe": ["tokenizer.vocab_size=275"], "wordpiece": ["tokenizer.vocab_size=60"]}.get(tokenizer, [])
    path = written(tmp_path / "a.jsonl", pairs)
    ended = cli("data=pairs", f"data.path={path}", f"tokenizer={tokenizer}", *size, *SHORT)
    assert ended.code == 0, ended.err
    assert "no token for where a text ends" not in ended.err
    if tokenizer == "bpe":
        saved = json.loads((ended.folder / "checkpoints" / "step_4" / "tokenizer.json").read_text("utf-8"))
        assert {"What", "\u0120It"} <= set(saved["model"]["vocab"])
    assert ("loses part of the text" in ended.err) == (tokenizer == "wordpiece")


def test_an_example_that_is_too_long_is_cut_and_told(cli: Cli, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [("x" * 30, "y"), ("x", "y" * 30), ("x", "y"), ("x" * 5, "yy")])
    ended = cli("data=pairs", f"data.path={path}", "data.block_size=8", *SHORT)
    assert ended.code == 0, ended.err
    assert (
        "2 of 4 examples are longer than data.block_size=8: their prompts lose the beginning, and 1 of their "
        "completions the end" in ended.err
    )
    ended = cli("data=pairs", f"data.path={path}", "data.block_size=1", *SHORT)
    assert ended.code == 0, ended.err
    ended = cli("data=pairs", f"data.path={path}", "data.block_size=31", *SHORT)
    assert "data.block_size" not in ended.err, "all of them fit"


def test_fine_tuning_keeps_the_tokenizer_of_the_weights(cli: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("0123456789 + = and\n" * 30)
    source = cli("data=text", f"data.path={text}", *SHORT, "data.block_size=16")
    assert source.code == 0, source.err
    from_it = (f"init_from={source.folder}", "trainer.steps=4", "logger=none")
    path = written(tmp_path / "a.jsonl", SUMS)
    ended = cli("data=pairs", f"data.path={path}", *from_it)
    assert ended.code == 0, ended.err
    assert "tokenizer: char has no token for where a text ends, so the model cannot learn where" in ended.err
    saved = [run.folder / "checkpoints" / "step_4" / "tokenizer.json" for run in (source, ended)]
    assert saved[0].read_text() == saved[1].read_text()
    path = written(tmp_path / "b.jsonl", [*SUMS[:3], ("7 * 2 =", " 14")])
    assert_refused(cli("data=pairs", f"data.path={path}", *from_it), "b.jsonl", "line 4", "17", "'*'")


# What stops


class Scripted(LanguageModel):
    """Writes what it is told, row by row."""

    vocab_size, block_size = 5, 8

    def __init__(self, *rows: list[int]) -> None:
        super().__init__()
        self.rows, self.calls = rows, 0

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = torch.zeros(len(idx), idx.shape[1], 5)
        for row, tokens in enumerate(self.rows):
            logits[row, -1, tokens[min(self.calls, len(tokens) - 1)]] = 9.0
        self.calls += 1
        return logits, None


@pytest.mark.parametrize(("until", "calls"), [(4, 3), (2, 5), (None, 6), (3, 6)])
def test_writing_stops_when_every_row_has_ended(until: int | None, calls: int) -> None:
    model = Scripted([4, 2, 1], [1, 2, 4, 1], [1, 4, 1, 1, 2])
    start, device = torch.zeros(3, 1, dtype=torch.long), Device(CPU, "fp32", compile=False)
    found = torch.cat(
        [*stream(model, start, 6, temperature=0.0, seed=0, device=device, cached=False, until=until)], dim=1
    )
    assert (model.calls, found.shape[1]) == (calls, calls)
    assert found[1].tolist() == [1, 2, 4, 1, 1, 1][:calls]


# What is refused

GOOD = '{"prompt": "a", "completion": "b"}\n'
BAD: dict[str, tuple[str | None, str, dict[str, Any], tuple[str, ...]]] = {
    "not JSONL": ("a.txt", GOOD, {}, ("a.txt", "*.jsonl", "data=text")),
    "no such file": (None, "", {}, ("a.jsonl", "data.path=FILE")),
    "empty": ("a.jsonl", "\n", {}, ("a.jsonl", "no examples")),
    "one example": ("a.jsonl", GOOD, {}, ("a.jsonl", "one example")),
    "broken": ("a.jsonl", GOOD + '{"prompt": "a"', {}, ("a.jsonl", "line 2", "JSON")),
    "no object": ("a.jsonl", GOOD + '["a", "b"]\n', {}, ("a.jsonl", "line 2", "object")),
    "no prompt": (
        "a.jsonl",
        '{"q": "a", "completion": "b"}',
        {},
        ("line 1", "'prompt'", "q, completion", "data.prompt_field="),
    ),
    "no completion": (
        "a.jsonl",
        '{"prompt": "a", "a": ""}',
        {},
        ("line 1", "'completion'", "prompt, a", "data.completion_field="),
    ),
    "no such field": ("a.jsonl", GOOD, {"prompt_field": "q"}, ("line 1", "'q'", "prompt, completion")),
    "a number": ("a.jsonl", '{"prompt": "a", "completion": 5}', {}, ("line 1", "'completion'", "not")),
    "a list": ("a.jsonl", '{"prompt": ["a"], "completion": "5"}', {}, ("line 1", "'prompt'", "not")),
    "nothing to learn": (
        "a.jsonl",
        GOOD + '{"prompt": "a", "completion": ""}',
        {},
        ("line 2", "'completion'", "empty"),
    ),
    "no training": ("a.jsonl", GOOD * 3, {"train_fraction": 0.1}, ("data.train_fraction=0.1", "3 examples")),
    "no room": ("a.jsonl", GOOD * 3, {"block_size": 0}, ("data.block_size=0",)),
}


@pytest.mark.parametrize(("name", "content", "fields", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    tmp_path: Path, name: str | None, content: str, fields: dict[str, Any], named: tuple[str, ...]
) -> None:
    if name is not None:
        (tmp_path / name).write_text(content)
    with refuses(*named):
        PairsConfig(path=str(tmp_path / (name or "a.jsonl")), **fields).read()


@pytest.mark.parametrize(
    ("content", "overrides", "named"),
    [
        (GOOD + '{"prompt": "a"', [], ["a.jsonl", "line 2"]),
        (GOOD * 3, ["model=ngram"], ["data=pairs", "model=ngram"]),
        (GOOD * 3, ["model=gpt", "model.ngram_order=3"], ["data=pairs", "model.ngram_order=3"]),
        (GOOD * 3, ["sample.prompt=c"], ["sample.prompt='c'"]),
    ],
    ids=["a broken line", "a counted model", "n-grams below", "a prompt it lacks"],
)
def test_a_run_that_cannot_be_leaves_nothing(
    cli: Cli, tmp_path: Path, content: str, overrides: list[str], named: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    ended = cli("data=pairs", f"data.path={tmp_path / 'a.jsonl'}", "trainer.steps=1", *overrides)
    assert_refused(ended, *named)
    assert not (ended.folder / "metrics.jsonl").exists()


def test_token_files_of_pairs_are_refused(tool: Cli, sums: Path) -> None:
    done = tool(prepare.main, "data=pairs", f"data.path={sums}")
    assert_refused(done, "data=pairs")
    assert done.err.count("\n") == 1


def test_examples_have_no_references_and_their_padding_counts_as_computed(tmp_path: Path) -> None:
    split, _ = examples([(1, 1 + n % 3) for n in range(20)])
    cfg, model, device = run_config("trainer.steps=2", "data.batch_size=4"), gpt(), Device(CPU, "fp32", compile=False)
    splits: dict[str, Split] = {"train": split, "val": split}
    assert Evaluator(model, splits, device, val_characters=10).references == {}
    assert build.train_step(cfg, model, split, device).masked
    assert build.batches(cfg, split, device).tokens_per_batch == 4 * split.block_size
