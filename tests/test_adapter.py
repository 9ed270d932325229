"""LoRA: what it leaves alone and what it learns, its files, merging, and what is refused."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from bigramlm import checkpoint_tool, paths, runs, sample
from bigramlm.adapter.config import LoRAConfig
from bigramlm.checkpoint import Checkpoint
from bigramlm.errors import UserError
from bigramlm.load import load_model, open_checkpoint
from bigramlm.model.base import LanguageModel
from bigramlm.model.config import BigramConfig, GPTConfig
from bigramlm.trainer import Trainer
from tests.helpers import LINUX, Cli, Ended, run_config, verified

SHORT = ("data=bundled", "logger=none", "trainer.eval_batches=1", "sample.max_new_tokens=5", "data.batch_size=4")
# GPT-2's computation, untied here and tied there.
SMALL = ("model=nanogpt", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.bias=true")
STEPS = ("trainer.steps=6", "trainer.eval_every=3", "optim.lr=0.1")
VARIANTS = {"lora": [], "dora": ["adapter.use_dora=true"], "rslora": ["adapter.use_rslora=true", "adapter.dropout=0.1"]}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture
def base(cli: Cli) -> Path:
    """A GPT of our own, trained before."""
    run = cli(*SHORT, *SMALL, "data.block_size=16", "trainer.steps=10")
    assert run.code == 0, run.err
    return run.folder


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
    return float(json.loads((folder / "summary.json").read_text("utf-8"))["final"]["val/loss"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_as_its_base_and_merges_into_what_it_has_become(
    cli: Cli, tool: Cli, base: Path, tmp_path: Path, variant: str
) -> None:
    run = adapted(cli, base, *VARIANTS[variant], "trainer.keep_checkpoints=9")
    before, first, last = model_of(base), model_of(run.folder, "0"), model_of(run.folder)
    idx = tokens(before)
    assert torch.equal(logits(first, idx), logits(before, idx))
    assert not torch.allclose(logits(last, idx), logits(before, idx), atol=0.1)

    merged = tool(checkpoint_tool.main, "merge", str(run.folder), str(tmp_path / "merged"))
    assert merged.code == 0, merged.err
    assert "logits the same to" in merged.out
    together = model_of(tmp_path / "merged")
    apart = (logits(together, idx) - logits(last, idx)).abs().max() / logits(last, idx).abs().max()
    assert 0 < apart <= 1e-5
    assert together.state_dict().keys() == before.state_dict().keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_frozen_stays_to_the_bit_and_all_of_the_adapter_is_trained(
    cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    changed: dict[str, bool] = {}
    fit = Trainer.fit

    def watched(trainer: Trainer, metrics: Any) -> None:
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        fit(trainer, metrics)
        for name, parameter in trainer.model.named_parameters():
            changed[name] = not torch.equal(parameter, before[name])

    monkeypatch.setattr(Trainer, "fit", watched)
    adapted(cli, base, *VARIANTS[variant])
    ours = {name for name in changed if "lora_" in name}
    assert len(ours) == 2 * 4 * (3 if variant == "dora" else 2)  # blocks, layers in each, matrices beside each
    assert {name for name, is_changed in changed.items() if is_changed} == ours


def test_a_checkpoint_holds_the_adapter_alone_in_files_that_peft_loads(cli: Cli, base: Path) -> None:
    run = adapted(cli, base, "adapter.dropout=0.25")
    step = run.folder / "checkpoints" / "step_6"
    assert {path.name for path in step.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "base.json", "training.safetensors"),
        *("state.json", "tokenizer.json", "config.yaml", "manifest.json"),
    }
    assert all("lora_" in name for name in load_file(step / "adapter_model.safetensors"))
    assert not any("base_layer" in name for name in load_file(step / "training.safetensors"))
    told = json.loads((step / "base.json").read_text("utf-8"))
    assert Path(told["place"]) == base / "checkpoints" / "step_10"
    assert told["sha256"] == Checkpoint(Path(told["place"])).manifest["files"]["model.safetensors"]["sha256"]

    config = peft.PeftConfig.from_pretrained(str(step))
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 16, 0.25)
    assert (config.use_dora, config.use_rslora, config.base_model_name_or_path) == (False, False, told["place"])

    ours = model_of(run.folder)
    loaded = peft.PeftModel.from_pretrained(model_of(base), str(step)).eval()
    assert torch.equal(logits(loaded, tokens(ours)), logits(ours, tokens(ours)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_alone_it_is_loaded_beside_the_base_in_transformers(
    cli: Cli, tool: Cli, base: Path, tmp_path: Path, variant: str
) -> None:
    run = adapted(cli, base, *VARIANTS[variant])
    for where, folder, flags in ((base, "base", []), (run.folder, "adapter", ["--adapter"]), (run.folder, "all", [])):
        done = tool(checkpoint_tool.main, "export", str(where), str(tmp_path / folder), *flags)
        assert done.code == 0, done.err
    ours = model_of(run.folder)
    idx = tokens(ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    beside = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "all").eval()
    for model in (beside, whole):
        assert torch.allclose(logits(model, idx), logits(ours, idx), atol=1e-4)


def test_what_is_adapted_and_what_is_not_is_told_before_training(cli: Cli, base: Path) -> None:
    run = adapted(cli, base, "adapter.targets=[c_attn,h.0.mlp.c_fc]", "adapter.alpha=3")
    told = run.err[: run.err.index("step 0/6")]
    for line in (
        "adapter: lora, rank 2, scale 1.5",
        "adapted: h.*.attn.c_attn (2), h.*.mlp.c_fc (1)",
        "frozen: wte, wpe, h.*.ln_1 (2), h.*.attn.c_proj (2), h.*.ln_2 (2), h.*.mlp.c_proj (2)",
        "tied: lm_head and wte are one matrix",
    ):
        assert line in told
    n = 2 * 2 * (16 + 48) + 2 * (16 + 64)
    total = sum(p.numel() for p in model_of(base).parameters())
    assert f"trained: {n} of {total:,} parameters ({n / total:.2%})" in told
    summary = json.loads((run.folder / "summary.json").read_text("utf-8"))
    assert (summary["n_params"], summary["n_params_total"]) == (n, total)
    inspected = checkpoint_tool._adapter_facts(
        open_checkpoint(str(run.folder)), load_model(open_checkpoint(str(run.folder)))[2]
    )
    assert "r=2 alpha=3.0" in inspected["adapter"]
    assert "not in it" in inspected["base"]


def test_an_untied_head_and_embedding_can_be_adapted_and_merged(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    small = ("model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "data.block_size=16")
    first = cli(*SHORT, *small, "trainer.steps=3")
    run = adapted(cli, first.folder, "adapter.targets=[wte,lm_head,all-linear]")
    before, after = model_of(first.folder), model_of(run.folder)
    assert not torch.allclose(logits(after, tokens(after)), logits(before, tokens(after)), atol=0.1)
    done = tool(checkpoint_tool.main, "merge", str(run.folder), str(tmp_path / "merged"))
    assert done.code == 0, done.err
    refused = tool(checkpoint_tool.main, "merge", str(run.folder), str(tmp_path / "step_9"))
    assert (refused.code, (tmp_path / "step_9").exists()) == (2, False)
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"), "--adapter")
    assert (refused.code, (tmp_path / "out").exists()) == (2, False)
    assert "model.position=rotary" in refused.err


@LINUX
def test_resume_is_exact(base: Path) -> None:
    every = [*VARIANTS["dora"], *VARIANTS["rslora"]]  # dropout, which draws at random, among them
    done = verified(*SHORT, f"init_from={base}", "adapter=lora", "adapter.r=2", "trainer.steps=8", *every)
    assert done.stdout == "bit-equal: 8 steps, and 4, a kill, and 4 more\n", done.stderr


def test_a_run_from_an_adapted_one_starts_where_that_ended(cli: Cli, base: Path) -> None:
    run = adapted(cli, base)
    full = cli(*SHORT, f"init_from={run.folder}", "trainer.steps=0")
    assert final(full.folder) == pytest.approx(final(run.folder), rel=1e-5)
    assert "lora" not in " ".join(model_of(full.folder).state_dict())
    second = adapted(cli, run.folder, "trainer.steps=0")  # an adapter beside an adapted model
    assert final(second.folder) == pytest.approx(final(run.folder), rel=1e-5)
    trained = adapted(cli, second.folder)
    again = cli(f"resume={trained.folder}", "trainer.steps=8", run_dir=False)
    assert again.code == 0, again.err


def test_a_base_that_has_moved(cli: Cli, tool: Cli, base: Path, tmp_path: Path) -> None:
    run = adapted(cli, base)
    told = tool(sample.main, f"run={run.folder}", "max_new_tokens=20").out
    moved = base.rename(tmp_path / "moved")
    for command in (
        lambda *more: tool(sample.main, f"run={run.folder}", "max_new_tokens=20", *more),
        lambda *more: cli(*SHORT, f"init_from={run.folder}", "trainer.steps=0", *more),
        lambda *more: cli(f"resume={run.folder}", "trainer.steps=8", *more, run_dir=False),
    ):
        refused = command()
        assert refused.code == 2
        assert "holds an adapter alone, and its base is not at" in refused.err
        assert "say where that one is (base=PLACE, or --base PLACE of checkpoint.py)" in refused.err
        done = command(f"base={moved}")
        assert done.code == 0, done.err
    # The run that went on knows where it is now.
    assert tool(sample.main, f"run={run.folder}", "checkpoint=8").code == 0
    assert (
        tool(checkpoint_tool.main, "merge", str(run.folder / "checkpoints" / "step_6"), str(tmp_path / "m")).code == 2
    )
    given = ["--base", str(moved)]
    done = tool(checkpoint_tool.main, "merge", str(run.folder / "checkpoints" / "step_6"), str(tmp_path / "m"), *given)
    assert done.code == 0, done.err
    assert tool(sample.main, f"run={tmp_path / 'm'}", "max_new_tokens=20").out == told


def test_a_base_of_a_base_that_has_moved(cli: Cli, tool: Cli, base: Path, tmp_path: Path) -> None:
    first = adapted(cli, base)
    second = adapted(cli, first.folder)
    told = tool(sample.main, f"run={second.folder}", "max_new_tokens=20").out
    moved = base.rename(tmp_path / "moved")
    assert tool(sample.main, f"run={second.folder}").code == 2
    assert tool(sample.main, f"run={second.folder}", f"base={moved}", "max_new_tokens=20").out == told
    again = cli(f"resume={second.folder}", "trainer.steps=8", f"base={moved}", run_dir=False)
    assert again.code == 0, again.err
    assert json.loads((second.folder / "summary.json").read_text("utf-8"))["base"]["place"].startswith(
        str(first.folder)
    )


def test_a_base_stays_when_its_own_run_goes_on(cli: Cli, tool: Cli, base: Path) -> None:
    run = adapted(cli, base)
    told = tool(sample.main, f"run={run.folder}").out
    on = cli(f"resume={base}", "trainer.steps=20", "trainer.keep_checkpoints=1", "trainer.eval_every=2", run_dir=False)
    assert on.code == 0, on.err
    assert {path.name for path in (base / "checkpoints").glob("step_*")} >= {"step_10", "step_10.kept", "step_20"}
    assert tool(sample.main, f"run={run.folder}").out == told
    assert str(run.folder) in (base / "checkpoints" / "step_10.kept").read_text("utf-8")


def test_an_adapter_goes_on_as_it_is(cli: Cli, base: Path) -> None:
    run = adapted(cli, base)
    for typed in ("adapter.r=4", "adapter.alpha=3", "adapter.use_rslora=true", "adapter=none", "from_scratch=true"):
        refused = cli(f"resume={run.folder}", "trainer.steps=8", typed, run_dir=False)
        assert refused.code == 2, typed
        assert typed in refused.err
    again = cli(f"resume={run.folder}", "trainer.steps=8", "adapter.dropout=0.1", run_dir=False)
    assert again.code == 0, again.err


def test_a_sweep_goes_on_with_a_base_that_has_moved(cli: Cli, base: Path, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    command = ("-m", "seed=1,2", "adapter=lora", f"init_from={base}", *SHORT, *STEPS)
    done = cli(*command, f"hydra.sweep.dir={place}", run_dir=False)
    assert done.code == 0, done.err
    asked = json.loads((place / "0" / "summary.json").read_text("utf-8"))["asked"]
    summary = place / "1" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text("utf-8")), "status": "stopped"}), "utf-8")
    shutil.copytree(base, tmp_path / "moved")
    (base / "checkpoints" / "step_10").rename(base / "checkpoints" / "gone")
    again = cli(*command, f"sweep={place}", f"base={tmp_path / 'moved'}", run_dir=False)
    assert again.code == 0, again.err
    assert "2 jobs: 2 completed" in again.out
    told = json.loads(summary.read_text("utf-8"))
    assert told["base"]["place"].startswith(str(tmp_path / "moved"))
    assert told["asked"] is not None, "it is still a job of the sweep"
    assert json.loads((place / "0" / "summary.json").read_text("utf-8"))["asked"] == asked


def test_a_base_that_moves_together_with_its_adapter_is_found(cli: Cli, tool: Cli, base: Path, tmp_path: Path) -> None:
    run = adapted(cli, base)
    (tmp_path / "elsewhere").mkdir()
    for folder in (base, run.folder):
        shutil.move(folder, tmp_path / "elsewhere" / folder.name)
    there = tmp_path / "elsewhere" / run.folder.name
    assert tool(sample.main, f"run={there}", "max_new_tokens=5").code == 0


def test_what_a_run_starts_from_is_settled_before_the_first_job(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    place = tmp_path / "sweep"
    monkeypatch.setattr(runs, "outputs", lambda: base.parent)  # in which the sweep's own jobs are too
    for where in ("latest", base.name):
        done = cli(
            *("-m", "experiment=finetune,finetune_lora", f"init_from={where}", *SHORT, "trainer.steps=0"),
            *("optim.warmup_steps=0", f"hydra.sweep.dir={place / where}"),
            run_dir=False,
        )
        assert done.code == 0, done.err
        for job in "01":
            said = (place / where / job / "config.yaml").read_text("utf-8")
            assert f"init_from: {base}/checkpoints/step_10" in said


def test_another_base_is_refused(cli: Cli, tool: Cli, base: Path) -> None:
    run = adapted(cli, base)
    other = cli(*SHORT, *SMALL, "data.block_size=16", "trainer.steps=10", "seed=2")
    refused = tool(sample.main, f"run={run.folder}", f"base={other.folder}")
    assert refused.code == 2
    assert "is not the base that the adapter in" in refused.err
    refused = tool(sample.main, f"run={base}", f"base={other.folder}")
    assert refused.code == 2
    assert "is for an adapter, and" in refused.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.targets=[query]"], "adapter.targets: query matches no layer of this model; there are: all-linear, "),
        (["adapter.targets=[query]"], "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj, lm_head"),
        (["adapter.targets=[c_attn,fc]"], "adapter.targets: fc matches no layer"),
        (["adapter.targets=[]"], "adapter.targets=[]: must name a layer"),
        (["adapter.targets=[lm_head]"], "lm_head and wte are one matrix (model.tie_weights=true), and merged"),
        (["adapter.targets=[wte]"], "wte and lm_head are one matrix (model.tie_weights=true), and merged"),
        (["adapter.r=17"], "adapter.r=17: above the rank that h.0.attn.c_attn can have, a matrix of 48 x 16; take 16"),
        (["adapter.r=0"], "adapter.r=0: must be 1 or more"),
        (["adapter.alpha=0"], "adapter.alpha=0.0: must be a finite number above 0"),
        (["adapter.dropout=1"], "adapter.dropout=1.0: must be 0 or more, and below 1"),
        (["from_scratch=true"], "adapter=lora: stands beside trained weights, and from_scratch=true draws fresh ones"),
    ],
)
def test_what_cannot_be_adapted_is_refused(cli: Cli, base: Path, overrides: list[str], message: str) -> None:
    refused = cli(*SHORT, f"init_from={base}", "adapter=lora", *overrides)
    assert refused.code == 2
    (error,) = [line for line in refused.err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not (refused.folder / "checkpoints").exists()


def test_fresh_weights_and_models_without_such_layers_are_refused(cli: Cli) -> None:
    refused = cli(*SHORT, *SMALL, "adapter=lora")
    assert refused.code == 2
    assert (
        "adapter=lora: stands beside trained weights, and fresh ones would be random; give init_from=RUN" in refused.err
    )
    bigram = cli(*SHORT, "trainer.steps=1")
    refused = cli(*SHORT, f"init_from={bigram.folder}", "adapter=lora")
    assert refused.code == 2
    assert "all-linear matches no layer of this model; there are: token_embedding_table" in refused.err
    counted = cli(*SHORT, *SMALL, "model.ngram_order=2", "trainer.steps=1")
    refused = cli(*SHORT, f"init_from={counted.folder}", "adapter=lora")
    assert refused.code == 2
    assert "adapter=lora with model.ngram_order=2: an n-gram is counted anew in every text" in refused.err


def test_the_extra_is_asked_for_before_anything_is_done(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    refused = cli(*SHORT, f"init_from={base}", "adapter=lora")
    assert refused.code == 2
    assert refused.err.startswith("error: adapter=lora: needs an extra that is not installed: pip install")
    assert len(refused.err.splitlines()) == 1


def test_peft_is_imported_where_it_is_chosen_only(cli: Cli, base: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from bigramlm import train\nsys.argv[1:] = sys.argv[2:]\n"
        "try: train.main()\nfinally: print([m for m in ('peft', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    for more, expected in (([], "[]"), (["adapter=lora"], "['peft', 'transformers']")):
        place = f"hydra.run.dir={tmp_path / str(len(more))}"
        arguments = [*SHORT, f"init_from={base}", "trainer.steps=0", place, *more]
        done = subprocess.run([sys.executable, "-c", code, "", *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == expected


def test_a_damaged_adapter_is_none(cli: Cli, tool: Cli, base: Path) -> None:
    run = adapted(cli, base)
    file = run.folder / "checkpoints" / "step_6" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert tool(checkpoint_tool.main, "verify", str(run.folder)).code == 2
    refused = tool(sample.main, f"run={file.parent}")
    assert refused.code == 2
    assert "adapter_model.safetensors: damaged" in refused.err


def test_a_stripped_adapter_can_be_sampled_from(cli: Cli, tool: Cli, base: Path, tmp_path: Path) -> None:
    run = adapted(cli, base)
    out = tmp_path / "stripped"
    assert tool(checkpoint_tool.main, "strip", str(run.folder / "checkpoints/best"), "--output", str(out)).code == 0
    assert not (out / "training.safetensors").exists()
    assert tool(sample.main, f"run={out}").code == 0


@pytest.mark.parametrize(
    "more",
    [
        ["optim=muon"],
        pytest.param(["device.compile=true"], marks=pytest.mark.slow),
        ["trainer.activation_checkpointing=true"],
    ],
)
def test_it_trains_with_what_else_there_is(cli: Cli, base: Path, more: list[str]) -> None:
    run = adapted(cli, base, "optim.lr=0.02", *more)
    assert "does not compile" not in run.err
    assert final(run.folder) != final(base)
    if more[0] != "optim=muon":
        plain = adapted(cli, base, "optim.lr=0.02")
        assert final(run.folder) == pytest.approx(final(plain.folder), abs=1e-3)


def test_what_stands_around_the_blocks_is_exported_merged_only(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    first = cli(*SHORT, *SMALL, "model.tie_weights=false", "data.block_size=16", "trainer.steps=3")
    run = adapted(cli, first.folder, "adapter.targets=[lm_head,c_attn]")
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"), "--adapter")
    assert (refused.code, (tmp_path / "out").exists()) == (2, False)
    assert "adapts lm_head too" in refused.err
    assert tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out")).code == 0
    ours, theirs = model_of(run.folder), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(theirs, tokens(ours)), logits(ours, tokens(ours)), atol=1e-4)


def test_flops_of_frozen_matrices_are_a_third_less() -> None:
    model = GPTConfig(n_layer=2, n_head=2, n_embd=16).build(vocab_size=11, block_size=8)
    whole = model.flops_per_token()
    frozen = sum(p.numel() for p in model.hidden_matrices()) + model.lm_head.weight.numel()  # type: ignore[union-attr,operator]
    adapter = LoRAConfig(r=1).attach(model)
    assert adapter is not None
    assert model.flops_per_token() == whole - 2 * frozen + 6 * adapter.n_trained


def test_a_bigram_can_be_adapted_by_name() -> None:
    model = BigramConfig().build(vocab_size=11, block_size=8)
    idx = torch.arange(8)[None]
    before = logits(model, idx)
    adapter = LoRAConfig(r=2, targets=["token_embedding_table"]).attach(model)
    assert adapter is not None
    assert torch.equal(logits(model, idx), before)
    with pytest.raises(UserError, match="matches no layer"):
        LoRAConfig(targets=["all-linear"]).attach(BigramConfig().build(vocab_size=11, block_size=8))


def test_from_scratch_full_and_lora_are_a_sweep_with_its_table_and_report(
    cli: Cli, tool: Cli, base: Path, tmp_path: Path
) -> None:
    place = tmp_path / "sweep"
    done = cli(
        *("-m", "experiment=finetune_scratch,finetune,finetune_lora", f"init_from={base}", *SHORT),
        *("trainer.steps=4", "trainer.eval_every=2", "optim.warmup_steps=1", f"hydra.sweep.dir={place}"),
        run_dir=False,
    )
    assert done.code == 0, done.err
    assert "3 jobs: 3 completed" in done.out
    for name in ("finetune_scratch", "finetune", "finetune_lora"):
        assert f"  {name}  " in done.out
    scratch, full, lora = (json.loads((place / str(n) / "summary.json").read_text("utf-8")) for n in range(3))
    assert scratch["n_params"] == full["n_params"] > lora["n_params"]
    assert scratch["final"]["val/loss"] > full["final"]["val/loss"]
    page = tmp_path / "page.html"
    assert tool(runs.main, "report", str(place), "--output", str(page)).code == 0
    assert "finetune_lora" in page.read_text("utf-8")


def test_a_run_of_before_there_were_adapters_is_still_taken(cli: Cli, base: Path) -> None:
    config = base / "config.yaml"
    before = config.read_text("utf-8")
    start = before.index("adapter:\n")
    config.write_text(before[:start] + before[before.index("tokenizer:") :], "utf-8")
    assert "adapter" not in config.read_text("utf-8")
    again = cli(f"resume={base}", "trainer.steps=12", run_dir=False)
    assert again.code == 0, again.err


def test_recipes_start_from_the_weights_that_they_name() -> None:
    assert "init_from: openai-community/gpt2" in (paths.conf_dir() / "experiment" / "finetune_gpt2.yaml").read_text()
    with pytest.raises(UserError, match="adapter=lora: stands beside trained weights"):
        run_config("experiment=finetune_lora")
