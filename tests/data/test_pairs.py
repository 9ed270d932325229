"""Tests of pairs of prompt and completion: loss, runs, end of text, refusals."""

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
from bigramlm.trainer.compiled import CompiledStep
from bigramlm.trainer.evaluate import Evaluator, mean_loss
from bigramlm.trainer.preflight import check_targets, unmask_prompts
from bigramlm.trainer.step import TrainStep
from tests.helpers import Cli, assert_refused, refuses, resumed, run_config, summary, table

CPU = torch.device("cpu")
SUMS = [(f"{a} + {b} =", f" {a + b}") for a in range(6) for b in range(6)]
GPT = ("model=gpt", "model.n_layer=1", "model.n_embd=32", "model.n_head=2")
SHORT = (*GPT, "trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=1", "logger=none")

Pairs = list[tuple[str, str]]


def write(path: Path, pairs: Pairs, **names: str) -> Path:
    """Write pairs to a JSONL file, compressed according to its suffix."""
    prompt, completion = names.get("prompt", "prompt"), names.get("completion", "completion")
    raw = "".join(json.dumps({prompt: a, completion: b}) + "\n" for a, b in pairs).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(raw))
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    order = np.random.default_rng(0).permutation(len(SUMS))
    return write(tmp_path / "sums.jsonl", [SUMS[n] for n in order])


def examples(lengths: list[tuple[int, int]], block_size: int | None = None) -> tuple[Examples, list[list[int]]]:
    """Create examples with distinct tokens; return them and the token ids of each.

    lengths: the number of prompt tokens and of targets of each example.
    """
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


def reference_loss(model: LanguageModel, tokens: list[list[int]]) -> tuple[float, int]:
    """Compute the loss of each completion, with each example alone and unpadded.

    Returns the sum of the losses and the number of targets.
    """
    total, count = 0.0, 0
    for (prompt, _), ids in zip(LENGTHS, tokens, strict=True):
        logits, _ = model(torch.tensor([ids[:-1]]))
        log_probs = logits[0].double().log_softmax(-1)
        for position in range(prompt, len(ids)):
            total -= log_probs[position - 1, ids[position]].item()
            count += 1
    return total, count


def test_loss_covers_only_the_completion() -> None:
    model, (split, tokens) = gpt().eval(), examples(LENGTHS)
    x, y = split.rows(torch.arange(8), CPU)
    logits, loss = model(x, y)
    total, count = reference_loss(model, tokens)
    assert loss is not None
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    logits.retain_grad()
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.any(-1), y != IGNORED), "only targets with a loss have a gradient"
    other, _ = model(torch.where((y == IGNORED) & (x == 0), 7, x))
    torch.testing.assert_close(other[y != IGNORED], logits[y != IGNORED]), "the content of the padding does not matter"


def update(split: Examples, *, parts: int, model: LanguageModel, compiled: bool = False) -> list[torch.Tensor]:
    """Run one update of 8 rows, and return the loss and the gradients."""
    device = Device(CPU, "fp32", compile=compiled)
    optimizer = run_config("optim=sgd", "optim.grad_clip=0").optim.build(model, compiled=compiled)
    kind = CompiledStep if compiled else TrainStep
    step = kind(model, optimizer, device, grad_accumulation=parts, masked=True)
    result = step(Batches(split, batch_size=8, seed=0)[0], 0.0)
    assert result is not None
    assert not isinstance(step, CompiledStep) or step.is_compiled
    return [result.loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    split, tokens = examples(LENGTHS)
    whole = update(split, parts=1, model=gpt())
    total, count = reference_loss(gpt().eval(), tokens)
    assert whole[0].item() == pytest.approx(total / count, rel=1e-5)
    for parts in (2, 4, 8):
        torch.testing.assert_close(update(split, parts=parts, model=gpt()), whole, rtol=1e-4, atol=1e-6)


INDUCTOR = (
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=INDUCTOR)])
def test_compiled_step_accumulates_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace without compiling, unless the backend is inductor (slow)."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=backend))
    split, _ = examples(LENGTHS)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Bigram(vocab_size=60, block_size=16))
    compiled = update(split, parts=4, model=models[0], compiled=True)
    torch.testing.assert_close(compiled, update(split, parts=1, model=models[1]), rtol=1e-4, atol=1e-6)


