"""The generator of docs/config.md.

The page is generated from the dataclasses and the presets, so that it cannot contradict the code.
"""

import ast
import inspect
import textwrap
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import MISSING, OmegaConf

from bigramlm.cli.common import command
from bigramlm.cli.help import choices_of_groups
from bigramlm.cli.look import LookCommand
from bigramlm.cli.prepare import PrepareCommand
from bigramlm.cli.sample import SampleCommand
from bigramlm.config.run_config import KINDS, RunConfig, SampleConfig
from bigramlm.device.config import DeviceConfig
from bigramlm.engine.command_line import set_up_hydra
from bigramlm.logger.config import LoggerConfig
from bigramlm.trainer.config import TrainerConfig
from bigramlm.utils import paths

_HEAD = """\
# Every field of the config

`make docs` generates this page from the dataclasses in the code; a test checks that it is up to date.

The config of a run consists of *groups* (`model=bigram`, `data=text`) and *fields* (`optim.lr=1e-2`). Override
both on the command line as written here: `python scripts/train.py data=text data.path=my.txt trainer.steps=2000`.
A field without a default is required. The full config of a run is saved in its `config.yaml`.
Times are in seconds, losses in nats.
"""

_SAMPLE = """\
`python scripts/sample.py` generates text with a trained model: `python scripts/sample.py prompt=ROMEO: top_k=20`.
Its fields are not part of a run's config; its group `device` is the same as for training."""

_LOOK = """\
`python scripts/look.py` writes a page that shows what a model has learned ([look.md](look.md)):
`python scripts/look.py prompt="To be, or not to be"`."""

_PREPARE = """\
`python scripts/prepare.py` writes the token files of a text ([data.md](data.md)):
`python scripts/prepare.py data=bundled tokenizer=byte`. In addition to the field below, it accepts the fields of
`data` (except for the batch shape) and `tokenizer`; the default is `data=text`."""

_SWEEPS = """\
With `-m`, a sweeper chooses the jobs and a launcher runs them ([sweeps.md](sweeps.md)):
`python scripts/train.py -m seed=1,2 hydra/launcher=joblib hydra.launcher.n_jobs=2`."""


def reference() -> str:
    """Return the text of docs/config.md."""
    set_up_hydra()
    parts = [_HEAD]
    for group, choices in choices_of_groups().items():
        parts.append(f"## {group}\n\nChoices: {', '.join(f'`{group}={choice}`' for choice in choices)}\n")
        if group in KINDS:
            for kind in dict.fromkeys(KINDS[group].values()):
                names = [name for name, other in KINDS[group].items() if other is kind]
                head = ", ".join(f"{group}={name}" for name in names)
                parts.append(f"### {head}\n\n{_paragraph(kind)}\n\n{_table(group, kind)}")
                if len(names) > 1:
                    parts.append(_presets(group, kind, names))
        elif group == "experiment":
            parts.append(_experiments())
        else:
            kind = {"device": DeviceConfig, "trainer": TrainerConfig, "logger": LoggerConfig}[group]
            parts.append(f"{_paragraph(kind)}\n\n{_table(group, kind)}")
    parts.append(f"## sample\n\n{_paragraph(SampleConfig)}\n\n{_table('sample', SampleConfig)}")
    parts.append(f"## The run\n\n{_table('', RunConfig)}")
    parts.append(_sweeps())
    parts.append(f"## scripts/sample.py\n\n{_SAMPLE}\n\n{_table('', SampleCommand)}")
    parts.append(f"## scripts/look.py\n\n{_LOOK}\n\n{_table('', LookCommand)}")
    parts.append(f"## scripts/prepare.py\n\n{_PREPARE}\n\n{_table('', PrepareCommand)}")
    return "\n".join(parts)


@command
def main() -> None:
    """Write docs/config.md."""
    path = paths.home() / "docs" / "config.md"
    path.write_text(reference(), "utf-8")
    print(f"wrote {path}")


def _presets(group: str, kind: type[Any], names: list[str]) -> str:
    # List the fields that each preset of a class sets.
    rows = []
    for name in names:
        with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
            preset = OmegaConf.to_container(compose("train", [f"{group}={name}"])[group])
        assert isinstance(preset, dict)
        sets = [f"`{f.name}={_yaml(preset[f.name])}`" for f in fields(kind) if preset[f.name] != f.default]
        changes = ", ".join(item for item in sets if not item.startswith("`name=")) or "the defaults"
        rows.append(f"- `{group}={name}`: {_about(paths.conf_dir() / group / f'{name}.yaml')} Sets {changes}.\n")
    return "".join(rows)


def _about(preset: Path) -> str:
    # The comments of a preset describe its purpose.
    lines = preset.read_text("utf-8").splitlines()
    return " ".join(line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @"))


def _experiments() -> str:
    presets = sorted((paths.conf_dir() / "experiment").glob("*.yaml"))
    rows = [f"- `experiment={path.stem}`: {_about(path)}\n" for path in presets]
    return "Named sets of overrides; overrides on the command line take precedence.\n\n" + "".join(rows)


def _sweeps() -> str:
    # In these presets, the comment above `_target_` describes the preset; any other comment describes the field below.
    parts = [f"## Sweeps\n\n{_SWEEPS}\n"]
    for group in ("launcher", "sweeper"):
        for path in sorted((paths.conf_dir() / "hydra" / group).glob("*.yaml")):
            about, rows = "", ["| field | default | meaning |", "|---|---|---|"]
            comment: list[str] = []
            for line in path.read_text("utf-8").splitlines():
                if line.startswith("# "):
                    comment.append(line[2:])
                    continue
                name, _, value = line.partition(": ")
                description, comment = " ".join(comment), []
                if name == "_target_":
                    about = description
                else:
                    rows.append(f"| `hydra.{group}.{name}` | `{value}` | {description} |")
            parts.append(f"### hydra/{group}={path.stem}\n\n{about}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _paragraph(kind: type[Any]) -> str:
    return " ".join(inspect.getdoc(kind).split())  # type: ignore[union-attr]


def _table(group: str, kind: type[Any]) -> str:
    field_docs = _field_docs(kind)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in fields(kind):
        default = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
        if is_dataclass(default) or field.name in KINDS:
            continue  # documented as a separate group
        shown = "" if default in (MISSING, NO_DEFAULT) else f"`{_yaml(default)}`"
        name = f"{group}.{field.name}" if group else field.name
        type_name = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        kind_name = str(field.type) if "[" in str(field.type) else type_name
        kind_name = kind_name.replace(" | ", " or ")
        rows.append(f"| `{name}` | {kind_name} | {shown} | {field_docs[field.name]} |")
    return "\n".join(rows) + "\n"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else "''"


def _field_docs(kind: type[Any]) -> dict[str, str]:
    # Field docstrings are the strings below the fields; those of inherited fields are in the base class.
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(doc.value.value).split()).replace("|", "\\|")
    return found


if __name__ == "__main__":
    main()
