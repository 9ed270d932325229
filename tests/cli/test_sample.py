"""Tests of the command `sample`, from a run folder or a checkpoint alone."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bigramlm.cli import sample
from bigramlm.generate import draw
from bigramlm.runs import find as runs
from bigramlm.utils import paths
from tests.helpers import TIMEOUT, Cli, assert_refused, command

SCRIPT = paths.home() / "scripts" / "sample.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("logger=none", "optim.lr=0.1", "trainer.keep_checkpoints=9", "sample.prompt=Joan", "sample.top_k=5")
    done = command("data=bundled", "trainer.steps=300", "trainer.eval_every=100", *options, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def table(run: Path, step: int = 300) -> tuple[torch.Tensor, str]:
    path = run / "checkpoints" / f"step_{step}"
    (weights,) = load_file(path / "model.safetensors").values()
    return weights, json.loads((path / "tokenizer.json").read_text("utf-8"))["chars"]


def greedy(run: Path, prompt: str, n: int, step: int = 300) -> str:
    """Continue a prompt with n characters, always the likeliest one."""
    weights, chars = table(run, step)
    for _ in range(n):
        prompt += chars[int(weights[chars.index(prompt[-1])].argmax())]
    return prompt


def test_a_copied_run_folder_is_sufficient(run: Path, tmp_path: Path) -> None:
    """Sample from a copied run folder, in another working folder, without the text."""
    copy = shutil.copytree(run, tmp_path / "moved")
    for name in ("summary.json", "config.yaml", "metrics.jsonl", "samples.txt"):
        text = (copy / name).read_text("utf-8").replace(str(run), "/nowhere")
        (copy / name).write_text(text, "utf-8")
    overrides = ("run=moved", "prompt=Joan, what's ", "max_new_tokens=30", "temperature=0")
    done = command(*overrides, main=sample.main, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out == greedy(run, "Joan, what's ", 30) + "\n"
    assert done.err.replace("\\", "/") == "moved/checkpoints/step_300, 3,844 parameters\n"


@pytest.mark.parametrize("which", ["step_300", "last", "best"])
def test_a_checkpoint_folder_is_sufficient(run: Path, tmp_path: Path, tool: Cli, which: str) -> None:
    where = run / "checkpoints" / which
    if which == "step_300":
        where = Path(shutil.copytree(where, tmp_path / "mine"))
    done = tool(sample.main, f"run={where}", "prompt=Joan", "max_new_tokens=9", "temperature=0")
    assert (done.code, done.out) == (0, greedy(run, "Joan", 9) + "\n"), done.err


def test_every_checkpoint_of_a_run_can_be_selected(run: Path, tool: Cli) -> None:
    for which, step in (("last", 300), ("best", 300), ("100", 100), ("step_200", 200), ("0", 0)):
        options = (f"run={run}", f"checkpoint={which}", "prompt=J", "temperature=0", "max_new_tokens=20")
        assert tool(sample.main, *options).out == greedy(run, "J", 20, step) + "\n"
    none = tool(sample.main, f"run={run}", "checkpoint=7")
    assert_refused(none, run, "last, best, 0, 100, 200, 300", field="checkpoint", value=7)
    assert none.err.count("\n") == 1, "the error is the only output"


def test_the_settings_of_a_run_reproduce_its_final_sample(run: Path, tool: Cli) -> None:
    done = tool(sample.main, f"run={run}", "prompt=Joan", "top_k=5")
    assert (run / "samples.txt").read_text("utf-8") == "---- step 300\n" + done.out
    assert tool(sample.main, f"run={run}", "prompt=Joan", "top_k=5", "seed=1").out != done.out


def test_the_newest_run_is_the_default(run: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: run.parent)
    assert tool(sample.main, "prompt=J", "temperature=0", "max_new_tokens=5").out == greedy(run, "J", 5) + "\n"


def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(
    run: Path, tmp_path: Path, tool: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "checkpoints" / "step_300" / "model.safetensors").write_bytes(b"")
    done = tool(sample.main, f"run={copy}", "prompt=J", "temperature=0", "max_new_tokens=5")
    assert done.out == greedy(run, "J", 5, 200) + "\n"
    assert "skipped: " in caplog.text
    best = tool(sample.main, f"run={copy}", "checkpoint=best")
    # A checkpoint that the user names is not replaced by another.
    assert_refused(best, copy / "checkpoints" / "step_300" / "model.safetensors", "damaged", "SHA-256")


def test_many_samples_of_one_prompt(run: Path, tool: Cli) -> None:
    done = tool(sample.main, f"run={run}", "prompt=What's, ", "num_samples=70", "max_new_tokens=4")
    parts = done.out.split("---- ")[1:]
    assert [part.split("\n")[0] for part in parts] == [f"{n} of 70" for n in range(1, 71)]
    texts = [part.split("\n", 1)[1].removesuffix("\n") for part in parts]
    assert all(text.startswith("What's, ") and len(text) == 12 for text in texts)
    assert len(set(texts)) > 50
    assert tool(sample.main, f"run={run}", "prompt=What's, ", "num_samples=70", "max_new_tokens=4").out == done.out


def test_prompts_from_a_file_give_jsonl_in_the_same_order(run: Path, tmp_path: Path, tool: Cli) -> None:
    prompts = ["Joan", "a", "Who is it?", "", "b"]
    (tmp_path / "p.txt").write_text("\n".join(prompts) + "\n", "utf-8")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in [*prompts, "two\nlines"]))
    for name, expected in (("p.txt", prompts), ("p.jsonl", [*prompts, "two\nlines"])):
        done = tool(sample.main, f"run={run}", f"prompts_file={tmp_path / name}", "temperature=0", "max_new_tokens=8")
        found = [json.loads(line) for line in done.out.splitlines()]
        assert [line["prompt"] for line in found] == expected
        for line in found:
            assert greedy(run, line["prompt"] or "\n", 8) == (line["prompt"] or "\n") + line["completion"]
    lines = "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)
    for name, content in (
        ("bom.txt", b"\xef\xbb\xbf" + "\r\n".join(prompts).encode()),
        ("utf16.txt", "\n".join(prompts).encode("utf-16")),
        ("~lines.txt", lines.encode()),
        ("array.JSON", json.dumps([{"prompt": p} for p in prompts]).encode()),
        ("strings.json", json.dumps(prompts).encode()),
        ("strings.JSON.gz", gzip.compress(json.dumps(prompts, indent=1).encode())),
        ("lines.gz", gzip.compress(lines.encode())),
    ):
        (tmp_path / name).write_bytes(content)
        done = tool(sample.main, f"run={run}", f"prompts_file={tmp_path / name}", "max_new_tokens=0")
        assert [json.loads(line)["prompt"] for line in done.out.splitlines()] == prompts, name
    twice = tool(sample.main, f"run={run}", f"prompts_file={tmp_path / 'p.txt'}", "num_samples=2", "max_new_tokens=3")
    assert [json.loads(line)["prompt"] for line in twice.out.splitlines()] == [p for p in prompts for _ in "12"]


def test_zero_new_tokens_give_the_prompt(run: Path, tmp_path: Path, tool: Cli) -> None:
    assert tool(sample.main, f"run={run}", "prompt=Joan", "max_new_tokens=0").out == "Joan\n"
    (tmp_path / "p.txt").write_text("Joan")
    done = tool(sample.main, f"run={run}", f"prompts_file={tmp_path / 'p.txt'}", "max_new_tokens=0")
    assert json.loads(done.out) == {"prompt": "Joan", "completion": ""}


def capture_shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the pieces of text passed to show."""
    shown: list[str] = []

    def show(text: str, end: str = "\n") -> bool:
        shown.append(text + end)
        return True

    monkeypatch.setattr(sample, "show", show)
    return shown


