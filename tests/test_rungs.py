"""Everything that a run can do, with every model that there is: the presets are found, and none is left out."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from bigramlm import checkpoint_tool, paths, sample
from bigramlm.checkpoint import Checkpoint, Checkpoints
from bigramlm.load import load_model
from bigramlm.model.base import is_counted
from bigramlm.verify_resume import compare
from tests.helpers import PRESETS, Cli, cut_back, gpts, resumed, run_config, small, table

RUN = (
    *("data=bundled", "data.block_size=16", "data.batch_size=4", "logger=none", "device.threads=1"),
    *("trainer.steps=6", "trainer.eval_every=3", "trainer.eval_batches=2", "trainer.log_every=1"),
    *("trainer.checkpoint_every=3", "trainer.keep_checkpoints=99", "sample.max_new_tokens=40"),
)
# All that a rung's training can have, where it has it.
HARDER = ("optim.schedule=cosine", "optim.warmup_steps=2", "optim.grad_clip=1", "trainer.grad_accumulation=2")


def overrides(preset: str, *more: str) -> list[str]:
    dropout = ["model.dropout=0.1"] if preset in gpts() else []
    return [*RUN, f"model={preset}", *small(preset), *dropout, *more]


CASES = [
    *((preset, "optim=adamw") for preset in PRESETS),
    *((preset, optim) for preset in ("gpt", "transformer") for optim in ("optim=sgd", "optim=muon")),
    ("gpt", "model.ngram_order=3"),
    ("gpt", "trainer.activation_checkpointing=true"),
]


@pytest.mark.parametrize(("preset", "more"), CASES, ids=[f"{preset} {more}" for preset, more in CASES])
def test_a_run_is_checked_and_gone_on_with_to_the_bit_and_sampled_from(
    preset: str, more: str, cli: Cli, tool: Cli, tmp_path: Path
) -> None:
    whole = cli(*overrides(preset, more, *HARDER))
    assert whole.code == 0, whole.err
    assert "preflight: passed" in whole.err
    steps = 0 if preset == "ngram" else 6
    assert json.loads((whole.folder / "summary.json").read_text("utf-8"))["step"] == steps

    cut = cut_back(whole.folder, tmp_path / "cut", steps // 2)
    ended = resumed(cli, cut)
    assert ended.code == 0, ended.err
    assert compare(whole.folder, cut) is None

    written = tool(sample.main, f"run={whole.folder}", "max_new_tokens=40")
    assert written.code == 0, written.err
    # A run's sample and this one both start from token 0 with the same seed.
    assert (whole.folder / "samples.txt").read_text("utf-8") == f"---- step {steps}\n{written.out}"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_is_the_whole_model(preset: str, cli: Cli, tool: Cli) -> None:
    """It gives the same logits in another process's hands, stripped of what only training needs."""
    run = cli(*overrides(preset, "trainer.steps=1", "sample.max_new_tokens=1"))
    assert run.code == 0, run.err
    step = run.folder / "checkpoints" / ("step_0" if preset == "ngram" else "step_1")
    model, _, _ = load_model(Checkpoint(step))
    stripped = run.folder / "stripped"
    assert tool(checkpoint_tool.main, "strip", str(step), "--output", str(stripped)).code == 0
    again, _, cfg = load_model(Checkpoint(stripped))
    idx = torch.randint(model.vocab_size, (2, cfg.data.block_size))
    assert torch.equal(model.eval()(idx)[0], again.eval()(idx)[0])
    assert model.n_params() == again.n_params() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_run_starts_from_its_weights(preset: str, cli: Cli) -> None:
    first = cli(*overrides(preset, "trainer.steps=2"))
    then = cli(*RUN, f"init_from={first.folder}", "trainer.steps=0")
    assert then.code == 0, then.err
    final = [json.loads((run.folder / "summary.json").read_text("utf-8"))["final"] for run in (first, then)]
    assert final[0] == final[1]


ON_COUNTS = (*RUN, "model=gpt", *small("gpt"), "model.ngram_order=3")


def tables(folder: Path) -> dict[str, torch.Tensor]:
    """What the newest checkpoint of a run has counted."""
    newest = Checkpoints(folder / "checkpoints").newest()
    assert newest is not None
    return {name: value for name, value in load_model(newest)[0].state_dict().items() if is_counted(name)}


def test_what_is_counted_is_of_the_text_that_is_trained_on(cli: Cli, tmp_path: Path) -> None:
    """With weights from elsewhere too; and a resumed run goes on with another text only where that is asked for."""
    first = cli(*ON_COUNTS)
    assert first.code == 0, first.err
    text = tmp_path / "other.txt"
    text.write_text(paths.bundled_text().read_text("utf-8")[::-1], "utf-8")
    other = ("data=text", f"data.path={text}")
    anew = cli(*ON_COUNTS, *other)
    then = cli(*RUN, *other, f"init_from={first.folder}", "trainer.steps=1")
    assert then.code == 0, then.err
    assert tables(then.folder).keys() == tables(first.folder).keys()
    assert all(torch.equal(value, tables(anew.folder)[name]) for name, value in tables(then.folder).items())
    assert any(not torch.equal(value, tables(first.folder)[name]) for name, value in tables(then.folder).items())

    text.write_text(paths.bundled_text().read_text("utf-8"), "utf-8")
    ended = resumed(cli, anew.folder, f"data.path={text}", "trainer.steps=9")
    assert ended.code == 0, ended.err
    assert all(torch.equal(value, tables(first.folder)[name]) for name, value in tables(anew.folder).items())


