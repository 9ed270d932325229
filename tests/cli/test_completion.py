"""Tests of TAB completion: the line in bash, and the scripts in real shells."""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigramlm.cli import completion
from bigramlm.cli.completion import NOT_OURS, SHELLS, Line, command_of, script
from bigramlm.utils import paths
from tests.helpers import Cli, assert_refused

BREAKS = " \t\n\"'><=;|&(:"  # the default of COMP_WORDBREAKS
TRAIN = f"{paths.home() / 'scripts' / 'train.py'}"

# A line that is typed, and the same line after a TAB. `repo` links to the repository; the other files are in the
# working folder.
LINES = {
    "python repo/scripts/train.py optim.sch": "optim.schedule=",
    "python3 repo/scripts/train.py model=att": "model=attention ",
    "repo/.venv/bin/python -u -X dev repo/scripts/train.py data=text data.form": "data.format=",
    "python repo/scripts/train.py -m optim=adamw,m": "optim=adamw,muon",
    "python repo/scripts/train.py --multi": "--multirun ",
    "python repo/scripts/train.py data=text data.path=my": r"data.path=my\ file.txt ",
    "python repo/scripts/train.py 'data.path=my": "'data.path=my file.txt'",
    "python repo/scripts/train.py data.path=with:col": "data.path=with:colon.txt ",
    r"python repo/scripts/train.py data.path=a\ ": r"data.path=a\ b/",
    "python repo/scripts/runs.py li": "list ",
    "python repo/scripts/runs.py list status=com": "status=completed ",
    "python repo/scripts/checkpoint.py ver": "verify ",
    "python repo/scripts/sample.py stop_at_end=t": "stop_at_end=true ",
    "python repo/scripts/prepare.py tokenizer=w": "tokenizer=wordpiece ",
    "bigramlm-train optim.warm": "optim.warmup_steps=",
    "bigramlm verify_resume --ki": "--kills ",
    "python -m bigramlm ch": "checkpoint ",
    "true; python repo/scripts/train.py trainer.st": "trainer.steps=",
    # Nothing is offered, and nothing changes.
    "python repo/scripts/train.py nosuch": "nosuch",
    "python repo/scripts/runs.py nosuch l": "l",
    "python repo/scripts/train.py optim.lr=": "optim.lr=",
    "python repo/scripts/train.py --config-dir nosuch resume=nosuch zz": "zz",
    # Other programs, scripts and arguments are completed as before: with files.
    "python zz.py my": r"my\ file.txt ",
    "python zz": "zz.py ",
    "python repo/scripts/ru": "repo/scripts/runs.py ",
    "python scripts/train.py zz": "zz.py ",
    "python -m json.tool zz": "zz.py ",
    "python repo/scripts/train.py > zz": "zz.py ",
    "ls my": r"my\ file.txt ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a working folder in which code that is executed would leave a file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "repo").symlink_to(paths.home())
    (folder / "a b").mkdir()
    for name in ("my file.txt", "with:colon.txt"):
        (folder / name).write_text("x")
    # Among them a copy of a checkout, and modules that TAB completion imports.
    for name in (
        "zz.py",
        "hydra.py",
        "omegaconf.py",
        "bigramlm/__init__.py",
        "bigramlm/__main__.py",
        "scripts/train.py",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(folder / 'executed')!r}, 'w')\n")
    (folder / "conf").mkdir()
    (folder / "conf" / "train.yaml").touch()
    return folder


SETUPS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        r"""bind -x '"\C-o": printf "%s\n." "$READLINE_LINE" >"$OUT"'""",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        r"""dump() { print -r -- "$BUFFER" >$OUT; print -rn . >>$OUT }; zle -N dump
        bindkey '^O' dump; bindkey '^U' kill-whole-line; bindkey '^I' complete-word""",
    ),
}


class Shell:
    """An interactive shell in a terminal, in which TAB completion is set up."""

    def __init__(self, name: str, folder: Path, out: Path, *before: str) -> None:
        import pty

        command, setup = SETUPS[name]
        (out / "setup").write_text("\n".join([setup, "PS1='$ '", *before, script(name)]))
        self.out, self.screen = out / "line", b""
        environment = {**os.environ, "TERM": "dumb", "OUT": str(self.out), "COLUMNS": "200"}
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment)
        self.type(f" . {shlex.quote(str(out / 'setup'))}; echo rea''dy\n")
        self.wait(lambda: b"ready" in self.screen)

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not until():
            assert time.monotonic() < end, self.screen
            if select.select([self.terminal], [], [], 0.02)[0]:
                self.screen += os.read(self.terminal, 65536)

    def complete(self, keys: str) -> str:
        """Type keys, usually with a TAB, and return the line that is then in the terminal."""
        self.out.unlink(missing_ok=True)
        self.type(keys + "\x0f")
        self.wait(lambda: self.out.exists() and self.out.read_text().endswith("\n."))
        self.screen = b""
        self.type("\x15")
        return self.out.read_text()[:-2]

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


