"""Tests of the layout: import layers, light imports, short files and functions."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigramlm.dev.layers import LAYERS
from bigramlm.utils import paths

PACKAGE = paths.home() / "bigramlm"
# Tests of the whole project, which belong to no subpackage.
WHOLE_PROJECT = {"docs", "examples", "power", "power_calls", "hostile", "layout", "old", "presets", "properties"}
TESTS = sorted((paths.home() / "tests").rglob("*.py"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def subpackage(path: Path) -> str:
    """Return the subpackage or the top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def imported(path: Path) -> set[str]:
    """Return the subpackages that a file imports from, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "bigramlm":
            names = [f"bigramlm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            names = [str(node.module)]
        found |= {name.split(".")[1] for name in names if name.startswith("bigramlm.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_from_lower_layers_only(path: Path) -> None:
    importer = subpackage(path)
    # Evaluation, generation and the step get a model and a device as arguments, so they do not import each other.
    for other in imported(path) - {importer}:
        assert layer(other) < layer(importer), f"{importer} imports {other}"


@pytest.mark.parametrize(
    "module",
    [
        "config.run_config",
        "cli.train",
        "cli.sample",
        "cli.look",
        "cli.prepare",
        "cli.runs",
        "runs.folder",
        "logger.config",
        "logger.metrics",
        "model.config",
        "model.huggingface",
        "adapter.config",
        "data.config",
        "device.config",
    ],
)
def test_modules_for_help_and_completion_do_not_import_torch(module: str) -> None:
    code = f"import sys, bigramlm.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'wandb')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The maximum length of a function in lines, the exceptions with their reasons, and lower limits.
MAX_LINES = 60
EXCEPTIONS: dict[str, str] = {}
LOWER_LIMITS = {"engine/run.py:run": 45, "trainer/trainer.py:Trainer.__init__": 25}


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Return the functions and methods of a file by qualified name."""
    found: dict[str, ast.FunctionDef] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}"
                if isinstance(child, ast.FunctionDef):
                    found[name] = child
                walk(child, f"{name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(path.read_text("utf-8")), "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short(path: Path) -> None:
    assert len(EXCEPTIONS) <= 3
    for name, function in functions(path).items():
        lines = int(function.end_lineno or 0) - function.lineno + 1
        where = f"{path.relative_to(PACKAGE)}:{name}"
        assert lines <= LOWER_LIMITS.get(where, MAX_LINES) or where in EXCEPTIONS, f"{where}: {lines} lines"


def test_functions_of_the_engine_have_few_parameters() -> None:
    for name in ("run", "build", "resolve"):
        for function_name, function in functions(PACKAGE / "engine" / f"{name}.py").items():
            arguments = function.args
            n = len([argument for argument in [*arguments.args, *arguments.kwonlyargs] if argument.arg != "self"])
            assert n <= 5, f"{name}.{function_name} has {n} parameters"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_plain_sentence(path: Path) -> None:
    """Check all docstrings, also those of fields.

    Ruff checks that the docstrings of functions begin with an imperative verb.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
        if isinstance(text, str):
            assert not text.startswith(("What ", "Which ", "Of ", "Where ", "Whether ")), text


@pytest.mark.parametrize("path", MODULES + TESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_docstrings_begin_with_a_short_line(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            assert len(first) <= 80, first


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_configs_are_never_modified(path: Path) -> None:
    """Check that no field of a config is assigned; `replace` makes a changed copy."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute):
                names = ast.unparse(target.value).split(".")
                assert "cfg" not in names, f"line {getattr(node, 'lineno', 0)}: {ast.unparse(target)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_module_parses_overrides(path: Path) -> None:
    """Check that all other modules use the methods of Overrides."""
    if path.stem != "overrides":
        text = path.read_text("utf-8")
        assert not [code for code in ("OverridesParser", r"\\+*", '("+")', '"override.startswith') if code in text]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_test_files_are_short_and_named_after_modules(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 500
    folder = path.relative_to(paths.home() / "tests").parent
    if path.stem in ("__init__", "conftest", "helpers"):
        return
    name = path.stem.removeprefix("test_")
    # Named after a module or subpackage of the tested subpackage, or after the subpackage.
    modules = {module.stem for module in (PACKAGE / folder).iterdir()}
    assert name in modules | ({folder.name} if folder.name else WHOLE_PROJECT), f"{folder}/{path.name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


def test_the_top_level_of_the_package_is_small() -> None:
    """Check that nearly all modules are in subpackages, none named like a public name."""
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py", "errors.py", "generate.py"}
    subpackages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert subpackages == {name for names in LAYERS for name in names} - {"errors", "generate", "__main__"}
    assert not subpackages & {"train", "sweep", "load", "compose", "Run", "Sweep", "UserError"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tests_use_public_names_and_shared_helpers_only(path: Path) -> None:
    """Check that private names may change without a change of the tests."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            # Names of the standard library, of torch and of notebooks.
            of_others = node.attr in ("_exit", "_run_exitfuncs", "_dynamo", "_inductor", "_repr_html_")
            assert of_self or of_others, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            parts = str(node.module).split(".")
            assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), f"line {node.lineno}"
            shared = [alias.name for alias in node.names if parts[0] == "tests" and alias.name.startswith("test_")]
            assert not shared, f"line {node.lineno}"
            assert not any(is_private(alias.name) for alias in node.names), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [str(argument.value) for argument in node.args[:2] if isinstance(argument, ast.Constant)]
            assert not any(is_private(name.rpartition(".")[2]) for name in names), f"line {node.lineno}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_scripts_are_thin_wrappers() -> None:
    scripts = sorted((paths.home() / "scripts").glob("*.py"))
    assert {path.name for path in scripts} >= {"train.py", "bench.py", "config_reference.py"}
    for path in scripts:
        assert len(path.read_text("utf-8").splitlines()) <= 8, path


def test_the_top_level_of_the_repository_is_as_planned() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(paths.home()), "ls-files"], capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked if not name.startswith(".")} == {
        *("conf", "bigramlm", "hydra_plugins", "scripts", "outputs", "sources", "tests", "docs", "examples"),
        *("pyproject.toml", "README.md", "Makefile", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
        *("constraints.txt", "constraints-lowest.txt"),
    }
    assert [name for name in tracked if name.startswith("outputs/")] == ["outputs/README.md"]
    assert [name for name in tracked if name.startswith("sources/")] == ["sources/README.md", "sources/bundled.txt"]


def test_the_lowest_versions_are_those_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later")
    project = tomllib.loads((paths.home() / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [group for name, group in project["optional-dependencies"].items() if name != "dev"]
    bounds = [re.match(r"([\w.-]+)>=([\d.]+)", line) for line in itertools.chain(project["dependencies"], *groups)]
    lowest = {bound[1]: bound[2] for bound in bounds if bound}

    def pins(name: str) -> dict[str, str]:
        lines = (paths.home() / name).read_text("utf-8").splitlines()
        return dict(line.partition(";")[0].strip().split("==") for line in lines if not line.startswith("#"))

    assert pins("constraints-lowest.txt") == {**lowest, "torch": pins("constraints.txt")["torch"]}


def test_the_bundled_text_has_the_form_of_the_corpus() -> None:
    text = paths.bundled_text().read_text("ascii")
    assert len(text) >= 40_000
    speeches = text.removesuffix("\n").split("\n\n")
    for speech in speeches:
        name, *lines = speech.split("\n")
        assert name.endswith(":"), name
        assert lines, name
    cut = int(0.9 * len(text))
    assert set(text[cut:]) <= set(text[:cut]), "the val split has only characters of the train split"
