"""The sequence of steps in a run: from resolving its config to writing its sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, to_dict, to_yaml
from bigramlm.engine.resolve import InitState, resolve, resolve_for_model
from bigramlm.errors import UserError, require
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.metrics import Metrics
from bigramlm.runs.folder import RunFolder
from bigramlm.runs.git import git_state
from bigramlm.runs.summary import RunSummary
from bigramlm.utils.console import relative
from bigramlm.utils.stop import StopSignals

if TYPE_CHECKING:
    from torch import nn

    from bigramlm.data.corpus import Corpus
    from bigramlm.data.pairs import Pairs
    from bigramlm.data.text import Text
    from bigramlm.data.tokens import TokenFiles
    from bigramlm.model.python import ModelFactory


@dataclass(frozen=True)
class RunContext:
    """The facts about a run that its config does not contain."""

    swept: tuple[str, ...] | None = None
    """The names of the swept fields; None for a run outside a sweep."""
    values: dict[str, str] = field(default_factory=dict)
    """The values of the job's overrides, by field."""
    asked: str | None = None
    """The hash of the job's config in the plan of its sweep; None for a run outside a sweep."""
    should_prune: Callable[[int, Mapping[str, float]], bool] | None = None
    """A function that decides whether to prune the run; called after every evaluation with the step and the metrics."""
    model: nn.Module | ModelFactory | None = None
    """The model that was passed from Python; None for the model of the config."""
    stop: StopSignals = field(default_factory=StopSignals)
    """The signals to stop the run."""


@dataclass(frozen=True)
class RunResult:
    """The outcome of a completed run."""

    cfg: RunConfig
    """The resolved config."""
    final: dict[str, float]
    """The final losses, by metric name."""
    references: dict[str, float]
    """The losses of n-gram models fitted by counting, for comparison, by metric name."""
    sample: str


def run(cfg: RunConfig, overrides: Overrides, folder: RunFolder, context: RunContext) -> RunResult | None:
    """Resolve the config, train the model and write a sample; return None if pruned.

    Raises UserError for invalid input before any file of a resumed run changes, and Stopped after a stop signal.
    """
    cfg, text, init = resolve(cfg, overrides, folder)
    corpus = tokenize(cfg, text, init, folder)
    row_length, prompt = find_row_length(cfg, corpus), find_prompt(cfg, corpus, text)
    if init.resumed_at is None:
        folder.save_config(to_yaml(replace(cfg, base=init.base)), overrides.words)  # makes a killed run resumable
    from bigramlm.engine import build  # slow: imports torch

    model = build.fresh_model(cfg, corpus, init, context.model)
    cfg = resolve_for_model(cfg, model, row_length)
    device = build.set_up(cfg.device)
    adapter = build.put_init_weights(cfg, model, init, folder, device)
    splits = build.splits(corpus, row_length, device)
    counting_seconds = build.fit_counts(model, splits["train"], device)
    step = build.train_step(cfg, model, splits["train"], device)
    batches = build.batches(cfg, splits["train"], device)
    evaluator = build.evaluator(cfg, model, splits, corpus, device)
    checkpoints = build.checkpoints(cfg, step, corpus, adapter, folder)
    schedule = build.Schedule(cfg.optim, cfg.trainer.steps)
    sample = build.sampler(cfg, step, corpus.tokenizer, prompt, folder)
    hooks = build.Hooks(folder.update_summary, context.stop.requested, context.should_prune, folder.keep_lock, sample)
    trainer = build.Trainer(cfg.trainer, step, batches, evaluator, checkpoints, schedule, hooks)
    trainer.start(init.resume_from, seconds=counting_seconds or 0.0)
    if init.resume_from is None and cfg.preflight:
        build.check(model, corpus, batches[0], fresh=init.is_fresh(cfg) and counting_seconds is None)
    # All input is valid from here on, so the files of a resumed run may change.
    checkpoints.quarantine(after=init.resumed_at)
    folder.begin_training(checkpoints.contents.config, overrides.words, init.resumed_at, is_changed=init.is_changed)
    folder.update_summary(**build.describe(cfg, model, corpus, splits, adapter), git=git_state())
    with Metrics(cfg.logger, logger_context(cfg, folder, init, context)) as metrics:
        with context.stop.deferred():
            result = trainer.fit(metrics)
        context.stop.raise_if_requested()
        folder.update_summary(**result.to_summary())
        if result.status == "pruned":
            return None
        written = sample(trainer.progress.step)
        metrics.text(trainer.progress.step, "sample", written)
    folder.update_summary(status="completed")
    return RunResult(cfg, result.final, result.references, written)


