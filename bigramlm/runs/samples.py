"""The samples that a run has written, in samples.txt."""

from __future__ import annotations

import re
from pathlib import Path

from bigramlm.utils import documents, files

SAMPLES = "samples.txt"

_HEADER = r"(?m)^---- step (\d+)\n"


def read_samples(folder: Path) -> list[tuple[int, str]]:
    """Return the step and the text of each sample of a run, in the order of the file.

    The list is empty if there are none, or the file cannot be read.
    """
    try:
        text = documents.read(documents.no_link(folder / SAMPLES)).decode("utf-8", "replace")
    except (OSError, ValueError):
        return []
    before, *parts = re.split(_HEADER, text)
    found = [(int(step[:18]), sample) for step, sample in zip(parts[::2], parts[1::2], strict=True)]
    if not found and before:  # a person has edited the file
        found = [(0, before)]
    return [(step, sample.removesuffix("\n")) for step, sample in found]


def add_sample(folder: Path, step: int, text: str) -> None:
    """Append a sample to samples.txt, unless the file contains this sample.

    A resumed run generates the samples after its checkpoint again.
    """
    path, sample = folder / SAMPLES, f"---- step {step}\n{text}\n".encode(errors="replace")
    earlier = files.read_before_writing(path)
    if sample not in re.split(rb"(?m)^(?=---- step \d+\n)", earlier):
        files.write(path, [earlier, sample])
