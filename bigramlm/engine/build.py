"""Functions that build the objects of a run, e.g. its model and training step.

They read the resolved config.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigramlm.checkpoint.checkpoint import BaseWeights
from bigramlm.checkpoint.manager import AdapterState, CheckpointManager, Contents
from bigramlm.config.run_config import RunConfig, to_yaml
from bigramlm.data.batches import Batches, Examples, Split, Stream, on_device
from bigramlm.data.corpus import Corpus
from bigramlm.device.device import Device, is_small, set_up
from bigramlm.engine.load import build_model, check_size, keep_base, put_weights
from bigramlm.engine.resolve import InitState
from bigramlm.generate import generate, truncate_at
from bigramlm.model.base import LanguageModel, is_count_table
from bigramlm.model.huggingface import Pretrained, check_vocabulary
from bigramlm.model.python import ModelFactory
from bigramlm.optim.base import Schedule
from bigramlm.runs.folder import RunFolder, versions
from bigramlm.runs.samples import add_sample
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.trainer.compiled import CompiledStep, SharedCalls
from bigramlm.trainer.evaluate import Evaluator
from bigramlm.trainer.preflight import preflight
from bigramlm.trainer.step import TrainStep
from bigramlm.trainer.trainer import Hooks, Trainer

__all__ = ["Hooks", "Schedule", "Trainer", "set_up"]  # run.py takes these from here, because they import torch

log = logging.getLogger(__name__)


def fresh_model(
    cfg: RunConfig, corpus: Corpus, init: InitState, passed: nn.Module | ModelFactory | None = None
) -> LanguageModel:
    """Build the model on the CPU, with initial weights drawn from the seed.

    Raises UserError if the model is far larger than the weights that the run starts from.
    """
    resumed = init.resume_from
    weights = init.init_weights if resumed is None or resumed.is_adapter else resumed
    if weights is not None and passed is None and not init.is_fresh(cfg):
        check_size(weights, cfg, corpus.tokenizer.vocab_size, init.base)
    torch.manual_seed(cfg.seed)
    model = build_model(cfg, corpus.tokenizer.vocab_size, passed)
    if cfg.trainer.activation_checkpointing:
        model.checkpoint_activations()
    return model


def put_init_weights(
    cfg: RunConfig, model: LanguageModel, init: InitState, folder: RunFolder, device: Device
) -> AdapterState | None:
    """Load the initial weights, if any, and attach the adapter, if configured.

    With `from_scratch` the model keeps its fresh weights. Moves the model to the device. The checkpoint that an adapter
    is trained on is marked, so that it is not deleted while the run in `folder` needs it. Returns the adapter with its
    base weights, or None without an adapter. Raises UserError if the weights do not match the model.
    """
    weights = init.init_weights
    if isinstance(weights, Pretrained):
        check_vocabulary(weights, model.vocab_size)
    loaded = None
    while weights is not None and loaded != weights.location:  # keeping the base may choose a newer checkpoint
        if not cfg.from_scratch:
            put_weights(weights, model, counted=False, base=init.base)
        loaded = weights.location
        if cfg.adapter.adapts:
            keep_base(weights, folder.path)
    n_params = model.n_params()  # 0 before counting, for a model that consists of counts
    log.info("model: %s%s", cfg.model.name, f", {n_params:,} parameters" if n_params else "")
    adapter = cfg.adapter.attach(model)
    model.to(device.torch)
    if adapter is None or weights is None:
        return None
    for line in adapter.audit():
        log.info("%s", line)
    return AdapterState(adapter, BaseWeights(weights.location, weights.sha256))


def splits(corpus: Corpus, row_length: int, device: Device) -> dict[str, Split]:
    """Move the tokens of both splits to the device and log their sizes.

    Tokens that are memory-mapped from files stay on the CPU. row_length: the number of tokens in a row of a batch (T).
    Returns the splits by name; rows are sampled from them.
    """
    kind = "examples" if corpus.bounds else "documents"
    documents = f" in {corpus.documents:,} {kind}" if corpus.documents > 1 else ""
    log.info(
        "data: %s, %s characters%s, vocabulary of %d tokens",
        corpus.name,
        f"{corpus.n_characters:,}",
        documents,
        corpus.tokenizer.vocab_size,
    )
    result: dict[str, Split] = {}
    for name, ids in corpus.ids.items():
        tokens = on_device(ids, device.torch)
        if corpus.bounds:
            result[name] = Examples(tokens, corpus.bounds[name], block_size=row_length)
        else:
            result[name] = Stream(tokens, block_size=row_length)
    per_token = characters_per_token(corpus, result)["val"]
    ratio = f"; {per_token:.2f} characters per token in val" if per_token != 1 else ""
    n_tokens = [f"{split.n_tokens:,}" for split in result.values()]
    if corpus.bounds:
        n_rows = [f"{split.n_rows:,}" for split in result.values()]
        log.info(
            "split: %s train examples (%s completion tokens in total), %s val examples (%s completion tokens in total)"
            "%s",
            n_rows[0],
            n_tokens[0],
            n_rows[1],
            n_tokens[1],
            ratio,
        )
    else:
        log.info("split: %s train tokens, %s val tokens%s", *n_tokens, ratio)
    return result


def characters_per_token(corpus: Corpus, splits: dict[str, Split]) -> dict[str, float]:
    """Return the mean number of characters per token in each split.

    For pairs, only the completions are counted.
    """
    return {name: corpus.characters[name] / split.n_tokens for name, split in splits.items()}


def fit_counts(model: LanguageModel, train: Split, device: Device) -> float | None:
    """Count the n-grams of the training text, if the model uses n-gram counts.

    The current text is counted even if the weights come from a different run. Returns the duration in seconds, or None
    if the model uses no counts.
    """
    began = time.perf_counter()
    if not model.fit_counts(train.tokens):
        return None
    seconds = time.perf_counter() - began
    n = sum(len(table) for name, table in model.named_buffers() if is_count_table(name) and name.endswith(".keys"))
    log.info("counts: %s different n-grams of the training text, counted in %.1f s", f"{n:,}", seconds)
    model.to(device.torch)  # the counts of memory-mapped tokens are on the CPU
    return seconds


def train_step(cfg: RunConfig, model: LanguageModel, train: Split, device: Device) -> TrainStep:
    """Build the training step and its optimizer."""
    optimizer = cfg.optim.build(model, compiled=device.compile)
    options: dict[str, Any] = {
        "grad_accumulation": cfg.trainer.grad_accumulation,
        "grad_clip": cfg.optim.grad_clip,
        "masked": train.masked,
    }
    if not device.compile:
        return TrainStep(model, optimizer, device, **options)
    n_params, trainer = sum(p.numel() for p in model.parameters()), cfg.trainer
    # Between the first steps that `checkpoint_at` saves there is no room for a call of several steps.
    if trainer.checkpoint_at is None and is_small(n_params=n_params, tokens=cfg.data.batch_size * train.block_size):
        intervals = (trainer.eval_every, trainer.checkpoint_every, trainer.steps, trainer.sample_every or trainer.steps)
        options["steps_per_call"] = SharedCalls(
            log_every=trainer.log_every, intervals=intervals, alone_every=trainer.vitals_every
        )
    return CompiledStep(model, optimizer, device, **options)


def batches(cfg: RunConfig, train: Split, device: Device) -> Batches:
    """Build the training batches; each contains all rows of one update.

    A batch has `data.batch_size * trainer.grad_accumulation` rows, which the training step splits into micro-batches.
    """
    rows, repeated = cfg.data.batch_size * cfg.trainer.grad_accumulation, cfg.trainer.overfit_batches
    if repeated:
        what = "one batch is repeated" if repeated == 1 else f"{repeated} batches are repeated"
        log.info("overfit: %s; the losses below are on the whole splits,", what)
        log.info("  where they rise while the batch is learned by heart")
    return Batches(train, batch_size=rows, seed=cfg.seed, device=device.torch, repeated=repeated)


def evaluator(
    cfg: RunConfig, model: LanguageModel, splits: dict[str, Split], corpus: Corpus, device: Device
) -> Evaluator:
    """Build the evaluator, which measures losses during and after training."""
    batches = cfg.trainer.eval_batches
    rows = None if batches == "all" else int(batches) * cfg.data.batch_size
    lossless = corpus.tokenizer.lossless
    return Evaluator(model, splits, device, rows=rows, val_characters=corpus.characters["val"], lossless=lossless)


def checkpoints(
    cfg: RunConfig, step: TrainStep, corpus: Corpus, adapter: AdapterState | None, folder: RunFolder
) -> CheckpointManager:
    """Build the object that saves and restores the checkpoints in the run folder."""
    tokenizer, config = corpus.tokenizer.to_json(), to_yaml(cfg)
    contents = Contents(step.model, step.optimizer, step.scaler, tokenizer, config, adapter, folder.summary)
    path, trainer = folder.path / "checkpoints", cfg.trainer
    return CheckpointManager(path, contents, keep=trainer.keep_checkpoints, keeps=trainer.keeps)


def check(model: LanguageModel, corpus: Corpus, batch: tuple[Tensor, Tensor], *, fresh: bool) -> None:
    """Check the model, its tokenizer and the first batch for common mistakes.

    batch: inputs and targets, both (B, T). fresh: if True, the model is untrained. Raises UserError for the first
    mistake found.
    """
    began = time.perf_counter()
    preflight(model, corpus.tokenizer, corpus.texts, batch, fresh=fresh)
    log.info("preflight: passed, in %.0f ms", 1e3 * (time.perf_counter() - began))


def describe(
    cfg: RunConfig, model: LanguageModel, corpus: Corpus, splits: dict[str, Split], adapter: AdapterState | None
) -> dict[str, Any]:
    """Collect the facts about the run's model, data and software for summary.json."""
    adapter_facts = (
        {} if adapter is None else {"n_params_total": adapter.adapter.n_total, "base": adapter.base.to_dict()}
    )
    return {
        "model": cfg.model.name,
        "dataset": cfg.data.name,
        "device": cfg.device.name,
        "n_params": model.n_params(),
        **adapter_facts,
        "data": {"name": corpus.name, "sha256": corpus.sha256},
        "tokenizer": {
            "name": cfg.tokenizer.name,
            "sha256": corpus.tokenizer_sha256,
            "vocab_size": corpus.tokenizer.vocab_size,
            "lossless": corpus.tokenizer.lossless,
            "characters_per_token": characters_per_token(corpus, splits),
        },
        "versions": versions(),
    }


def sampler(
    cfg: RunConfig, step: TrainStep, tokenizer: Tokenizer, prompt: list[int], folder: RunFolder
) -> Callable[[int], str]:
    """Return the function that generates a sample and adds it to samples.txt.

    The function takes the number of updates so far, and returns the text. prompt: token ids, with which the text of a
    sample starts. If `sample.stop_at_end` is true, the text ends before the first generated end-of-text token. All
    samples of a run have the same seed, so that they differ by what the model has learned.
    """
    end = tokenizer.end_of_text if cfg.sample.stop_at_end else None
    settings = {"temperature": cfg.sample.temperature, "top_k": cfg.sample.top_k, "top_p": cfg.sample.top_p}

    def write_sample(number: int) -> str:
        idx = torch.tensor([prompt], device=step.device.torch)
        options = {**settings, "seed": cfg.seed, "device": step.device, "until": end}
        ids = generate(step.model, idx, cfg.sample.max_new_tokens, **options)
        text: str = tokenizer.decode(prompt + truncate_at(ids[0, len(prompt) :].tolist(), end))
        add_sample(folder.path, number, text)
        return text

    return write_sample
