"""The command `train`: from what is typed to a trained model and a run folder that tells all of it.

Nothing here imports torch before a run begins, so that --help and tab completion answer at once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bigramlm import paths, runs
from bigramlm.cli import exit_codes, known, quiet, quote_free_text, quoted, relative, show
from bigramlm.config import RunConfig, identity, load, register_schemas, to_dict, to_run_config, to_yaml
from bigramlm.errors import UserError, require
from bigramlm.help import help_text
from bigramlm.memory import is_out_of_memory, out_of_memory
from bigramlm.results import Results, swept
from bigramlm.resume import Start, find_start, is_saved_preset, saved_presets, settle_tokens
from bigramlm.run import RunFolder, git_state, versions
from bigramlm.stop import Stopped, StopSignals, stop_signals
from bigramlm.sweep import FINISHED, PLAN, Sweep
from bigramlm.sweep import log as sweep_log

if TYPE_CHECKING:
    from bigramlm.adapter.lora import LoRA
    from bigramlm.checkpoint import Base
    from bigramlm.model.base import LanguageModel

log = logging.getLogger(__name__)

# Fields that hold free text: taken as typed, whatever Hydra's grammar would make of it.
FREE_TEXT = ("sample.prompt", "data.path", "tokenizer.path", "resume", "init_from", "base", "sweep")

# What runs sweeps and is not installed with the rest, by its class: how it is chosen, its extra, the module it needs.
EXTRAS = {
    "JoblibLauncher": ("hydra/launcher=joblib", "joblib", "joblib"),
    "LocalLauncher": ("hydra/launcher=submitit_local", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "SlurmLauncher": ("hydra/launcher=submitit_slurm", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "OptunaSweeper": ("hydra/sweeper=optuna", "optuna", "optuna"),
}


def main() -> None:
    """Run the command line. Exit codes: 0 completed, 1 failed, 2 for the user to mend, 130 and 143 stopped."""
    set_up_hydra()
    with exit_codes():
        if {"--help", "-h"} & set(sys.argv[1:]):
            show(help_text([argument for argument in sys.argv[1:] if re.match(r"~|[^-].*=", argument)]))
        else:
            sys.argv[1:] = command_line(sys.argv[1:])
            _hydra_main()


def command_line(arguments: list[str]) -> list[str]:
    """What is typed as Hydra takes it: free text quoted, and what a saved run brings in front of the rest."""
    sweeps = bool({"-m", "--multirun"} & set(arguments))
    typed = [
        argument
        if (sweeps and _LISTED.search(argument)) or _NULL.fullmatch(argument)
        else quote_free_text(argument, FREE_TEXT)
        for argument in arguments
    ]
    if sweeps:  # Hydra takes the flag before all overrides or after them, and not in between
        typed = ["-m", *(argument for argument in typed if argument not in ("-m", "--multirun"))]
    typed += _sweep_folder(arguments, sweeps=sweeps)
    presets = saved_presets(arguments)
    if any(preset.startswith("model=") for preset in presets):  # of model=gpt2 the weights' own shape is the better one
        typed = [argument for argument in typed if not re.match(r"\+*model=", argument)]
    # Behind what they stand for: of a field that is given twice the last one counts.
    after = max(
        (at for at, word in enumerate(typed) if re.match(r"\+*(resume|init_from|experiment)=", word)), default=0
    )
    return typed[: after + 1] + presets + typed[after + 1 :]


# Of a place null is none, and no place of that name.
_NULL = re.compile(r"\+*(resume|init_from|base|sweep)=null")

# Free text is swept as a list in quotes: 'sample.prompt="To be","Or not"'. Anything else is one text.
_LISTED = re.compile(r"""=("[^"]*"|'[^']*')(,\s*("[^"]*"|'[^']*'))+$""")


