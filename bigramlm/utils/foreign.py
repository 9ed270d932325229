"""Recognition of models that other programs wrote, with the command to use them.

Nothing is loaded, and no code of a file is run: names, a few JSON fields and the first bytes say what a file is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigramlm.utils import files, paths

ADAPTER_CONFIG = "adapter_config.json"
_MODEL_CONFIG = "config.json"
# Files of which a folder of bigramlm contains at least one.
_OWN = ("config.yaml", "manifest.json", "summary.json", "sweep.json", "checkpoints")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_TOKEN_FILES = ("train.bin", "val.bin")
# Formats of other frameworks, by the suffix of their files.
_FORMATS = {
    ".gguf": "GGUF weights for llama.cpp",
    ".h5": "weights for TensorFlow",
    ".msgpack": "weights for Flax",
    ".onnx": "ONNX weights",
}
_SAFETENSORS = "choose a copy of the model with config.json and model.safetensors"


def describe(path: Path) -> str | None:
    """Describe a model that another program wrote, and how to use it here.

    path: a folder, or one of its files. Returns the rest of a sentence that begins with the path, or None if the path
    is something else.
    """
    folder = path if path.is_dir() else path.parent
    try:
        names = sorted(file.name for file in folder.iterdir())
    except OSError:
        return None
    is_own = any(name in _OWN for name in names)
    if path.is_file():
        is_part = path.suffix == ".safetensors" and (is_own or _MODEL_CONFIG in names or ADAPTER_CONFIG in names)
        return f"is a single file of a model; give its folder, {folder}" if is_part else _describe_weights([path])
    if is_own:
        return None
    if ADAPTER_CONFIG in names:
        return describe_adapter(folder / ADAPTER_CONFIG)
    model_type = _read(folder / _MODEL_CONFIG).get("model_type") if _MODEL_CONFIG in names else None
    if model_type is not None:
        return describe_model(str(model_type), path)
    return _describe_weights([folder / name for name in names])


def describe_adapter(config: Path) -> str:
    """Describe a peft adapter.

    config: its adapter_config.json.
    """
    base = _read(config).get("base_model_name_or_path")
    return (
        f"is a peft adapter (base {base}), which contains no weights of a whole model; continue the run that trained "
        f"it with resume=RUN, or merge it: {paths.program('checkpoint')} merge RUN NEW (without the run: "
        "merge_and_unload() and save_pretrained() of peft), then init_from=NEW"
    )


def describe_model(model_type: str, path: Path) -> str:
    """Describe a model in Hugging Face's layout that is given in place of a run.

    path: the folder of the model, or its name on the Hugging Face hub.
    """
    if model_type != "gpt2":
        return f"is not a run but a Hugging Face model with {unsupported(model_type)}"
    return (
        "is not a run but a GPT-2 in Hugging Face's layout; start a run from it, here without training: "
        f"{paths.program('train')} init_from={path} trainer.steps=0"
    )


def unsupported(model_type: str) -> str:
    """Say that the weights of an architecture are not supported, and what to choose."""
    return (
        f"model_type={model_type!r} in {_MODEL_CONFIG}, but only gpt2 is supported; start from a GPT-2, such as "
        "init_from=openai-community/gpt2, or train a model from the start, such as model=gpt"
    )


def describe_pickle(name: str, *, is_pretrained: bool) -> str:
    """Describe a pickle with weights.

    name: the name of the file. is_pretrained: if True, there is a config.json of Hugging Face beside it.
    """
    reason = f"a pickle file ({name}), which is not read because loading a pickle can run code"
    if is_pretrained:
        return (
            f'the weights are in {reason}; if you trust the file, convert it with transformers: python -c "import '
            "transformers; transformers.AutoModelForCausalLM.from_pretrained('FOLDER').save_pretrained('NEW')\""
            "; then copy the tokenizer files to NEW, and use init_from=NEW"
        )
    if name == "ckpt.pt":
        return (
            f"the weights are in {reason}; it is probably from nanoGPT: train such a model here with model=nanogpt "
            "data=text data.path=FILE"
        )
    return f"the weights are in {reason}; {_SAFETENSORS}"


def find_pickle(folder: Path) -> str | None:
    """Return the name of a pickle with weights in a folder, or None if there is none."""
    found = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    return next((name for name in found if name not in _TOKEN_FILES), None)


def _describe_weights(files: list[Path]) -> str | None:
    for file in files:
        suffix = ".gguf" if _starts_with(file, b"GGUF") else file.suffix
        if suffix in _FORMATS:
            return f"contains {_FORMATS[suffix]} ({file.name}), which are not read; {_SAFETENSORS}"
        if suffix in _PICKLES and file.name not in _TOKEN_FILES:
            return f"contains no run: {describe_pickle(file.name, is_pretrained=False)}"
        if suffix == ".safetensors":
            return (
                f"contains {file.name} but no {_MODEL_CONFIG}, so the shape of the model is unknown; copy "
                f"{_MODEL_CONFIG} from the source of the weights"
            )
    return None


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
