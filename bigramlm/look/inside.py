"""The page of a model's inside: what is looked at, and where the page is written."""

from __future__ import annotations

from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.look.gather import MAX_TOKENS, Content, gather
from bigramlm.look.page import write
from bigramlm.look.subject import Subject
from bigramlm.runs.summary import RunSummary
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.utils import documents, paths
from bigramlm.utils.files import refuse_dangling

PAGE = "look.html"
"""The name of the page in a run folder."""

_MAX_BYTES = 1 << 22


def encode_passage(tokenizer: Tokenizer, prompt: str, file: str | None) -> tuple[list[int] | None, list[str]]:
    """Encode the passage to look at, of at most MAX_TOKENS tokens.

    prompt: the passage; if empty, it is read from the file. Returns the token ids, or None if neither is given, and the
    sentences to show about it. Raises UserError if there are no tokens, or if the tokenizer cannot encode the text.
    """
    if not prompt and file is None:
        return None, []
    where, text = (f"prompt={prompt!r:.60}", prompt) if prompt else (f"text={file}", _read(str(file)))
    try:
        ids = [int(token) for token in tokenizer.encode(text)]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    require(bool(ids), f"{where}: contains no token; give a text")
    if len(ids) <= MAX_TOKENS:
        return ids, []
    return ids[:MAX_TOKENS], [f"The passage has {len(ids):,} tokens, of which the first {MAX_TOKENS:,} are shown."]


def _read(where: str) -> str:
    path = paths.typed(where, "text")
    refuse_dangling(path)
    require(path.exists(), f"text={where}: there is no such file; give a text file, or the passage itself with prompt=")
    try:
        return documents.read(path, limit=_MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"text={where}: is not UTF-8 text ({error}); save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"text={where}: cannot be read ({error}); give a text file of at most 4 MB") from None


def look(
    subject: Subject,
    *,
    prompt: str = "",
    file: str | None = None,
    output: Path | None = None,
    other: Subject | None = None,
) -> tuple[Path, Content]:
    """Write the page of a model, and return its path and its content.

    output: the file; by default look.html in the run folder. other: a model to compare with. Raises UserError if the
    passage cannot be encoded, or the file cannot be written.
    """
    path = output or _own_path(subject)
    ids, cut = encode_passage(subject.tokenizer, prompt, file)
    content = gather(subject, ids, other)
    write(content.values, path, title=f"Inside {subject.label}", facts=_facts(subject), notes=[*cut, *content.notes])
    return path, content


def _own_path(subject: Subject) -> Path:
    folder = subject.run_folder
    if folder is None:
        raise UserError(f"{subject.checkpoint.path} belongs to no run folder: choose a file with output=look.html")
    path = folder / PAGE
    require(not path.is_symlink(), f"{path} is a link, so it is not written: delete it, or choose a file with output=")
    return path


def _facts(subject: Subject) -> list[tuple[str, str]]:
    model, checkpoint = subject.model, subject.checkpoint
    facts = [
        ("model", subject.cfg.model.name),
        ("parameters", f"{sum(p.numel() for p in model.parameters()) or model.n_params():,}"),
        ("block", f"{model.block_size} tokens"),
        ("vocabulary", f"{model.vocab_size:,} tokens"),
        ("checkpoint", f"step {checkpoint.step:,}"),
    ]
    if subject.run_folder is not None:
        run = RunSummary.read(subject.run_folder)
        facts += [("val loss at the end", f"{run.final_loss:.4f}")] if run.final_loss is not None else []
        facts.append(("folder", str(subject.run_folder)))
    return facts
