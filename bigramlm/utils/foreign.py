"""Recognition of models that other programs wrote, with the command to use them.

Nothing is loaded, and no code of a file is run: names, a few JSON fields and the first bytes say what a file is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bigramlm.errors import UserError, require
from bigramlm.utils import files, paths

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files of which a folder of bigramlm contains at least one.
_OWN = ("config.yaml", "manifest.json", "summary.json", "sweep.json", "checkpoints")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Files with the suffix of a pickle that contain no weights: token files, and what trainers of Hugging Face save.
_NO_WEIGHTS = (
    *("train.bin", "val.bin", "training_args.bin", "optimizer.bin"),
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"),
)
# Formats of other frameworks, by the suffix of their files.
_FORMATS = {
    ".gguf": "GGUF weights for llama.cpp",
    ".h5": "weights for TensorFlow",
    ".msgpack": "weights for Flax",
    ".onnx": "ONNX weights",
}
_SAFETENSORS = f"choose a copy of the model with {CONFIG} and {WEIGHTS}"
# The subfolders in which runs, trainers and the cache of the Hugging Face hub keep models.
_INSIDE = ("*", "checkpoints/*", "snapshots/*", "*/snapshots/*", "hub/*/snapshots/*")


def describe(path: Path, given: str | None = None) -> str | None:
    """Describe a model that another program wrote, and how to use it here.

    path: a folder, or one of its files. given: the model's name on the Hugging Face hub, if path is in the cache of the
    hub, where the weights may not be yet. Returns the rest of a sentence
    that begins with the path, or None if the path is something else.
    """
    folder = path if path.is_dir() else path.parent
    try:
        names = sorted(file.name for file in folder.iterdir())
    except OSError:
        return None
    is_own = any(name in _OWN for name in names)
    if path.is_file():
        is_model = CONFIG in names or ADAPTER_CONFIG in names
        is_part = path.suffix == ".safetensors" and (is_own or is_model)
        is_part = is_part or (not is_own and is_model and path.suffix in (".json", ".txt"))
        return f"is a single file of a model; give its folder, {folder}" if is_part else _describe_weights([path])
    if is_own:
        return None
    if ADAPTER_CONFIG in names and WEIGHTS not in names and INDEX not in names:
        return describe_adapter(folder / ADAPTER_CONFIG)
    if CONFIG in names:
        return _describe_model_in(folder, given)
    if inside := find_inside(folder, (CONFIG, ADAPTER_CONFIG)):
        return f"is not a model, but contains one; give its folder, {inside}"
    return _describe_weights([folder / name for name in names])


def _describe_model_in(folder: Path, given: str | None) -> str | None:
    try:
        model_type = read_json(folder / CONFIG).get("model_type")
    except UserError as error:
        return f"is not a run: {error}"
    is_complete = given is not None or (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if is_complete or model_type not in (None, "gpt2"):
        return describe_model(str(model_type), given or folder)
    return _describe_weights(sorted(folder.iterdir())) if model_type is None else describe_missing_weights(folder)


def describe_adapter(config: Path) -> str:
    """Describe a peft adapter.

    config: its adapter_config.json.
    """
    try:
        base = read_json(config).get("base_model_name_or_path")
    except UserError as error:
        return f"is not a run: {error}"
    return (
        f"is a peft adapter (base {base}), which contains no weights of a whole model; continue the run that trained "
        f"it with resume=RUN, or merge it: {paths.program('checkpoint')} merge RUN NEW (without the run: "
        "merge_and_unload() and save_pretrained() of peft), then init_from=NEW"
    )


def describe_model(model_type: str, given: Path | str) -> str:
    """Describe a model in Hugging Face's layout that is given in place of a run.

    given: the folder of the model, or its name on the Hugging Face hub.
    """
    if model_type != "gpt2":
        return f"is not a run but a Hugging Face model with {unsupported(model_type)}"
    return (
        "is not a run but a GPT-2 in Hugging Face's layout; start a run from it, here without training: "
        f"{paths.program('train')} init_from={given} trainer.steps=0"
    )


def unsupported(model_type: str) -> str:
    """Say that the weights of an architecture are not supported, and what to choose."""
    return (
        f"model_type={model_type!r} in {CONFIG}, but only gpt2 is supported; start from a GPT-2, such as "
        "init_from=openai-community/gpt2, or train a model from the start, such as model=gpt"
    )


def describe_missing_weights(folder: Path) -> str:
    """Describe a folder with the config.json of a model, but without its weights."""
    if (folder / ADAPTER_CONFIG).is_file():
        return describe_adapter(folder / ADAPTER_CONFIG)
    found = _describe_weights(sorted(folder.iterdir()))
    return found or f"contains {CONFIG}, but no weights: there is no {WEIGHTS}; {_SAFETENSORS}"


def describe_pickle(name: str, *, is_pretrained: bool) -> str:
    """Describe a pickle with weights.

    name: the name of the file. is_pretrained: if True, there is a config.json of Hugging Face beside it.
    """
    reason = f"contains weights in a pickle file ({name}), which is not read because loading a pickle can run code"
    if is_pretrained:
        return (
            f'{reason}; if you trust the file, convert it with transformers: python -c "import '
            "transformers; transformers.AutoModelForCausalLM.from_pretrained('FOLDER').save_pretrained('NEW')\""
            "; then copy the tokenizer files to NEW, and use init_from=NEW"
        )
    if name == "ckpt.pt":
        return (
            f"{reason}; it is probably from nanoGPT: train such a model here with model=nanogpt data=text "
            "data.path=FILE"
        )
    return f"{reason}; {_SAFETENSORS}"


def find_inside(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the newest subfolder that contains one of these files.

    Only the subfolders in which other programs keep models are searched.
    """
    try:
        found = [file for pattern in _INSIDE for name in names for file in folder.glob(f"{pattern}/{name}")]
        return max(found, key=lambda file: file.stat().st_mtime).parent if found else None
    except OSError:
        return None


