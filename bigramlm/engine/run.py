"""The recipe: one run, from its config to its sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, to_dict, to_yaml
from bigramlm.engine.resolve import InitState, resolve, resolve_for_model
from bigramlm.errors import UserError
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.metrics import Metrics
from bigramlm.runs.folder import RunFolder
from bigramlm.runs.summary import RunSummary
from bigramlm.utils.console import relative
from bigramlm.utils.stop import StopSignals

if TYPE_CHECKING:
    from bigramlm.data.corpus import Corpus
    from bigramlm.data.pairs import Pairs
    from bigramlm.data.text import Text
    from bigramlm.data.tokens import TokenFiles


@dataclass(frozen=True)
class JobContext:
    """The part of a sweep that is passed down to a run that is one of its jobs."""

    swept: tuple[str, ...] | None = None
    """The fields that are swept; None for a run of no sweep."""
    typed: dict[str, str] = field(default_factory=dict)
    """The values that were typed for the job, by field."""
    should_prune: Callable[[int, Mapping[str, float]], bool] | None = None
    """Asked at every evaluation, with the step and what was found, whether to end the run as pruned."""


@dataclass(frozen=True)
class RunEnd:
    """The result of a run that completed."""

    cfg: RunConfig
    """Its config, as it was resolved."""
    final: dict[str, float]
    """The final losses, by the metrics' names."""
    references: dict[str, float]
    """The losses that counting gives, by the metrics' names."""
    sample: str


def run(asked: RunConfig, overrides: Overrides, folder: RunFolder, stop: StopSignals, job: JobContext) -> RunEnd | None:
    """Train a run from its config to its sample; returns what it came to, None where it was pruned.

    Raises UserError for whatever can be refused, before anything of a resumed run changes; Stopped after a signal.
    """
    cfg, text, init = resolve(asked, overrides, folder)
    corpus = tokenize(cfg, text, init, folder)
    row_length, prompt = find_row_length(cfg, corpus), find_prompt(cfg, corpus, text)
    if init.resumed_at is None:
        folder.save_config(to_yaml(replace(cfg, base=init.base)), overrides.words)  # killed, it can be resumed
    from bigramlm.engine import build  # imports torch, which takes a second

    model = build.fresh_model(cfg, corpus)
    cfg = resolve_for_model(cfg, model, row_length)
    device = build.set_up(cfg.device)
    adapter = build.put_init_weights(cfg, model, init, folder, device)
    splits = build.splits(corpus, row_length, device)
    counting = build.fit_counts(model, splits["train"], device)
    step = build.train_step(cfg, model, splits["train"], device)
    batches = build.batches(cfg, splits["train"], device)
    evaluator = build.evaluator(cfg, model, splits, corpus, device)
    checkpoints = build.checkpoints(cfg, step, corpus, adapter, folder)
    hooks = build.Hooks(folder.update_summary, stop.requested, job.should_prune)
    trainer = build.Trainer(cfg.trainer, step, batches, evaluator, checkpoints, build.schedule(cfg), hooks)
    trainer.start(init.resume_from, seconds=counting or 0.0)
    if init.resume_from is None and cfg.preflight:
        build.check(model, corpus, batches[0], fresh=init.is_fresh(cfg) and counting is None)
    # Nothing of a run that is resumed has changed up to here, and nothing is refused from here on.
    checkpoints.quarantine(after=init.resumed_at)
    folder.begin_training(
        checkpoints.contents.config, overrides.words, resumed_at=init.resumed_at, is_changed=init.is_changed
    )
    folder.update_summary(**build.describe(cfg, model, corpus, splits, adapter))
    with Metrics(cfg.logger, origin(cfg, folder, init, job)) as metrics:
        with stop.after_the_step():
            result = trainer.fit(metrics)
        stop.raise_if_requested()
        folder.update_summary(**result.to_summary())
        if result.status == "pruned":
            return None
        sample = build.write_sample(cfg, model, corpus.tokenizer, prompt, device)
        metrics.text(trainer.progress.step, "sample", sample)
        folder.add_sample(trainer.progress.step, sample)
    folder.update_summary(status="completed")
    return RunEnd(cfg, result.final, result.references, sample)


def tokenize(cfg: RunConfig, text: Text | TokenFiles | Pairs, init: InitState, folder: RunFolder) -> Corpus:
    """Turn the text into tokens; with the tokenizer of the weights that the run starts from, where there are some.

    The vocabulary's size is noted in the run's summary, for who has to say what memory ran out for.
    """
    from bigramlm.data.corpus import tokenized

    corpus = tokenized(text, cfg.tokenizer, init.tokenizer(cfg.tokenizer), cfg.data.kept_in())
    folder.summary["vocab_size"] = corpus.tokenizer.vocab_size
    return corpus


def find_row_length(cfg: RunConfig, corpus: Corpus) -> int:
    """Return the tokens of a row: the block size, of pairs less where all are shorter. UserError for a short text."""
    from bigramlm.data.pairs import row_length
    from bigramlm.data.text import check_length

    if corpus.bounds:
        return row_length(corpus.bounds, cfg.data.block_size)
    for name, ids in corpus.ids.items():
        check_length(len(ids), split=name, block_size=cfg.data.block_size, text=str(relative(cfg.data.file())))
    return cfg.data.block_size


def find_prompt(cfg: RunConfig, corpus: Corpus, text: Text | TokenFiles | Pairs) -> list[int]:
    """Return the tokens that the sample continues from. UserError for a prompt with none in this tokenizer."""
    from bigramlm.data.pairs import Pairs
    from bigramlm.tokenizer.base import start_tokens

    prompt = cfg.sample.prompt
    if isinstance(text, Pairs):
        prompt = prompt or text.examples("val")[0].prompt
    try:
        return start_tokens(corpus.tokenizer, prompt)
    except UserError as error:
        raise UserError(f"sample.prompt={cfg.sample.prompt!r}: {error}") from None


def origin(cfg: RunConfig, folder: RunFolder, init: InitState, job: JobContext) -> LoggerContext:
    """Return what the loggers are told of the run; where a swept field was not typed for it, its config tells."""
    swept = None
    if job.swept is not None:
        swept = RunSummary.read(folder.path, typed=job.typed).values_of(job.swept)
    return LoggerContext(folder.path, to_dict(cfg), str(folder.summary["id"]), init.resumed_at, swept)
