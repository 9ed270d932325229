"""The text of --help.

It replaces the text of Hydra's own --help, which is slow: for every group of every plugin, Hydra copies all configs in
memory. This module composes the config only once.
"""

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf

from bigramlm.config.extensions import registered
from bigramlm.config.mistakes import check_words
from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import GROUPS, KINDS
from bigramlm.engine.command_line import open_hydra, parse_flags
from bigramlm.engine.recipes import preset_folders
from bigramlm.utils import paths

_TEXT = """\
bigramlm trains a small language model, evaluates it during training, saves
checkpoints, logs metrics, and prints a sample of generated text.

Usage: python scripts/train.py [GROUP=CHOICE] [FIELD=VALUE] ...

Groups and their choices:
{groups}
Fields and their current values (docs/config.md describes each):

{fields}
Examples:
  python scripts/train.py                       the bigram on Shakespeare
  python scripts/train.py experiment=quick      a first look in five seconds
  python scripts/train.py optim.lr=1e-2 data.block_size=16 trainer.steps=2000
  python scripts/train.py data=text data.path=my.txt "sample.prompt=Once upon"
  python scripts/train.py model=gpt optim=muon data.block_size=64
  python scripts/train.py model=gpt tokenizer=bpe tokenizer.vocab_size=512
  python scripts/train.py resume=latest trainer.steps=20000
  python scripts/train.py experiment=finetune init_from=latest data=bundled

Sweeps (docs/sweeps.md):
  python scripts/train.py -m optim.lr=1e-4,1e-3,1e-2 seed=1,2,3
  python scripts/train.py -m experiment=ladder      from a bigram to a GPT
  python scripts/train.py -m seed=1,2,3,4 hydra/launcher=joblib   in parallel
  python scripts/train.py -m ... sweep=latest           continue the last sweep
  launchers: {launchers}; sweepers: {sweepers}

View the metrics:        tensorboard --logdir outputs
Enable tab completion:   eval "$(python -m bigramlm completion bash)"
Hydra's own flags:       python scripts/train.py --hydra-help"""


def help_text(arguments: Sequence[str]) -> str:
    """Return the help text, with the field values that result from the arguments.

    Raises UserError and Hydra's exceptions for a wrong override.
    """
    flags = parse_flags(arguments)
    folders, overrides = preset_folders(flags), Overrides.typed(flags.overrides, sweeps=flags.multirun)
    check_words(flags.overrides, folders=folders)
    with open_hydra(flags) as hydra:
        if flags.multirun:  # swept fields are shown with their defaults
            parsed = overrides.parsed(hydra.config_loader)
            overrides = Overrides(str(override.input_line) for override in parsed if not override.is_sweep_override())
        composed = compose(flags.config_name or "train", overrides.words)
    fields = OmegaConf.to_yaml(composed, resolve=True)
    text = _TEXT.replace("python scripts/train.py", paths.program("train"))
    presets = {f"{kind}s": " ".join(_choices(f"hydra/{kind}")) for kind in ("launcher", "sweeper")}
    shown = "".join(f"  {line}\n" for line in fields.splitlines())
    return text.format(groups=_group_choices(folders), fields=shown, **presets)


def _group_choices(folders: Sequence[Path]) -> str:
    lines = [
        textwrap.fill(" ".join(choices), 80, initial_indent=f"  {group:<12}", subsequent_indent=14 * " ")
        for group, choices in choices_of_groups(folders).items()
    ]
    return "".join(f"{line}\n" for line in lines)


def choices_of_groups(folders: Sequence[Path] | None = None) -> dict[str, list[str]]:
    """List the presets of each config group.

    folders: the folders of presets; conf/ alone if None. Presets that are named after a config class come first, in the
    order of `KINDS`. The others follow alphabetically.
    """

    def order(group: str, choice: str) -> tuple[int, str]:
        return [*KINDS.get(group, []), choice].index(choice), choice

    return {group: sorted(_choices(group, folders), key=partial(order, group)) for group in GROUPS}


def _choices(group: str, folders: Sequence[Path] | None = None) -> list[str]:
    presets = {path.stem for folder in folders or [paths.conf_dir()] for path in (folder / group).glob("*.yaml")}
    return sorted(presets | set(registered(group)))