def test_text_is_printed_token_by_token(run: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = capture_shown(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tool(sample.main, f"run={run}", "prompt=Jo", "max_new_tokens=5", "temperature=0")
    text = greedy(run, "Jo", 5)
    assert shown == [text[:3], *text[3:], "\n"]


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe raises another error on Windows")
def test_sampling_stops_when_the_pipe_is_closed(run: Path) -> None:
    """Close the pipe after 100 bytes: all 100 million tokens would take far too long."""
    line = [sys.executable, str(SCRIPT), f"run={run}", "max_new_tokens=100000000"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(100)
        process.stdout.close()
        assert process.wait(timeout=TIMEOUT) == 0
        assert process.stderr is not None
        assert b"Error" not in process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_output_gives_a_one_line_error(run: Path) -> None:
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, str(SCRIPT), f"run={run}", "max_new_tokens=10"]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["error: standard output cannot be written: No space left on device"]


class Bytes:
    """A tokenizer whose tokens are bytes, so a character may take several tokens."""

    end_of_text = None

    def decode(self, ids: "list[int]") -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_a_character_of_several_tokens_is_printed_when_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = capture_shown(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    new = "né日\N{GRINNING FACE}".encode()
    sample.print_stream(Bytes(), list(b"a"), iter(new), None)  # type: ignore[arg-type]
    assert shown == ["an", "é", "日", "\N{GRINNING FACE}", "\n"]


# Invalid arguments, and the parts that the error message must contain.
BAD = {
    "run=none": ["none", "python scripts/runs.py list"],
    "prompt=日本": ["prompt='日本'", "62", "'日', '本'"],
    "temperature=-1": ["temperature=-1.0"],
    "temperature=nan": ["temperature=nan"],
    "top_p=0": ["top_p=0.0"],
    "top_p=1.5": ["top_p=1.5"],
    "top_k=-1": ["top_k=-1"],
    "num_samples=0": ["num_samples=0"],
    "max_new_tokens=-1": ["max_new_tokens=-1"],
    "seed=-1": ["seed=-1"],
    "device.name=tpu": ["device.name=tpu", "cpu, cuda"],
    "device.name=cuda:99": ["device.name=cuda:99"],
    "device.compile=true": ["device.compile=true"],
    "prompts_file=none.txt": ["prompts_file=none.txt"],
    "--fast": ["--fast", "--help"],
}


@pytest.mark.parametrize(("argument", "named"), BAD.items(), ids=BAD)
def test_invalid_arguments_give_a_one_line_error(run: Path, tool: Cli, argument: str, named: list[str]) -> None:
    done = tool(sample.main, *([] if argument.startswith("run=") else [f"run={run}"]), argument)
    assert_refused(done, *named)
    assert done.err.count("\n") == 1, "the error is the only output"


def test_invalid_prompts_files_give_an_error_with_the_line_number(run: Path, tmp_path: Path, tool: Cli) -> None:
    for name, content, named in (
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', ["line 2", '{"prompt": ']),
        ("b.txt", "a\n日\n", ["line 2", "62", "'日'"]),
        ("c.txt", "", ["empty;"]),
        ("d.txt", b"\xff", ["UTF-8", "0xff"]),
        ("e.jsonl", '{"prompt": "a"}\n\n{"prompt": "日"}\n', ["line 3", "'日'"]),
        ("f.txt", "a".encode("utf-16-le"), ["NUL"]),
        ("g.txt", b"%PDF-1.7", ["PDF"]),
        ("h.txt", b"!<arch>\n", ["ar archive", "unpack it"]),
    ):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        done = tool(sample.main, f"run={run}", f"prompts_file={tmp_path / name}")
        assert_refused(done, tmp_path / name, *named)
        assert done.err.count("\n") == 1, "the error is the only output"
        assert "data." not in done.err
    (tmp_path / "link.txt").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("link.txt", "leads nowhere"), ("pipe", "prompts_file=-"), ("/dev/null", "device")):
        assert_refused(tool(sample.main, f"run={run}", f"prompts_file={tmp_path / name}"), tmp_path / name, reason)
    assert_refused(tool(sample.main, f"run={run}", "prompts_file="), "prompts_file=:", "empty")
    both = tool(sample.main, f"run={run}", "prompt=a", f"prompts_file={tmp_path / 'b.txt'}")
    assert_refused(both, "prompt=a", f"prompts_file={tmp_path / 'b.txt'}")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("promt=a", "did you mean prompt=a?"),
        ("+promt=a", "did you mean prompt=a?"),
        ("hello", 'write prompt="hello"'),
        ("Once upon a time", 'write prompt="Once upon a time"'),
        ("latest", "write run=latest"),
        ("prompt hello", "write prompt=hello"),
        ("prompt=To be", "'prompt=To be'"),
        ("--prompt=a", "write prompt=a"),
        ("--top-k 5", "write top_k=5"),
        ("-n 5", "FIELD=VALUE"),
        ("top_k=1.5", "whole number"),
        ("temperature=hot", "number"),
        ("temperature=1,2", "single value"),
        ("device=gpu", "did you mean device=cpu?"),
        ("device=1", "auto, cpu"),
        ("num_samples:3", "write num_samples=3"),
    ],
)
def test_mistakes_give_one_line_with_the_right_spelling(arguments: str, advice: str, tool: Cli) -> None:
    assert_refused(tool(sample.main, *arguments.split()), arguments, advice)


def test_help_names_every_field_without_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nfrom bigramlm.cli.sample import main\nmain()\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for field in ("run: latest", "checkpoint: last", "top_p: 1.0", "prompts_file: null"):
        assert field in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def frequencies(logits: torch.Tensor, n: int = 4000, **settings: float) -> torch.Tensor:
    """Return the relative frequency of each token in n draws, (V,)."""
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    generator = torch.Generator().manual_seed(0)
    many = draw(logits.expand(n, -1), generator=generator, **options)  # type: ignore[arg-type]
    return many.flatten().bincount(minlength=logits.shape[-1]) / n


def test_draws_follow_the_softmax_with_top_k_and_top_p() -> None:
    p = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = p.log()
    torch.testing.assert_close(frequencies(logits), p, atol=0.03, rtol=0)
    torch.testing.assert_close(frequencies(logits, temperature=0.5), F.softmax(2 * logits, dim=0), atol=0.03, rtol=0)
    assert frequencies(logits, temperature=0).tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(frequencies(logits, top_k=2), torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=0.03, rtol=0)
    assert frequencies(logits, top_k=1).tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(frequencies(logits, top_k=99), p, atol=0.03, rtol=0)
    # 0.4 + 0.3 is the first sum of at least 0.6: the token that reaches top_p is included.
    torch.testing.assert_close(frequencies(logits, top_p=0.6), torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=0.03, rtol=0)
    assert (frequencies(logits, top_p=0.72) > 0).tolist() == [False, True, False, True, True]
    # Sums of quarters are exact, so the second token reaches 0.5 and the third is excluded.
    even = torch.zeros(4)
    assert (frequencies(even, top_p=0.5) > 0).sum() == 2
    assert frequencies(torch.tensor([50.0, 60.0, 40.0]), temperature=1e-30).tolist() == [0, 1, 0], "no logit overflows"
    assert frequencies(logits, top_p=0.01).tolist() == [0, 1, 0, 0, 0]
    both = frequencies(logits, top_k=3, top_p=0.5)
    assert (both > 0).tolist() == [False, True, False, True, False]
    assert (frequencies(torch.zeros(6), top_k=2) > 0).sum() == 2, "ties keep at most k tokens too"