def _sweep_folder(arguments: list[str], *, sweeps: bool) -> list[str]:
    # What `sweep=` means to Hydra. UserError where it names no sweep, or contradicts the rest.
    for argument in arguments:
        field, _, value = argument.lstrip("+").partition("=")
        if field == "hydra.sweep.subdir" and sweeps:
            raise UserError(f"{argument}: the folders of a sweep's jobs are numbered, so that it can be gone on with")
        if field == "sweep" and value != "null":
            if not sweeps:
                raise UserError(f"{argument}: goes on with a sweep; add -m, and what was swept")
            if any(other.startswith("hydra.sweep.dir=") for other in arguments):
                raise UserError(f"{argument}: contradicts hydra.sweep.dir; leave one out")
            folder = runs.find_sweep(value)
            if not (folder / PLAN).exists():
                raise UserError(f"{argument}: holds no sweep of ours, which would have a {PLAN}")
            return [f"hydra.sweep.dir={quoted(str(folder))}"]
    return []


def set_up_hydra() -> None:
    """Make known to Hydra what the presets in conf/ refer to."""
    register_schemas()
    OmegaConf.register_new_resolver("home", lambda: str(paths.home()), replace=True)


def job(composed: DictConfig) -> float | None:
    """One run, alone or of a sweep: what Hydra calls. Returns the final val loss, as sweepers want it."""
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    overrides = [typed for typed in hydra_cfg.overrides.task if not is_saved_preset(typed)]
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return _job_of_a_sweep(composed, folder, overrides)
    failure = train(composed, folder, overrides)
    if isinstance(failure, Stopped):
        sys.exit(128 + failure.signal)
    if failure is not None:
        sys.exit(2 if isinstance(failure, UserError) else 1)
    return None


_hydra_main = hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name="train")(job)


def _job_of_a_sweep(composed: DictConfig, folder: RunFolder, overrides: list[str]) -> float | None:
    from bigramlm.search import pruner_of

    overrides = [typed for typed in overrides if not re.match(r"\+*sweep=", typed)]
    with quiet(but=sweep_log.name):
        failure = train(composed, folder, overrides, in_sweep=True, is_hopeless=pruner_of(folder.path))
    results = Results(Sweep(folder.path.parent))
    with contextlib.suppress(OSError):  # a full disk; the sweep's end tries again
        results.write()
    row = results.row(folder.path.name)
    if row is not None:
        sweep_log.info("%s", results.line(row, failure))
    # The traceback is in the job's log; with it, the exception would keep the job's model in memory.
    message, stopped = str(failure) or repr(failure), failure.signal if isinstance(failure, Stopped) else None
    failed = failure is not None
    del failure
    give_back_memory()
    if stopped is not None:
        sys.exit(128 + stopped)  # ends a sweep in this process too
    if failed:
        raise RuntimeError(message)
    if row is None:
        return None
    if not row.counts:
        return None
    return row.final if row.final is not None else row.best