def tokenize(cfg: RunConfig, text: Text | TokenFiles | Pairs, init: InitState, folder: RunFolder) -> Corpus:
    """Tokenize the text with the tokenizer of the initial weights, if any.

    Without initial weights, the tokenizer is built from `cfg`. The vocabulary size is stored in the summary, because
    the out-of-memory message needs it.
    """
    from bigramlm.data.corpus import tokenized

    corpus = tokenized(text, cfg.tokenizer, init.tokenizer(cfg.tokenizer), cfg.data.kept_in())
    folder.summary["vocab_size"] = corpus.tokenizer.vocab_size
    return corpus


def find_row_length(cfg: RunConfig, corpus: Corpus) -> int:
    """Return the number of tokens in a row of a batch (T).

    T is the block size. For pairs, T is smaller if all examples are shorter than the block size. Raises UserError if
    the text has too few tokens, because it is too short or because the tokenizer makes too few of it.
    """
    from bigramlm.data.pairs import row_length
    from bigramlm.data.text import check_length

    if corpus.bounds:
        return row_length(corpus.bounds, cfg.data.block_size)
    for name, ids in corpus.ids.items():
        size, characters = cfg.data.block_size, corpus.characters[name]
        require(
            len(ids) > 0 or characters == 0,
            f"tokenizer={cfg.tokenizer.name} makes no token of the {characters:,} characters of the {name} split of "
            f"{relative(cfg.data.file())}: its normalizer deletes them, or its vocabulary has none of them; choose a "
            "tokenizer that was made for such a text, such as tokenizer=bpe or tokenizer=byte",
        )
        require(
            not len(ids) <= size < characters,
            f"tokenizer={cfg.tokenizer.name} encodes the {characters:,} characters of the {name} split of "
            f"{relative(cfg.data.file())} as only {len(ids):,} of the {size + 1:,} tokens that data.block_size={size} "
            "needs; choose a tokenizer that divides this text into shorter tokens, such as tokenizer=byte, lower "
            "data.block_size, or use a longer text",
        )
        check_length(len(ids), split=name, block_size=cfg.data.block_size, text=str(relative(cfg.data.file())))
    return cfg.data.block_size


def find_prompt(cfg: RunConfig, corpus: Corpus, text: Text | TokenFiles | Pairs) -> list[int]:
    """Return the token ids of the sample's prompt.

    For pairs, an empty prompt is replaced by the first val prompt. Raises UserError if the tokenizer cannot encode the
    prompt.
    """
    from bigramlm.data.pairs import Pairs
    from bigramlm.tokenizer.base import start_tokens

    prompt = cfg.sample.prompt
    if isinstance(text, Pairs):
        prompt = prompt or text.examples("val")[0].prompt
    try:
        return start_tokens(corpus.tokenizer, prompt)
    except UserError as error:
        raise UserError(f"sample.prompt={cfg.sample.prompt!r}: {error}") from None


def logger_context(cfg: RunConfig, folder: RunFolder, init: InitState, context: RunContext) -> LoggerContext:
    """Collect the facts about the run that the loggers need.

    The facts include the value of each swept field: that of the job's override or, without an override of the field,
    that in the config.
    """
    swept = None
    if context.swept is not None:
        swept = RunSummary.read(folder.path, typed=context.values).values_of(context.swept)
    checkpoint = init.resume_from
    metrics_bytes = None if checkpoint is None else checkpoint.progress.metrics_bytes
    run_id, name, note = (str(folder.summary.get(key, "")) for key in ("id", "name", "note"))
    return LoggerContext(folder.path, to_dict(cfg), run_id, init.resumed_at, metrics_bytes, swept, name, note)