TERMINALS = [pytest.param("bash", marks=needs("bash")), pytest.param("zsh", marks=[needs("zsh"), pytest.mark.slow])]


@pytest.fixture(scope="module", params=TERMINALS)
def shell(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(request.param, folder, tmp_path_factory.mktemp("shell"))
    yield shell
    shell.close()


@pytest.mark.parametrize("typed", LINES)
def test_tab_in_a_terminal(typed: str, shell: Shell, folder: Path) -> None:
    word = LINES[typed]
    start = typed[: typed.rindex(re.split(r"(?<!\\) ", typed)[-1])]
    # zsh ends a quoted word with a space, too.
    assert shell.complete(f"{typed}\t").removesuffix("' ").removesuffix("'") == start + word.removesuffix("'")
    assert not (folder / "executed").exists()


@pytest.mark.slow
@needs("fish")
def test_tab_in_fish(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "setup").write_text(script("fish"))
    quoted = ["'" + typed.replace("\\", "\\\\").replace("'", "\\'") + "'" for typed in LINES]
    code = f"source {tmp_path}/setup; for line in {' '.join(quoted)}; echo (complete -C $line | string join '|'); end"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code],
        cwd=folder,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    for line, (typed, word) in zip(done.stdout.splitlines(), LINES.items(), strict=True):
        changes = not typed.endswith(word)
        offered = [text.split("\t")[0] for text in line.split("|")]
        assert offered == ([shlex.split(word)[0]] if changes else [""]), typed
    assert not (folder / "executed").exists()


@needs("bash")
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_in_bash_the_line_is_all_that_is_printed(quote: str, folder: Path, tmp_path: Path) -> None:
    """Call the function as bash does, for lines that the commands would refuse."""
    (tmp_path / "setup").write_text(script("bash"))
    for line in (
        "python repo/scripts/runs.py l",
        "python repo/scripts/train.py --nosuch 'unclosed model=",
        "python repo/scripts/train.py --config-dir nosuch optim.lr=x model=g",
        "python repo/scripts/sample.py run=nosuch checkpoint=",
        "python zz.py repo/scripts/train.py mod",
    ):
        code = (
            f"source {tmp_path}/setup; COMP_LINE=$1$2; COMP_POINT=${{#COMP_LINE}}; _bigramlm python x y; "
            "printf '%s\\n' \"${COMPREPLY[@]}\" >reply"
        )
        done = subprocess.run(
            ["bash", "-c", code, "bash", line, quote], cwd=folder, capture_output=True, check=True, env={**os.environ}
        )
        assert (done.stdout, done.stderr) == (b"", b"")
        assert not (folder / "executed").exists()


@needs("bash")
def test_earlier_rules_of_bash_are_kept(folder: Path, tmp_path: Path) -> None:
    function = 'earlier() { COMPREPLY=("${2}_by_function "); }'
    load = 'load() { complete -o nospace -F earlier "$1"; return 124; }'
    for number, (rule, expected) in enumerate(
        {
            "complete -o nospace -F earlier python": "m_by_function ",
            "complete -W 'my mine_too' python": "m",
            "complete -W 'mine \"not mine\"' python": "mine ",
            "complete -C 'echo m_by_command #' python": "m_by_command ",
            "complete -D -F load": "m_by_function ",
        }.items()
    ):
        (tmp_path / str(number)).mkdir()
        shell = Shell("bash", folder, tmp_path / str(number), function, load, rule, script("bash"))
        try:
            for _ in range(2):
                assert shell.complete("python zz.py m\t") == f"python zz.py {expected}", rule
                assert shell.complete(f"python {TRAIN} model=att\t") == f"python {TRAIN} model=attention ", rule
        finally:
            shell.close()


@pytest.mark.slow
@needs("zsh")
def test_earlier_rules_of_zsh_are_kept(folder: Path, tmp_path: Path) -> None:
    earlier = ("autoload -Uz compinit; compinit -D -i", "earlier() { compadd mine }", "compdef earlier python")
    shell = Shell("zsh", folder, tmp_path, *earlier, script("zsh"))
    try:
        assert shell.complete("python zz.py m\t") == "python zz.py mine "
        assert shell.complete(f"python {TRAIN} model=att\t") == f"python {TRAIN} model=attention "
    finally:
        shell.close()