def give_back_memory() -> None:
    """Give a GPU's memory back, which PyTorch keeps for the process; the next job of it may be another's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # its CUDA graphs hold memory too
        gc.collect()
        torch.cuda.empty_cache()
    elif torch is not None and torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()


class StartCallback(Callback):
    """Refuses what Hydra would meet with a traceback: a folder that cannot be written to, an extra not installed."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        _check_folder("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        for part in (config.hydra.launcher, config.hydra.sweeper):
            what, extra, module = EXTRAS.get(part._target_.rpartition(".")[2], ("", "", "hydra"))
            if not _is_installed(module):
                how = f'-e ".[{extra}]"' if paths.IN_CHECKOUT else f'"bigramlm[{extra}]"'
                how = f"-c constraints.txt {how}" if paths.IN_CHECKOUT else how
                print(f"error: {what}: needs an extra that is not installed: pip install {how}", file=sys.stderr)
                sys.exit(2)
        _check_folder("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _check_folder(field: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"error: {field}={folder}: cannot be made or written to: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def train(
    composed: DictConfig,
    folder: RunFolder,
    overrides: list[str],
    *,
    in_sweep: bool = False,
    is_hopeless: Callable[[int, Mapping[str, float]], bool] | None = None,
) -> BaseException | None:
    """Train what Hydra composed. However it ends, the folder's log and summary tell it.

    in_sweep: where the folder holds this run already, go on with it, or leave it if it is finished; print nothing at
    the end. is_hopeless: asked at every evaluation, with the step and what was found, whether to end the run as pruned.
    Returns None for a run that completed, else what ended it: a UserError for what the user can mend, Stopped after a
    signal, or any other exception.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(folder.lock())
            again = in_sweep and folder.holds(identity(to_run_config(composed)))
            if composed.resume is None and not again:
                folder.claim()
            else:
                folder.reopen()
        except (UserError, OSError) as error:
            log.error("error: %s", known(error, folder.path))
            return known(error, folder.path)
        if again and folder.summary.get("status") in FINISHED:
            return None
        return _train(composed, folder, overrides, again=again, in_sweep=in_sweep, is_hopeless=is_hopeless)


def _train(
    composed: DictConfig,
    folder: RunFolder,
    overrides: list[str],
    *,
    again: bool,
    in_sweep: bool,
    is_hopeless: Callable[[int, Mapping[str, float]], bool] | None,
) -> BaseException | None:
    cfg: RunConfig | None = None
    try:
        with stop_signals() as stop:
            if again:  # as it was decided then: device, threads, the text
                cfg = load(folder.path / "config.yaml")
                cfg.resume, cfg.base, overrides = str(folder.path), composed.base, []
            else:
                if composed.resume is None:
                    folder.begin(overrides)
                cfg = to_run_config(composed)
                if composed.resume is None:
                    folder.update_summary(asked=identity(cfg))
            run(cfg, folder, overrides, stop, show_end=not in_sweep, is_hopeless=is_hopeless)
        return None
    except (Exception, KeyboardInterrupt, Stopped) as raised:
        end = Stopped(signal.SIGINT) if isinstance(raised, KeyboardInterrupt) else known(raised, folder.path)
        if cfg is not None and "vocab_size" in folder.summary and is_out_of_memory(raised):
            end = UserError(out_of_memory(cfg, vocab_size=folder.summary["vocab_size"]))
        if isinstance(end, Stopped):
            can_go_on = (folder.path / "config.yaml").exists()
            how = (
                shlex.quote(f"resume={relative(folder.path)}") + " goes on with it"
                if can_go_on
                else "training had not begun; the same command starts again, with what was prepared"
            )
            log.log(logging.INFO if in_sweep else logging.WARNING, "%s; %s", end, how)
        elif isinstance(end, UserError):
            log.error("error: %s", end, exc_info=raised if os.environ.get("HYDRA_FULL_ERROR") else None)
        else:
            log.exception("the run failed")
        if folder.begun:
            with contextlib.suppress(OSError):  # a full disk may be the very reason
                folder.update_summary(
                    status="stopped" if isinstance(end, Stopped) else "failed", error=str(end) or repr(end)
                )
        return end


def run(
    cfg: RunConfig,
    folder: RunFolder,
    overrides: list[str],
    stop: StopSignals,
    *,
    show_end: bool = True,
    is_hopeless: Callable[[int, Mapping[str, float]], bool] | None = None,
) -> None:
    """One run, from its config to its sample. Everything that can be refused is refused before training."""
    from bigramlm.corpus import tokenized
    from bigramlm.data.pairs import Pairs, row_length
    from bigramlm.data.text import check_length
    from bigramlm.data.tokens import TokenFiles
    from bigramlm.tokenizer.base import start_tokens

    cfg.adapter.require_installed()
    cfg.sweep = None  # the saved config says how the run is, and not how it came about
    cfg.data = cfg.data.prepare(the_same=cfg.resume is not None)
    text = cfg.data.read()
    if isinstance(text, TokenFiles):
        settle_tokens(cfg, text, overrides)
    start = find_start(cfg, folder, text, overrides)
    corpus = tokenized(text, cfg.tokenizer, start.tokenizer(cfg.tokenizer), cfg.data.kept_in())
    tokenizer, vocab_size = corpus.tokenizer, corpus.tokenizer.vocab_size
    folder.summary["vocab_size"] = vocab_size
    block_size, start_text = cfg.data.block_size, cfg.sample.prompt
    if isinstance(text, Pairs):
        block_size = row_length(corpus.bounds, block_size)
        start_text = start_text or text.examples("val")[0].prompt
    else:
        for name, found in corpus.ids.items():
            check_length(len(found), split=name, block_size=block_size, text=str(relative(cfg.data.file())))
    try:
        prompt = start_tokens(tokenizer, start_text)
    except UserError as error:
        raise UserError(f"sample.prompt={cfg.sample.prompt!r}: {error}") from None

    if start.resumed_at is None:
        # Importing torch takes a second: a run that is killed in it can be resumed too.
        folder.save_config(to_yaml(cfg), overrides)

    import torch

    from bigramlm.data.batches import Examples, Split, Stream, on_device
    from bigramlm.device.device import decide, set_up
    from bigramlm.generate import before, generate
    from bigramlm.metrics import Metrics, Origin
    from bigramlm.preflight import preflight
    from bigramlm.trainer import Trainer

    torch.manual_seed(cfg.seed)
    model = cfg.model.build(vocab_size=vocab_size, block_size=cfg.data.block_size)
    if not cfg.model.trains and cfg.trainer.steps:
        log.info("steps: none, a model that is counted has nothing to train")
        cfg.trainer.steps = 0
    cfg.device = decide(cfg.device, n_params=model.n_params(), tokens=cfg.data.batch_size * block_size)
    require(
        cfg.device.name != "mps"
        or not (cfg.trainer.activation_checkpointing and getattr(cfg.model, "dropout", 0.0) > 0),
        "trainer.activation_checkpointing=true with model.dropout: on MPS PyTorch draws others again; leave one out",
    )
    device = set_up(cfg.device)

    kind = "examples" if corpus.bounds else "documents"
    documents = f" in {corpus.documents:,} {kind}" if corpus.documents > 1 else ""
    log.info(
        "data: %s, %s characters%s, vocabulary of %d",
        *(corpus.name, f"{corpus.n_characters:,}", documents, vocab_size),
    )
    adapter, base = _start_weights(cfg, model, start, folder)
    model.to(device.torch)
    tokens = {name: on_device(found, device.torch) for name, found in corpus.ids.items()}
    splits: dict[str, Split] = {
        name: Examples(found, corpus.bounds[name], block_size=block_size)
        if corpus.bounds
        else Stream(found, block_size=block_size)
        for name, found in tokens.items()
    }
    per_token = {name: corpus.characters[name] / split.n_tokens for name, split in splits.items()}
    each = f", of {per_token['val']:.2f} characters" if per_token["val"] != 1 else ""
    n_tokens = [f"{split.n_tokens:,}" for split in splits.values()]
    if corpus.bounds:
        n_rows = [f"{split.n_rows:,}" for split in splits.values()]
        log.info("split: %s examples train, %s val, with completions of %s and %s tokens%s", *n_rows, *n_tokens, each)
    else:
        log.info("split: %s tokens train, %s val%s", *n_tokens, each)
    began = time.perf_counter()
    counted = model.count(tokens["train"])  # also where weights come from elsewhere: it is of the text at hand
    counting = time.perf_counter() - began if counted else 0.0
    if counted:
        log.info("counted: the training text, in %.1f s", counting)
        model.to(device.torch)  # of a text that is mapped from files it was counted on the CPU
    trainer = Trainer(
        cfg,
        model=model,
        train=splits["train"],
        val=splits["val"],
        val_characters=corpus.characters["val"],
        tokenizer=tokenizer.to_json(),
        lossless=tokenizer.lossless,
        device=device,
        folder=folder,
        adapter=adapter,
        base=base,
        is_hopeless=is_hopeless,
    )
    trainer.seconds = counting
    if start.own is not None:
        trainer.resume(start.own)
    elif cfg.preflight:
        began = time.perf_counter()
        texts = corpus.texts if tokenizer.lossless else {}
        fresh = start.source is None or cfg.from_scratch
        preflight(model, tokenizer, texts, trainer.batches[0], fresh=fresh and not counted)
        log.info("preflight: passed, in %.0f ms", 1e3 * (time.perf_counter() - began))
    # Nothing of a run that is resumed has changed up to here, and nothing is refused from here on.
    if start.resumed_at is not None:
        folder.begin(overrides, resumed_at=start.resumed_at)
        trainer.checkpoints.set_aside(after=start.resumed_at)
    folder.save_config(trainer.config_yaml, overrides, resumed_at=start.resumed_at)
    folder.update_summary(
        device=cfg.device.name,
        n_params=model.n_params(),
        **({} if adapter is None else {"n_params_total": adapter.n_total, "base": vars(base)}),
        data={"name": corpus.name, "sha256": corpus.sha256},
        tokenizer={
            "name": cfg.tokenizer.name,
            "sha256": corpus.tokenizer_sha256,
            "vocab_size": vocab_size,
            "lossless": tokenizer.lossless,
            "characters_per_token": per_token,
        },
        versions=versions(),
        git=git_state(),
    )

    origin = Origin(folder.path, to_dict(cfg), str(folder.summary["id"]), start.resumed_at, swept(folder.path))
    metrics = Metrics(cfg.logger, origin)
    completed = False
    try:
        with stop.after_the_step(trainer):
            trainer.fit(metrics)
        if trainer.stop_signal is not None:
            raise Stopped(trainer.stop_signal)
        if trainer.pruned:
            completed = True
            folder.update_summary(status="pruned")
            return
        early = {"early_stopped": True} if trainer.early_stopped else {}
        folder.update_summary(final=trainer.final, references=trainer.references, **early)

        end = tokenizer.end_of_text if cfg.sample.stop_at_end else None
        ids = generate(
            model,
            torch.tensor([prompt], device=device.torch),
            cfg.sample.max_new_tokens,
            temperature=cfg.sample.temperature,
            top_k=cfg.sample.top_k,
            top_p=cfg.sample.top_p,
            seed=cfg.seed,
            device=device,
            until=end,
        )
        sample = tokenizer.decode(prompt + before(ids[0, len(prompt) :].tolist(), end))
        metrics.text(trainer.step, "sample", sample)
        folder.add_sample(trainer.step, sample)
        completed = True
    finally:
        metrics.close(completed=completed)
    folder.update_summary(status="completed")
    if not show_end:
        return
    try:
        print_end(trainer.final, sample, trainer.references, folder.path, cfg.logger.use, in_bits=bool(each))
    except UserError as error:  # the run is complete all the same
        log.warning("%s", error)


def _start_weights(
    cfg: RunConfig, model: LanguageModel, start: Start, folder: RunFolder
) -> tuple[LoRA | None, Base | None]:
    # Puts weights that were trained before into a fresh model, and beside them an adapter, where these are asked for.
    from bigramlm.checkpoint import Base
    from bigramlm.load import keep_base, put_weights
    from bigramlm.model.huggingface import Pretrained, check_vocabulary

    weights = start.source
    if isinstance(weights, Pretrained):
        check_vocabulary(weights, model.vocab_size)
    if weights is not None and not cfg.from_scratch:
        put_weights(weights, model, counted=False, base=cfg.base)
    cfg.base = None
    log.info("model: %s, %s parameters", cfg.model.name, f"{model.n_params():,}")
    adapter = cfg.adapter.attach(model)
    if adapter is None or weights is None:
        return None, None
    keep_base(weights, folder.path)
    for line in adapter.audit():
        log.info("%s", line)
    return adapter, Base(weights.place, weights.sha256)


def print_end(
    final: dict[str, float],
    sample: str,
    references: dict[str, float],
    folder: Path,
    loggers: list[str],
    *,
    in_bits: bool,
) -> None:
    """What a run ends with on standard output; in_bits: also the loss in bits a character, where no token is one."""
    lines = ["----", f"End of training. Loss: {final['train/loss']:.4f} (val {final['val/loss']:.4f})", sample, ""]
    if in_bits:
        lines.append(
            f"Bits a character: {final['val/bpc']:.4f} on val, which compares tokenizers; a loss is of a token"
        )
    for name, loss in references.items():
        split, _, what = name.partition("/best_")
        if split == "train":
            val_loss = references[f"val/best_{what}"] + 0.0  # no minus before a zero
            lines.append(f"By counting: {loss + 0.0:.4f} over the whole training text (the loss above: over a part")
            lines.append(f"as long as val), where no {what} can do better; {val_loss:.4f} on val.")
    if ngrams := [loss for name, loss in references.items() if name.startswith("val/ngram_")]:
        lines.append(f"By counting, on val, orders 1 to {len(ngrams)}: {' '.join(f'{loss:.3f}' for loss in ngrams)}")
    lines.append(f"Run: {relative(folder)}")
    if "tensorboard" in loggers:
        outputs = paths.home() / "outputs"
        where = relative(outputs if outputs in folder.parents else folder)
        lines.append(f"Look at it: tensorboard --logdir {shlex.quote(str(where))}")
    show("\n".join(lines))
