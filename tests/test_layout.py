"""The house: imports go down its floors, its entry points are short, its config is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bigramlm.dev.floors import FLOORS
from bigramlm.utils import paths

PACKAGE = paths.home() / "bigramlm"
# Of tests that mirror no room: of what docs/ and conf/ hold, of the house, of what was made before, and of what holds
# for any input.
OF_THE_WHOLE = {"docs", "layout", "old", "presets", "properties"}
TESTS = sorted((paths.home() / "tests").rglob("*.py"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """Return the part, or the module of the package's top level, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def imported(path: Path) -> set[str]:
    """Return the rooms that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "bigramlm":
            names = [f"bigramlm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports say where they come from"
            names = [str(node.module)]
        found |= {name.split(".")[1] for name in names if name.startswith("bigramlm.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_floors_only(path: Path) -> None:
    own = room(path)
    # Evaluation, generation and the step are handed a model and a device: they know the parts, and not each other.
    for other in imported(path) - {own}:
        assert floor(other) < floor(own), f"{own} imports {other}"


@pytest.mark.parametrize(
    "module",
    [
        "config.run_config",
        "cli.train",
        "cli.sample",
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
def test_what_help_and_completion_import_is_free_of_torch(module: str) -> None:
    code = f"import sys, bigramlm.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'wandb')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The longest that functions may be, in lines, and those that may be longer, each for its reason.
LONGEST = 60
MAY_BE_LONGER: dict[str, str] = {}
SHORTER = {"engine/run.py:run": 45, "trainer/trainer.py:Trainer.__init__": 25}


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Return the functions and methods of a file, by their names."""
    found: dict[str, ast.FunctionDef] = {}

    def walk(node: ast.AST, before: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                name = f"{before}{child.name}"
                if isinstance(child, ast.FunctionDef):
                    found[name] = child
                walk(child, f"{name}.")
            else:
                walk(child, before)

    walk(ast.parse(path.read_text("utf-8")), "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short(path: Path) -> None:
    assert len(MAY_BE_LONGER) <= 3
    for name, function in functions(path).items():
        lines = int(function.end_lineno or 0) - function.lineno + 1
        where = f"{path.relative_to(PACKAGE)}:{name}"
        assert lines <= SHORTER.get(where, LONGEST) or where in MAY_BE_LONGER, f"{where}: {lines} lines"


def test_what_the_recipe_alone_calls_takes_few_arguments() -> None:
    for name in ("run", "build", "resolve"):
        for function_name, function in functions(PACKAGE / "engine" / f"{name}.py").items():
            given = function.args
            n = len([argument for argument in [*given.args, *given.kwonlyargs] if argument.arg != "self"])
            assert n <= 5, f"{name}.{function_name} takes {n}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_what_a_thing_is_or_does(path: Path) -> None:
    """Hold docstrings, of fields too, to plain sentences; ruff holds those of functions to an imperative verb."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
        if isinstance(text, str):
            assert not text.startswith(("What ", "Which ", "Of ", "Where ", "Whether ")), text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_writes_a_field_of_a_config(path: Path) -> None:
    """Hold everybody to configs as they were resolved: whoever wants another one makes it with `replace`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute):
                names = ast.unparse(target.value).split(".")
                assert "cfg" not in names, f"line {getattr(node, 'lineno', 0)}: {ast.unparse(target)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_override_strings_are_looked_at_in_one_module(path: Path) -> None:
    """Hold everybody else to the questions that Overrides answers."""
    if path.stem != "overrides":
        text = path.read_text("utf-8")
        assert not [sign for sign in ("OverridesParser", r"\\+*", '("+")', '"override.startswith') if sign in text]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_of_tests_mirrors_its_room_and_is_not_long(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 500
    place = path.relative_to(paths.home() / "tests").parent
    if path.stem in ("__init__", "conftest", "helpers"):
        return
    name = path.stem.removeprefix("test_")
    # A module of the room, a room within it, or the room as a whole.
    mirrored = {module.stem for module in (PACKAGE / place).iterdir()} | ({place.name} if place.name else OF_THE_WHOLE)
    assert name in mirrored, f"{place}/{path.name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_not_long(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


def test_few_modules_stand_at_the_top_level() -> None:
    """Hold the top level to rooms, none of which has the name of something public."""
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py", "errors.py", "generate.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {name for floor_ in FLOORS for name in floor_} - {"errors", "generate", "__main__"}
    assert not rooms & {"train", "sweep", "load", "compose", "Run", "Sweep", "UserError"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tests_know_no_private_names_and_share_helpers_only(path: Path) -> None:
    """Hold tests to public names: what is private may change without one."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            # The standard library's way to end a process, and torch's and pytest's own names.
            assert own or node.attr in ("_exit", "_run_exitfuncs", "_dynamo", "_inductor"), f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            parts = str(node.module).split(".")
            assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), f"line {node.lineno}"
            shared = [alias.name for alias in node.names if parts[0] == "tests" and alias.name.startswith("test_")]
            assert not shared, f"line {node.lineno}"
            assert not any(is_private(alias.name) for alias in node.names), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [str(given.value) for given in node.args[:2] if isinstance(given, ast.Constant)]
            assert not any(is_private(name.rpartition(".")[2]) for name in names), f"line {node.lineno}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_scripts_are_a_few_lines_over_the_package() -> None:
    scripts = sorted((paths.home() / "scripts").glob("*.py"))
    assert {path.name for path in scripts} >= {"train.py", "bench.py", "config_reference.py"}
    for path in scripts:
        assert len(path.read_text("utf-8").splitlines()) <= 8, path


def test_the_top_level_is_the_one_that_was_agreed() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(paths.home()), "ls-files"], capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked if not name.startswith(".")} == {
        *("conf", "bigramlm", "hydra_plugins", "scripts", "outputs", "sources", "tests", "docs"),
        *("pyproject.toml", "README.md", "Makefile", "constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
    }
    assert [name for name in tracked if name.startswith("outputs/")] == ["outputs/README.md"]
    assert [name for name in tracked if name.startswith("sources/")] == ["sources/README.md", "sources/bundled.txt"]


def test_the_bundled_text_is_in_the_corpus_form() -> None:
    text = paths.bundled_text().read_text("ascii")
    assert len(text) >= 40_000
    speeches = text.removesuffix("\n").split("\n\n")
    for speech in speeches:
        name, *lines = speech.split("\n")
        assert name.endswith(":"), name
        assert lines, name
    cut = int(0.9 * len(text))
    assert set(text[cut:]) <= set(text[:cut]), "what validates has no character that training never sees"