@pytest.mark.parametrize(
    ("line", "words", "typed", "quote"),
    [
        ("python a.py", ["python", "a.py"], "a.py", ""),
        ("python a.py ", ["python", "a.py", ""], "", ""),
        ("x model=g", ["x", "model=g"], "g", ""),
        ("x model=", ["x", "model="], "", ""),
        ("x 'a b' c", ["x", "a b", "c"], "c", ""),
        (r"x p=a\ b:c\:d", ["x", "p=a b:c:d"], r"c\:d", ""),
        ('x "p=a \\"b', ["x", 'p=a "b'], 'p=a \\"b', '"'),
        ('x p="a b"/c', ["x", "p=a b/c"], '"a b"/c', ""),
        ("x 'a\\", ["x", "a\\"], "a\\", "'"),
        ('x ""', ["x", ""], '""', ""),
        ("a; x b", ["x", "b"], "b", ""),
        ("a && x b", ["x", "b"], "b", ""),
        ("a | x b", ["x", "b"], "b", ""),
        ("x a 2>&1 >out b", ["x", "a", "b"], "b", ""),
        ("x a &>out b", ["x", "a", "b"], "b", ""),
        ("x a > ou", [], "ou", ""),
        ("x <in", [], "in", ""),
        ("", [""], "", ""),
    ],
)
def test_the_line_of_bash(line: str, words: list[str], typed: str, quote: str) -> None:
    assert Line.parse(line, BREAKS) == Line(words, typed, quote)


@pytest.mark.skipif(os.name == "nt", reason="the words of cmd.exe are quoted in another way")
@given(
    st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=12),
    st.integers(0, 12),
    st.sampled_from(["", "'", '"']),
)
def test_an_insertion_in_bash_is_the_completion(name: str, n: int, quote: str) -> None:
    """Check that bash would read the completed line as the word that is offered."""
    name = name.strip()
    start = "".join(f"\\{c}" if not quote and not c.isalnum() else c for c in name[:n])
    if ({"'", '"', "\\"} & {*name[:n]} and quote) or ({"$", "`"} & {*name} and quote == '"'):
        return  # typed in another way; read in another way by shlex
    line = Line.parse(f"x {quote}f={start}", BREAKS)
    assert line.words == ["x", f"f={name[:n]}"]
    completed = f"x {quote}f={start}"[: -len(line.typed) or None] + line.insertion(f"f={name} ") + quote
    assert shlex.split(completed) == ["x", f"f={name}"]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (f"python {TRAIN} a b", ["train", "a", "b"]),
        (f"/usr/bin/python3.12 -u -W error {TRAIN} ", ["train", ""]),
        ("python -m bigramlm runs l", ["runs", "l"]),
        ("python -m bigramlm r", ["", "r"]),
        ("bigramlm r", ["", "r"]),
        ("bigramlm runs l", ["runs", "l"]),
        ("/opt/bin/bigramlm-sample.exe t", ["sample", "t"]),
        *[(line, None) for line in ("", "python", f"python {TRAIN}", "bigramlm", "python zz.py a", "python -c a b")],
        *[(line, None) for line in (f"python zz.py {TRAIN} a", f"python -c x {TRAIN} a", f"ls {TRAIN} a")],
        *[(line, None) for line in ("python -m json.tool a", "python -m json.tool bigramlm a", "bigramlm nosuch a")],
        *[(line, None) for line in ("bigramlm-bench a", "python nosuch/scripts/train.py a", "python \0 a")],
    ],
)
def test_the_command_of_a_line(line: str, command: list[str] | None) -> None:
    assert command_of(line.split(" ")) == command


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (["zsh", "bigramlm", "tr"], 0, "train \n"),
        (["bash", "bigramlm tr"], 0, "train \n"),
        (["bash", "ls tr"], NOT_OURS, ""),
        (["fish", "bigramlm", "train", "nosuch"], 0, "\n"),
        (["fish", "bigramlm", "runs", "nosuch", ""], 0, "\n"),
    ],
)
def test_the_answer_to_a_shell(
    arguments: list[str], code: int, printed: str, tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = tool(completion.answer, *arguments)
    assert (ended.code, ended.out, ended.err) == (code, printed, "")


def test_names_that_a_terminal_would_obey_are_not_offered(
    tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a\x1b[31m", "a\nb", "a\u202eb", "ab"):
        (tmp_path / name).touch()
    assert tool(completion.answer, "zsh", "bigramlm-train", "data.path=a").out == "data.path=ab \n"


def test_the_command_prints_a_script(tool: Cli) -> None:
    for shell in SHELLS:
        ended = tool(completion.main, shell)
        assert (ended.code, ended.out, ended.err) == (0, script(shell), "")
        assert sys.executable in ended.out
        assert "@" not in re.sub(r"\$@|\[@\]|\(@\w+\)", "", ended.out), "nothing is left to replace"
    assert_refused(tool(completion.main, "tcsh"), "tcsh", "bash", "--help")
    assert "eval" in tool(completion.main, "--help").out