def test_evaluation_is_the_mean_over_all_targets_with_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (split, tokens) = gpt(), examples(LENGTHS)
    total, count = reference_loss(model.eval(), tokens)
    for limit in (1, 60 * split.block_size * 3, 1 << 20):  # one row, three rows, all rows at once
        monkeypatch.setattr("bigramlm.trainer.evaluate.LOGITS_AT_ONCE", {"cpu": limit})
        loss = mean_loss(model, split.blocks(limit=None), Device(CPU, "fp32", compile=False))
        assert loss == pytest.approx(total / count, rel=1e-5)


def test_preflight_checks_only_targets_with_a_loss() -> None:
    split, _ = examples(LENGTHS)
    x, y = split.rows(torch.arange(8), CPU)
    check_targets(x, y)
    for shifted in (y.roll(1, dims=1), y.roll(-1, dims=1)):
        with refuses("inputs"):
            check_targets(x, shifted)
    targets = unmask_prompts(x, y)
    for row, (p, t) in enumerate(LENGTHS):
        assert targets[row, : p + t - 1].tolist() == [*x[row, 1 : p + t - 1].tolist(), int(y[row, p + t - 2])]
        assert (targets[row, p + t - 1 :] == IGNORED).all()


# Runs


def test_model_learns_completions_and_stops(cli: Cli, tool: Cli, sums: Path, tmp_path: Path) -> None:
    fast = ("optim.lr=1e-2", "trainer.steps=150", "trainer.log_every=50", "data.train_fraction=0.97", "logger=none")
    ended = cli("data=pairs", f"data.path={sums}", *GPT, *fast, "sample.temperature=0")
    assert ended.code == 0, ended.err
    assert "data: pairs, 325 characters in 36 examples, vocabulary of 14 tokens\n" in ended.err
    assert "split: 34 train examples (" in ended.err
    lines = [json.loads(line) for line in sums.read_text().splitlines()]
    first = lines[34]["prompt"]  # the first prompt of val
    shown = (ended.folder / "samples.txt").read_text().removeprefix("---- step 150\n")
    assert shown.startswith(first + " ")
    assert "<|endoftext|>" not in shown
    known = lines[:34]
    for line in known[:2]:
        done = tool(sample.main, f"run={ended.folder}", f"prompt={line['prompt']}", "temperature=0")
        assert done.out == line["prompt"] + line["completion"] + "\n"
        past_the_end = ("stop_at_end=false", "max_new_tokens=4")
        done = tool(sample.main, f"run={ended.folder}", f"prompt={line['prompt']}", "temperature=0", *past_the_end)
        assert done.out.startswith(line["prompt"] + line["completion"] + "<|endoftext|>")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": line["prompt"]}) + "\n" for line in known))
    done = tool(sample.main, f"run={ended.folder}", f"prompts_file={prompts}", "temperature=0")
    assert [json.loads(line) for line in done.out.splitlines()] == known, (
        "completions of a batch end at different steps"
    )
    done = tool(sample.main, f"run={ended.folder}", f"prompt={known[0]['prompt']}", "temperature=0", "num_samples=3")
    text = known[0]["prompt"] + known[0]["completion"]
    assert done.out == "".join(f"---- {n} of 3\n{text}\n" for n in (1, 2, 3))
    again = tool(sample.main, f"run={ended.folder}", f"prompt={first}", "temperature=0")
    assert again.out == shown, "the sample at the end of a run matches sample.py"


def test_losses_match_a_direct_computation_on_completions(cli: Cli, tmp_path: Path) -> None:
    pairs = [("", "to be"), ("or not", " to be"), ("a", "b"), ("that is", " it"), ("", "or"), ("be", " not to be")]
    ended = cli("data=pairs", f"data.path={write(tmp_path / 'a.jsonl', pairs)}", "data.train_fraction=0.5", *SHORT)
    assert ended.code == 0, ended.err
    model, tokenizer, _ = load_model(open_checkpoint(str(ended.folder)))
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1

    def loss(pairs: Pairs) -> tuple[float, int]:
        total, count = 0.0, 0
        for prompt, completion in pairs:
            context = tokenizer.encode(prompt).tolist() or [0]  # without a newline, sampling starts from token 0
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
    assert not {name for name in last if "best" in name or "ngram" in name}, "pairs have no n-gram references"


