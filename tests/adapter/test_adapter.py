"""LoRA in runs: training, files, merging, resuming, and a base that has moved."""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import checkpoint as checkpoint_tool
from bigramlm.cli import runs as runs_command
from bigramlm.cli import sample
from bigramlm.cli.verify_resume import compare
from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.model.base import LanguageModel
from bigramlm.runs import find as runs
from bigramlm.trainer.trainer import Trainer
from tests.helpers import (
    LINUX,
    TIMEOUT,
    Cli,
    Ended,
    assert_refused,
    crashed_copy,
    resumed,
    summary,
    verified,
)

SHORT = ("data=bundled", "logger=none", "trainer.eval_batches=1", "sample.max_new_tokens=5", "data.batch_size=4")
# A model with GPT-2's computation, which transformers can load.
SMALL = ("model=nanogpt", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.bias=true")
STEPS = ("trainer.steps=6", "trainer.eval_every=3", "optim.lr=0.1")
BASE = (*SHORT, *SMALL, "data.block_size=16", "trainer.steps=10")
LORA = (*SHORT, *STEPS, "adapter=lora", "adapter.r=2")
VARIANTS = {"lora": [], "dora": ["adapter.use_dora=true"], "rslora": ["adapter.use_rslora=true", "adapter.dropout=0.1"]}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs that several tests read."""
    return tmp_path_factory.mktemp("shared")


def train_once(cli: Cli, folder: Path, *overrides: str) -> Path:
    """Return the run in this folder, trained by the first test that uses it."""
    if not folder.exists():
        ended = cli(*overrides, f"hydra.run.dir={folder}", run_dir=False)
        assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def base(cli: Cli, shared: Path) -> Path:
    """Return the run of a trained GPT, which tests only read and adapt."""
    return train_once(cli, shared / "base", *BASE)


@pytest.fixture
def run(cli: Cli, shared: Path, base: Path, request: pytest.FixtureRequest) -> Path:
    """Return an adapted run, by default of the variant lora, which tests only read."""
    variant = getattr(request, "param", "lora")
    return train_once(
        cli, shared / variant, *LORA, f"init_from={base}", "trainer.keep_checkpoints=9", *VARIANTS[variant]
    )


def adapted(cli: Cli, base: Path | str, *overrides: str) -> Ended:
    run = cli(*SHORT, *STEPS, f"init_from={base}", "adapter=lora", "adapter.r=2", *overrides)
    assert run.code == 0, run.err
    return run


def model_of(folder: Path, which: str = "last", base: str | None = None) -> LanguageModel:
    return load_model(open_checkpoint(str(folder), which), base)[0].eval()


def tokens(model: LanguageModel) -> torch.Tensor:
    return torch.randint(model.vocab_size, (3, model.block_size), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any, idx: torch.Tensor) -> torch.Tensor:
    out = model(idx)
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out.logits
    return found


def final(folder: Path) -> float:
    content: Any = summary(folder)
    return float(content["final"]["val/loss"])


@pytest.mark.parametrize("run", VARIANTS, indirect=True)
def test_adapter_starts_as_its_base_and_merges_without_changing_logits(
    tool: Cli, base: Path, run: Path, tmp_path: Path
) -> None:
    before, first, last = model_of(base), model_of(run, "0"), model_of(run)
    idx = tokens(before)
    assert torch.equal(logits(first, idx), logits(before, idx))
    assert not torch.allclose(logits(last, idx), logits(before, idx), atol=0.1)

    merged = tool(checkpoint_tool.main, "merge", str(run), str(tmp_path / "merged"))
    assert merged.code == 0, merged.err
    assert re.search(r"\blogits\b.* \d\.\de-\d\d\b", merged.out), "the difference of the logits must be reported"
    merged_model = model_of(tmp_path / "merged")
    difference = (logits(merged_model, idx) - logits(last, idx)).abs().max() / logits(last, idx).abs().max()
    assert 0 < difference <= 1e-5
    assert merged_model.state_dict().keys() == before.state_dict().keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_exactly_the_adapter_is_trained(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    changed: dict[str, bool] = {}
    fit = Trainer.fit

    def recording_fit(trainer: Trainer, metrics: Any) -> Any:
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        result = fit(trainer, metrics)
        for name, parameter in trainer.model.named_parameters():
            changed[name] = not torch.equal(parameter, before[name])
        return result

    monkeypatch.setattr(Trainer, "fit", recording_fit)
    adapted(cli, base, *VARIANTS[variant], "trainer.steps=2", "trainer.eval_every=2")
    lora = {name for name in changed if "lora_" in name}
    assert len(lora) == 2 * 4 * (3 if variant == "dora" else 2)  # blocks, layers per block, matrices per layer
    assert {name for name, is_changed in changed.items() if is_changed} == lora


def test_checkpoint_contains_only_the_adapter_in_files_that_peft_loads(cli: Cli, base: Path) -> None:
    run = adapted(cli, base, "adapter.dropout=0.25", "trainer.steps=2")
    step = run.folder / "checkpoints" / "step_2"
    assert {path.name for path in step.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "base.json", "training.safetensors"),
        *("state.json", "tokenizer.json", "config.yaml", "manifest.json"),
    }
    assert all("lora_" in name for name in load_file(step / "adapter_model.safetensors"))
    assert not any("base_layer" in name for name in load_file(step / "training.safetensors"))
    base_json = json.loads((step / "base.json").read_text("utf-8"))
    assert Path(base_json["place"]) == base / "checkpoints" / "step_10"
    assert base_json["sha256"] == Checkpoint(Path(base_json["place"])).manifest["files"]["model.safetensors"]["sha256"]

    config = peft.PeftConfig.from_pretrained(str(step))
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 16, 0.25)
    assert (config.use_dora, config.use_rslora, config.base_model_name_or_path) == (False, False, base_json["place"])

    model = model_of(run.folder)
    loaded = peft.PeftModel.from_pretrained(model_of(base), str(step)).eval()
    assert torch.equal(logits(loaded, tokens(model)), logits(model, tokens(model)))


@pytest.mark.parametrize("run", VARIANTS, indirect=True)
def test_exports_have_the_same_logits_in_transformers(tool: Cli, base: Path, run: Path, tmp_path: Path) -> None:
    for source, folder, flags in ((base, "base", []), (run, "adapter", ["--adapter"]), (run, "all", [])):
        done = tool(checkpoint_tool.main, "export", str(source), str(tmp_path / folder), *flags)
        assert done.code == 0, done.err
    expected = model_of(run)
    idx = tokens(expected)
    exported_base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with_adapter = peft.PeftModel.from_pretrained(exported_base, str(tmp_path / "adapter")).eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "all").eval()
    for model in (with_adapter, merged):
        assert torch.allclose(logits(model, idx), logits(expected, idx), atol=1e-4)


def test_adapted_and_frozen_layers_are_logged_before_training(cli: Cli, tool: Cli, base: Path) -> None:
    run = adapted(cli, base, "adapter.targets=[c_attn,h.0.mlp.c_fc]", "adapter.alpha=3", "trainer.steps=0")
    logged = run.err[: run.err.index("step 0/0")]
    for line in (
        "adapter: lora, rank 2, scale 1.5",
        "adapted: h.*.attn.c_attn (2), h.*.mlp.c_fc (1)",
        "frozen: wte, wpe, h.*.ln_1 (2), h.*.attn.c_proj (2), h.*.ln_2 (2), h.*.mlp.c_proj (2)",
        "tied: lm_head and wte are one matrix",
    ):
        assert line in logged
    n = 2 * 2 * (16 + 48) + 2 * (16 + 64)
    total = sum(p.numel() for p in model_of(base).parameters())
    assert f"trained: {n} of {total:,} parameters ({n / total:.2%})" in logged
    content = summary(run.folder)
    assert (content["n_params"], content["n_params_total"]) == (n, total)
    inspected = tool(checkpoint_tool.main, "inspect", str(run.folder))
    assert re.search(r"^adapter .*\br=2 alpha=3\.0\b", inspected.out, re.M), inspected.out
    assert re.search(rf"^base +{base}/checkpoints/step_10\b", inspected.out, re.M), inspected.out


def test_untied_head_and_embedding_can_be_adapted_and_merged(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    small = ("model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "data.block_size=16")
    first = cli(*SHORT, *small, "trainer.steps=3")
    run = adapted(cli, first.folder, "adapter.targets=[wte,lm_head,all-linear]")
    before, after = model_of(first.folder), model_of(run.folder)
    assert not torch.allclose(logits(after, tokens(after)), logits(before, tokens(after)), atol=0.1)
    done = tool(checkpoint_tool.main, "merge", str(run.folder), str(tmp_path / "merged"))
    assert done.code == 0, done.err
    refused = tool(checkpoint_tool.main, "merge", str(run.folder), str(tmp_path / "step_9"))
    assert_refused(refused, tmp_path / "step_9")
    assert not (tmp_path / "step_9").exists()
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"), "--adapter")
    assert_refused(refused, run.folder, "model.position=rotary")
    assert not (tmp_path / "out").exists()


# The variants include dropout, whose random state must be restored.
EXACT = (*LORA, *VARIANTS["dora"], *VARIANTS["rslora"], "trainer.steps=8", "trainer.log_every=1")


def test_resume_is_exact(cli: Cli, base: Path, tmp_path: Path) -> None:
    often = ("trainer.checkpoint_every=4", "trainer.keep_checkpoints=99")
    whole = cli(*EXACT, *often, f"init_from={base}")
    assert whole.code == 0, whole.err
    run = crashed_copy(whole.folder, tmp_path / "cut", 4)
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert compare(whole.folder, run) is None


def import_peft() -> None:
    """Import peft before runs are forked, as a side effect of importing this module."""


@pytest.mark.slow
@LINUX
def test_resume_is_exact_after_a_kill(base: Path) -> None:
    done = verified(*EXACT, f"init_from={base}", setup=import_peft)
    assert done.out == "bit-equal: a run of 8 steps, and the same run killed at step 4 and resumed\n", done.err


def test_run_initialised_from_an_adapted_run_starts_at_its_loss(cli: Cli, base: Path, run: Path) -> None:
    full = cli(*SHORT, f"init_from={run}", "trainer.steps=0")
    assert final(full.folder) == pytest.approx(final(run), rel=1e-5)
    assert "lora" not in " ".join(model_of(full.folder).state_dict())
    second = adapted(cli, run, "trainer.steps=0")  # an adapter on an adapted model
    assert final(second.folder) == pytest.approx(final(run), rel=1e-5)
    trained = adapted(cli, second.folder, "trainer.steps=2")
    longer = resumed(cli, trained.folder, "trainer.steps=3")
    assert longer.code == 0, longer.err


@pytest.fixture
def base_and_run(cli: Cli, base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a base and an adapted run of it, for a test to change and to move."""
    copy = Path(shutil.copytree(base, tmp_path / "base"))
    return copy, adapted(cli, copy).folder


def test_moved_base_is_found_with_an_override(
    cli: Cli, tool: Cli, base_and_run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, run = base_and_run
    sampled = tool(sample.main, f"run={run}", "max_new_tokens=20")
    text, n_params = sampled.out, sampled.err.split()[-2].replace(",", "")
    assert int(n_params) > int(str(summary(base)["n_params"])), "the parameters of the base must be included"
    moved = base.rename(tmp_path / "moved")
    for command in (
        lambda *more: tool(sample.main, f"run={run}", "max_new_tokens=20", *more),
        lambda *more: cli(*SHORT, f"init_from={run}", "trainer.steps=0", *more),
        lambda *more: resumed(cli, run, "trainer.steps=8", *more),
    ):
        assert_refused(command(), run, base, "base=PLACE", "--base PLACE")
        done = command(f"base={moved}")
        assert done.code == 0, done.err
    # The resumed run has recorded the new location.
    assert tool(sample.main, f"run={run}", "checkpoint=8").code == 0
    merge = ("merge", str(run / "checkpoints" / "step_6"), str(tmp_path / "merged"))
    assert_refused(tool(checkpoint_tool.main, *merge), base, "--base PLACE")
    done = tool(checkpoint_tool.main, *merge, "--base", str(moved))
    assert done.code == 0, done.err
    assert tool(sample.main, f"run={tmp_path / 'merged'}", "max_new_tokens=20").out == text


def test_moved_base_of_a_base_is_found_with_an_override(
    cli: Cli, tool: Cli, base_and_run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, first = base_and_run
    second = adapted(cli, first).folder
    text = tool(sample.main, f"run={second}", "max_new_tokens=20").out
    moved = base.rename(tmp_path / "moved")
    assert_refused(tool(sample.main, f"run={second}"), base, "base=PLACE")
    assert tool(sample.main, f"run={second}", f"base={moved}", "max_new_tokens=20").out == text
    longer = resumed(cli, second, "trainer.steps=8", f"base={moved}")
    assert longer.code == 0, longer.err
    content: Any = summary(second)
    assert content["base"]["place"].startswith(str(first))


def test_base_checkpoint_is_kept_when_its_run_resumes(cli: Cli, tool: Cli, base_and_run: tuple[Path, Path]) -> None:
    base, run = base_and_run
    text = tool(sample.main, f"run={run}").out
    longer = resumed(cli, base, "trainer.steps=20", "trainer.keep_checkpoints=1", "trainer.eval_every=5")
    assert longer.code == 0, longer.err
    assert {path.name for path in (base / "checkpoints").glob("step_*")} >= {"step_10", "step_10.kept", "step_20"}
    assert tool(sample.main, f"run={run}").out == text
    assert str(run) in (base / "checkpoints" / "step_10.kept").read_text("utf-8")


def test_resume_cannot_change_the_adapter(cli: Cli, run: Path, tmp_path: Path) -> None:
    for override in ("adapter.r=4", "adapter.alpha=3", "adapter.use_rslora=true", "adapter=none", "from_scratch=true"):
        assert_refused(resumed(cli, run, "trainer.steps=8", override), override)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    longer = resumed(cli, copy, "trainer.steps=8", "adapter.dropout=0.1")
    assert longer.code == 0, longer.err


def test_sweep_resumes_with_a_moved_base(cli: Cli, base: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    base = Path(shutil.copytree(base, tmp_path / "base"))
    command = ("-m", "seed=1,2", *LORA, f"init_from={base}", "trainer.steps=2")
    done = cli(*command, f"hydra.sweep.dir={sweep}", run_dir=False)
    assert done.code == 0, done.err
    asked = summary(sweep / "0")["asked"]
    (sweep / "1" / "summary.json").write_text(json.dumps({**summary(sweep / "1"), "status": "stopped"}), "utf-8")
    shutil.copytree(base, tmp_path / "moved")
    (base / "checkpoints" / "step_10").rename(base / "checkpoints" / "gone")
    resumed_sweep = cli(*command, f"sweep={sweep}", f"base={tmp_path / 'moved'}", run_dir=False)
    assert resumed_sweep.code == 0, resumed_sweep.err
    assert "2 jobs: 2 completed" in resumed_sweep.out
    content: Any = summary(sweep / "1")
    assert content["base"]["place"].startswith(str(tmp_path / "moved"))
    assert content["asked"] is not None, "the run must remain a job of the sweep"
    assert summary(sweep / "0")["asked"] == asked


def test_base_that_moves_together_with_its_adapter_is_found(
    tool: Cli, base_and_run: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    _, moved_run = (folder.rename(tmp_path / "elsewhere" / folder.name) for folder in base_and_run)
    assert tool(sample.main, f"run={moved_run}", "max_new_tokens=5").code == 0


def test_init_from_is_resolved_before_the_first_job(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    base = Path(shutil.copytree(base, outputs / "base"))
    monkeypatch.chdir(outputs)
    sweep = outputs / "sweep"
    monkeypatch.setattr(runs, "outputs", lambda: outputs)  # the sweep's jobs are in it too
    for source in ("latest", base.name):
        done = cli(
            *("-m", "experiment=finetune,finetune_lora", f"init_from={source}", *SHORT, "trainer.steps=0"),
            *("optim.warmup_steps=0", f"hydra.sweep.dir={sweep / source}"),
            run_dir=False,
        )
        assert done.code == 0, done.err
        for job in "01":
            config = (sweep / source / job / "config.yaml").read_text("utf-8")
            assert f"init_from: {base}/checkpoints/step_10" in config


def test_base_with_another_hash_is_refused(cli: Cli, tool: Cli, base: Path, run: Path) -> None:
    other = cli(*BASE, "trainer.steps=1", "seed=2").folder
    hashes = (open_checkpoint(str(folder)).sha256[:12] for folder in (base, other))
    refused = tool(sample.main, f"run={run}", f"base={other}")
    assert_refused(refused, run, other, *hashes, "base=PLACE")
    assert_refused(tool(sample.main, f"run={base}", f"base={other}"), base, field="base", value=other)


@pytest.mark.parametrize(
    ("adapter", "imported"),
    [("none", "[]"), pytest.param("lora", "['peft', 'transformers']", marks=pytest.mark.slow)],
)
def test_peft_is_imported_for_an_adapter_only(base: Path, tmp_path: Path, adapter: str, imported: str) -> None:
    code = (
        "import sys; from bigramlm.cli import train\n"
        "try: train.main()\nfinally: print([m for m in ('peft', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    arguments = [*SHORT, f"init_from={base}", "trainer.steps=0", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, f"adapter={adapter}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == imported


def test_damaged_adapter_is_refused(tool: Cli, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / "checkpoints" / "step_6" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert tool(checkpoint_tool.main, "verify", str(copy)).code == 2
    assert_refused(tool(sample.main, f"run={file.parent}"), file)


def test_stripped_adapter_can_be_sampled_from(tool: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "stripped"
    assert tool(checkpoint_tool.main, "strip", str(run / "checkpoints/best"), "--output", str(out)).code == 0
    assert not (out / "training.safetensors").exists()
    assert tool(sample.main, f"run={out}").code == 0


def test_adapter_trains_with_muon(cli: Cli, base: Path) -> None:
    assert final(adapted(cli, base, "optim=muon").folder) != final(base)


def assert_same_loss(cli: Cli, base: Path, *overrides: str) -> None:
    """Check that the first override does not change the loss of an adapted run."""
    run, plain = (adapted(cli, base, "optim.lr=0.02", *given) for given in (overrides, overrides[1:]))
    assert "does not compile" not in run.err
    assert final(run.folder) != final(base)
    assert final(run.folder) == pytest.approx(final(plain.folder), abs=1e-3)


def test_adapter_trains_with_activation_checkpointing(cli: Cli, base: Path) -> None:
    assert_same_loss(cli, base, "trainer.activation_checkpointing=true")


def test_adapter_trains_with_the_eager_compiler_backend(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step is traced, which an adapter could prevent."""
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    assert_same_loss(cli, base, "device.compile=true", "trainer.steps=2")


@pytest.mark.slow
def test_adapter_trains_compiled(cli: Cli, base: Path) -> None:
    assert_same_loss(cli, base, "device.compile=true")


def test_adapter_outside_the_blocks_can_only_be_exported_merged(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    first = cli(*SHORT, *SMALL, "model.tie_weights=false", "data.block_size=16", "trainer.steps=3")
    run = adapted(cli, first.folder, "adapter.targets=[lm_head,c_attn]")
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"), "--adapter")
    assert_refused(refused, run.folder, "lm_head", "--adapter")
    assert not (tmp_path / "out").exists()
    assert tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out")).code == 0
    model, exported = model_of(run.folder), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(exported, tokens(model)), logits(model, tokens(model)), atol=1e-4)


def test_sweep_over_scratch_full_and_lora_has_a_table_and_a_report(
    cli: Cli, tool: Cli, base: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    done = cli(
        *("-m", "experiment=finetune_scratch,finetune,finetune_lora", f"init_from={base}", *SHORT),
        *("trainer.steps=4", "trainer.eval_every=2", "optim.warmup_steps=1", f"hydra.sweep.dir={sweep}"),
        run_dir=False,
    )
    assert done.code == 0, done.err
    assert "3 jobs: 3 completed" in done.out
    for name in ("finetune_scratch", "finetune", "finetune_lora"):
        assert f"  {name}  " in done.out
    summaries: Any = [summary(sweep / str(n)) for n in range(3)]
    scratch, full, lora = summaries
    assert scratch["n_params"] == full["n_params"] > lora["n_params"]
    assert scratch["final"]["val/loss"] > full["final"]["val/loss"]
    page = tmp_path / "page.html"
    assert tool(runs_command.main, "report", str(sweep), "--output", str(page)).code == 0
    assert "finetune_lora" in page.read_text("utf-8")


def test_run_from_before_adapters_existed_can_be_resumed(cli: Cli, base: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(base, tmp_path / "old"))
    config = old / "config.yaml"
    before = config.read_text("utf-8")
    start = before.index("adapter:\n")
    config.write_text(before[:start] + before[before.index("tokenizer:") :], "utf-8")
    assert "adapter" not in config.read_text("utf-8")
    longer = resumed(cli, old, "trainer.steps=12")
    assert longer.code == 0, longer.err