@pytest.mark.parametrize("order", [0, 2, 4])
def test_weights_from_elsewhere_stand_on_any_order(order: int, cli: Cli) -> None:
    first = cli(*ON_COUNTS, "trainer.steps=1")
    then = cli(*RUN, f"init_from={first.folder}", f"model.ngram_order={order}", "trainer.steps=1")
    assert then.code == 0, then.err
    assert "is model.ngram_order as it was?" in then.err


def test_a_counted_run_needs_no_warmup(cli: Cli) -> None:
    assert cli(*RUN, "model=ngram", "optim.warmup_steps=100").code == 0


def test_a_counted_run_says_that_there_is_nothing_to_go_on_with(cli: Cli) -> None:
    run = cli(*RUN, "model=ngram")
    ended = resumed(cli, run.folder, "trainer.steps=10")
    assert ended.code == 2
    assert "is complete: model=ngram is counted, and takes no steps" in ended.err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_step_with_muon_is_the_same_step(cli: Cli) -> None:
    one = (*RUN, "model=gpt", *small("gpt"), "model.zero_init=false", "optim=muon", "trainer.steps=2")
    runs = [cli(*one), cli(*one, "device.compile=true")]
    assert "does not compile" not in runs[1].err
    weights = [load_model(Checkpoint(run.folder / "checkpoints" / "step_2"))[0].state_dict() for run in runs]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "ngram"])
def test_accumulation_is_the_update_of_the_whole_batch(preset: str, cli: Cli) -> None:
    one = [*RUN, f"model={preset}", *small(preset), "trainer.steps=1", "optim=sgd"]
    if preset in gpts():
        one.append("model.dropout=0")
    whole = cli(*one, "data.batch_size=8")
    parts = cli(*one, "data.batch_size=2", "trainer.grad_accumulation=4")
    weights = [load_model(Checkpoint(run.folder / "checkpoints" / "step_1"))[0].state_dict() for run in (whole, parts)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
    fresh = load_model(Checkpoint(whole.folder / "checkpoints" / "step_0"))[0].state_dict()
    assert any(not torch.equal(fresh[name], value) for name, value in weights[0].items())


def test_the_ladder_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """At full size, for two steps: all rungs but gpt2, whose size is not for a laptop."""
    cut = ("trainer.steps=2", "optim.warmup_steps=0", "trainer.eval_batches=1", "data.train_fraction=0.98")
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = cli("-m", "experiment=ladder", "data=bundled", "logger=none", *cut, sweep, run_dir=False)
    assert ended.code == 0, ended.err
    rows = {row["model"]: row for row in table(tmp_path / "sweep")}
    assert set(rows) == set(PRESETS) - {"gpt2"}
    for name, row in rows.items():
        assert row["status"] == "completed"
        assert int(row["n_params"]) > 0, name
        assert float(row["val/bpc"]) == pytest.approx(float(row["val/loss"]) / 0.693147, rel=1e-4), name
        assert float(row["seconds"]) > 0, name
    shown = [line.removeprefix("*").split() for line in ended.out.splitlines() if line.strip("* ")[:1].isdigit()]
    for _, name, n_params, val, bpc, seconds, *_ in shown[1:]:
        row = rows[name]
        assert int(n_params.replace(",", "")) == int(row["n_params"])
        assert val == f"{float(row['val/loss']):.4f}"
        assert bpc == f"{float(row['val/bpc']):.3f}"
        assert seconds == f"{float(row['seconds']):.1f}"
    head = next(line for line in ended.out.splitlines() if "params" in line)
    assert head.split() == ["job", "model", "params", "val", "bpc", "s", "sample"]
    as_usual = ended.out.replace(str(tmp_path / "sweep"), "outputs/sweeps/2026-11-24_14-15-02-334871")
    assert max(len(line) for line in as_usual.splitlines() if not line.startswith("A page: ")) <= 80, "but for a path"
    page = (tmp_path / "sweep" / "results.md").read_text("utf-8")
    assert re.search(r"\| model \| status \| params \| val \| bpc \| .* \| sample \|", page)


def test_the_ladder_without_m_is_one_run(cli: Cli) -> None:
    ended = cli("experiment=ladder", "data=bundled", "logger=none", "trainer.steps=0", "model=attention")
    assert ended.code == 0, ended.err
    assert run_config("experiment=ladder").model.name == "bigram"