def test_resumed_run_matches_an_uninterrupted_run(cli: Cli, sums: Path) -> None:
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
def test_several_compressed_files_with_other_fields_are_read(tmp_path: Path, suffix: str) -> None:
    for name, part in (("a", SUMS[:20]), ("b", SUMS[20:])):
        write(tmp_path / f"{name}{suffix}", part, prompt="question", completion="answer")
    found = PairsConfig(path=f"{tmp_path}/*{suffix}", prompt_field="question", completion_field="answer").read()
    assert [(example.prompt, example.completion) for example in found.kept] == SUMS
    assert [Path(file.path).name for file in found.files] == [f"a{suffix}", f"b{suffix}"]


def test_losses_do_not_depend_on_how_pairs_are_stored(cli: Cli, tmp_path: Path) -> None:
    for name, part in (("a", SUMS[:20]), ("b", SUMS[20:])):
        write(tmp_path / f"{name}.jsonl.gz", part, prompt="question", completion="answer")
    fields = ("data.prompt_field=question", "data.completion_field=answer")
    compressed = cli("data=pairs", f"data.path={tmp_path}/*.gz", *fields, *SHORT)
    assert compressed.code == 0, compressed.err
    plain = cli("data=pairs", f"data.path={write(tmp_path / 'whole.jsonl', SUMS)}", *SHORT)
    losses = [summary(run.folder)["final"] for run in (compressed, plain)]
    assert losses[0] == losses[1]


def test_sweep_on_pairs_is_continued(cli: Cli, sums: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = ("-m", "data=pairs", f"data.path={sums}", *SHORT, f"hydra.sweep.dir={folder}")
    assert cli(*arguments, "seed=1,2", run_dir=False).code == 0
    again = cli(*arguments, "seed=1,2,3", f"sweep={folder}", run_dir=False)
    assert_refused(again, "hydra.sweep.dir", field="sweep", value=folder)
    assert cli(*arguments[:-1], "seed=1,2,3", f"sweep={folder}", run_dir=False).code == 0
    assert sorted((row["job"], row["status"]) for row in table(folder)) == [(job, "completed") for job in "012"]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "wordpiece"])
def test_tokenizers_learn_from_prompts_and_completions(cli: Cli, tmp_path: Path, tokenizer: str) -> None:
    pairs = [(f"What is {n}?", f" It is {n}, of course.") for n in range(40)]
    size = {"bpe": ["tokenizer.vocab_size=275"], "wordpiece": ["tokenizer.vocab_size=60"]}.get(tokenizer, [])
    path = write(tmp_path / "a.jsonl", pairs)
    ended = cli("data=pairs", f"data.path={path}", f"tokenizer={tokenizer}", *size, *SHORT)
    assert ended.code == 0, ended.err
    assert "no end-of-text token" not in ended.err
    if tokenizer == "bpe":
        saved = json.loads((ended.folder / "checkpoints" / "step_4" / "tokenizer.json").read_text("utf-8"))
        assert {"What", "\u0120It"} <= set(saved["model"]["vocab"])
    assert ("loses part of the text" in ended.err) == (tokenizer == "wordpiece")


def test_long_examples_are_cropped_with_a_warning(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [("x" * 30, "y"), ("x", "y" * 30), ("x", "y"), ("x" * 5, "yy")])
    ended = cli("data=pairs", f"data.path={path}", "data.block_size=8", *SHORT)
    assert ended.code == 0, ended.err
    assert (
        "2 of 4 examples are longer than data.block_size=8: their prompts are truncated from the left, and 1 of their "
        "completions from the right" in ended.err
    )
    ended = cli("data=pairs", f"data.path={path}", "data.block_size=1", *SHORT)
    assert ended.code == 0, ended.err
    ended = cli("data=pairs", f"data.path={path}", "data.block_size=31", *SHORT)
    assert "data.block_size" not in ended.err, "all examples fit"