def require_content(path: Path) -> None:
    """Raise UserError if a path is not a regular file, or is the pointer of Git LFS."""
    require(path.is_file(), f"{path} is not a regular file but e.g. a folder, a pipe or a device; give a file")
    try:
        is_pointer = files.is_lfs_pointer(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    require(
        not is_pointer,
        f"{path} is a Git LFS pointer, which stands for a file that is not downloaded; fetch it with git lfs pull",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model.

    Raises UserError if the file contains none.
    """
    require_content(path)
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}; use a different copy of the file") from None
    require(isinstance(content, dict), f"{path} contains no JSON object; use a different copy of the file")
    return dict(content)


def _describe_weights(found: list[Path]) -> str | None:
    for file in found:
        is_file = file.is_file()
        suffix = ".gguf" if is_file and _starts_with(file, b"GGUF") else file.suffix
        is_pickle = suffix in _PICKLES and file.name not in _NO_WEIGHTS
        is_weights = is_pickle or suffix in _FORMATS or suffix == ".safetensors"
        if is_weights and is_file and _starts_with(file, files.LFS_POINTER):
            return f"contains a Git LFS pointer ({file.name}); fetch the file that it stands for with git lfs pull"
        if is_weights and not is_file:
            return f"contains {file.name}, which is not a regular file or a link to one; use a different copy of it"
        if suffix in _FORMATS:
            return f"contains {_FORMATS[suffix]} ({file.name}), which are not read; {_SAFETENSORS}"
        has_config = file.with_name(CONFIG).is_file()
        if is_pickle:
            return describe_pickle(file.name, is_pretrained=has_config and file.name.startswith("pytorch_model"))
        if suffix == ".safetensors" and has_config:
            return f"contains {file.name}, but neither {WEIGHTS} nor {INDEX}; copy the one that the model came with"
        if suffix == ".safetensors":
            return (
                f"contains {file.name} but no {CONFIG}, so the shape of the model is unknown; copy {CONFIG} from the "
                "source of the weights"
            )
    return None


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False