def test_fine_tuning_keeps_the_tokenizer_of_the_weights(cli: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("0123456789 + = and\n" * 30)
    source = cli("data=text", f"data.path={text}", *SHORT, "data.block_size=16")
    assert source.code == 0, source.err
    start = (f"init_from={source.folder}", "trainer.steps=4", "logger=none")
    path = write(tmp_path / "a.jsonl", SUMS)
    ended = cli("data=pairs", f"data.path={path}", *start)
    assert ended.code == 0, ended.err
    assert "tokenizer: char has no end-of-text token, so the model cannot learn where a completion ends" in ended.err
    saved = [run.folder / "checkpoints" / "step_4" / "tokenizer.json" for run in (source, ended)]
    assert saved[0].read_text() == saved[1].read_text()
    path = write(tmp_path / "b.jsonl", [*SUMS[:3], ("7 * 2 =", " 14")])
    assert_refused(cli("data=pairs", f"data.path={path}", *start), "b.jsonl", "line 4", "17", "'*'")


# The end of generation


class Scripted(LanguageModel):
    """A model that generates given tokens, row by row."""

    def __init__(self, *rows: list[int]) -> None:
        super().__init__(vocab_size=5, block_size=8)
        self.rows, self.calls = rows, 0

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = torch.zeros(len(idx), idx.shape[1], 5)
        for row, tokens in enumerate(self.rows):
            logits[row, -1, tokens[min(self.calls, len(tokens) - 1)]] = 9.0
        self.calls += 1
        return logits, None


@pytest.mark.parametrize(("until", "calls"), [(4, 3), (2, 5), (None, 6), (3, 6)])
def test_generation_stops_when_every_row_has_ended(until: int | None, calls: int) -> None:
    model = Scripted([4, 2, 1], [1, 2, 4, 1], [1, 4, 1, 1, 2])
    start, device = torch.zeros(3, 1, dtype=torch.long), Device(CPU, "fp32", compile=False)
    tokens = torch.cat(
        [*stream(model, start, 6, temperature=0.0, seed=0, device=device, cached=False, until=until)], dim=1
    )
    assert (model.calls, tokens.shape[1]) == (calls, calls)
    assert tokens[1].tolist() == [1, 2, 4, 1, 1, 1][:calls]


# Refusals

GOOD = '{"prompt": "a", "completion": "b"}\n'
BAD: dict[str, tuple[str | None, str, dict[str, Any], tuple[str, ...]]] = {
    "not JSON": ("a.txt", "a text\n", {}, ("a.txt", "JSON Lines", "data=text")),
    "no such file": (None, "", {}, ("a.jsonl", "data.path=FILE")),
    "empty": ("a.jsonl", "\n", {}, ("a.jsonl", "no examples")),
    "one example": ("a.jsonl", GOOD, {}, ("a.jsonl", "one example")),
    "broken": ("a.jsonl", GOOD + '{"prompt": "a"', {}, ("a.jsonl", "line 2", "JSON")),
    "not an object": ("a.jsonl", GOOD + '["a", "b"]\n', {}, ("a.jsonl", "line 2", "object")),
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
def test_bad_input_is_refused_in_one_line(
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
    ids=["a broken line", "a counted model", "n-grams below", "a prompt with unknown characters"],
)
def test_refused_run_writes_no_metrics(
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


def test_examples_have_no_references_and_count_padding_as_computed(tmp_path: Path) -> None:
    split, _ = examples([(1, 1 + n % 3) for n in range(20)])
    cfg, model, device = run_config("trainer.steps=2", "data.batch_size=4"), gpt(), Device(CPU, "fp32", compile=False)
    splits: dict[str, Split] = {"train": split, "val": split}
    assert Evaluator(model, splits, device, val_characters=10).references == {}
    assert build.train_step(cfg, model, split, device).masked
    assert build.batches(cfg, split, device).tokens_per_batch == 4 * split.block_size
