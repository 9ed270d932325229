"""Tests of the page in a real browser, operated with the mouse and the keyboard."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bigramlm.dev.browser import Browser, unavailable_reason
from bigramlm.errors import UserError
from bigramlm.generate import draw
from bigramlm.look.page import page, write
from tests.dev.helpers import click, eventually, mouse, move_slider, point, settled
from tests.helpers import HOSTILE, wait_for
from tests.look.helpers import IDS, SECTIONS, TOKENS, content, show

needs_browser = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no browser: {unavailable_reason()}")


# Resets all that a reader can change.
RESET = """
  for (const form of document.querySelectorAll("form")) form.reset();
  Object.assign(state, {step: steps.length - 1, colour: "surprise", show: "model", order: "use", row: 0, head: null});
  byId("step").value = state.step;
  byId("step").dispatchEvent(new Event("input"));
  markStale(Object.keys(DRAWN));
"""


@pytest.fixture(scope="module")
def folder_of_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("look")


@pytest.fixture
def shown(window: Browser, folder_of_page: Path) -> Browser:
    """Return the browser with the page, which is opened once and reset for each test."""
    if window.driver.current_url == (folder_of_page / "look.html").as_uri():
        mouse(window, "mouseMoved", 1, 1)
        window.run(RESET)
        settled(window)
        assert window.console_errors() == []
    else:
        show(window, folder_of_page, content())
    return window


def texts(window: Browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(args[0])].map((found) => found.textContent)"
    return window.run(script, selector)  # type: ignore[no-any-return]


def token(at: int, of: str = "passage") -> str:
    """Return the selector of a token of a text."""
    return f'#{of} [data-at="{at}"]'


def shades(window: Browser, of: str = "passage") -> list[tuple[str, int]]:
    """Return the colour of each token of a text, and its strength in percent."""
    script = "return [...document.querySelectorAll(args[0])].map((found) => found.style.backgroundColor)"
    found = [re.search(r"--(\w+)\) (\d+)%", text) for text in window.run(script, f"#{of} .token")]
    return [(match[1], int(match[2])) if match else ("", 0) for match in found]


def test_write_replaces_only_its_own_page(tmp_path: Path) -> None:
    path = tmp_path / "look.html"
    for title in ("first", "second"):
        write(content(), path, title=title, facts=[], notes=[])
        assert f"<title>{title}</title>" in path.read_text("utf-8")
    path.write_text("my notes", "utf-8")
    with pytest.raises(UserError, match="not overwritten"):
        write(content(), path, title="third", facts=[], notes=[])
    assert path.read_text("utf-8") == "my notes"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_section_is_absent(name: str) -> None:
    ids = [
        re.findall(r'<section id="(\w+)-section"', page(data, title="t", facts=[], notes=[]))
        for data in (content(), {**content(), name: None})
    ]
    assert ids == [list(SECTIONS), [other for other in SECTIONS if other != name]]


@needs_browser
def test_page_is_complete_and_fetches_nothing(window: Browser, tmp_path: Path) -> None:
    window.requested_urls()
    show(window, tmp_path, content())
    assert texts(window, "h1, dl dd, header .note")[:3] == ["Inside", "gpt", "An n-gram model has no attention."]
    assert len(texts(window, "nav a")) == len(SECTIONS)
    empty = "return Object.keys(DRAWN).filter((id) => byId(id).childElementCount === 0)"
    assert window.run(empty) == []
    assert {address.partition(":")[0] for address in window.requested_urls()} <= {"file", "data", "blob"}


@needs_browser
def test_page_of_a_model_with_little_to_show(window: Browser, tmp_path: Path) -> None:
    data = {**content(), **dict.fromkeys(SECTIONS[1:]), "compare": None, "history": None}
    data["passage"] |= {"ngram": None, "difference": None, "ids": [2], "windows": [0]}
    data["passage"] |= {name: [None] for name in ("surprise", "rank", "top")}
    data["table"] = {**content()["table"], "counts": None, "missing": []}
    data["attention"] = {**content()["attention"], "kinds": None}
    show(window, tmp_path, data)
    assert texts(window, "#passage-switches label") == ["surprise", "rank"]
    assert texts(window, "#table-switches label") == ["use", "alphabet"]
    assert "Without a prediction" in texts(window, "#panel")[0]
    assert texts(window, "#head-title, #head-scores, #step") == [
        "Layer\N{NO-BREAK SPACE}0, head\N{NO-BREAK SPACE}0",
        "",
    ]


@needs_browser
def test_pointing_at_a_token_shows_what_was_expected(shown: Browser) -> None:
    point(shown, token(1))
    assert texts(shown, "#panel dd") == [
        "0.50 nats",
        percent(math.exp(-0.5)),
        "1",
        "1.50 nats, 22.3%",
        "1.00 nats less",
    ]
    assert texts(shown, "#panel .head") == ["a", "b", "␣", "Q", "↵"]
    assert texts(shown, "#panel .amount") == ["50.0%", "25.0%", "12.5%", "6.0%", "3.0%"]
    assert texts(shown, "#panel .marked .head") == ["b"], "the token itself"
    point(shown, token(7))
    assert texts(shown, "#panel .head")[5:] == ["7"], "a token that is none of the five likeliest is added"
    assert texts(shown, "#panel .marked .amount") == ["0.2%"]


def percent(p: float) -> str:
    return f"{100 * p:.1f}%"


@needs_browser
def test_arrow_keys_move_from_token_to_token(shown: Browser) -> None:
    click(shown, token(1))

    def press(key: str) -> int:
        for kind in ("rawKeyDown", "keyUp"):
            shown.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key})
        at = shown.run("return Number(document.activeElement.dataset.at)")
        assert texts(shown, "#panel .chosen small") == [f" token {at + 1} of {len(IDS)}"]
        return int(at)

    # The sixth token ends the first line.
    assert [press(f"Arrow{way}") for way in ("Right", "Left", "Down", "Up")] == [2, 1, 7, 1]
    assert [press(key) for key in ("Home", "ArrowLeft", "End", "ArrowRight")] == [0, 0, 7, 7]


@needs_browser
def test_passage_is_shaded_by_the_chosen_value(shown: Browser) -> None:
    strengths = [strength for _, strength in shades(shown)]
    assert strengths[0] == 0, "no prediction"
    assert sorted(range(1, 8), key=strengths.__getitem__) == [6, 1, 3, 2, 5, 4, 7], "by surprise"
    click(shown, "[name=colour][value=rank]")
    assert [at for at, (_, strength) in enumerate(shades(shown)) if strength == 0] == [0, 1, 3, 6], "rank 1"
    click(shown, "[name=colour][value=ngram]")
    assert [colour for colour, _ in shades(shown)] == ["", "cool", "hot", "", "cool", "", "", "cool"]
    click(shown, "[name=colour][value=difference]")
    assert [colour for colour, _ in shades(shown)] == ["", "cool", "hot", "", "", "", "", ""]
    assert "0.5 nats less surprised than the other" in texts(shown, "#passage-summary")[0]
    after = "return [...document.querySelectorAll('.boundary')].map((mark) => mark.nextSibling.dataset.at)"
    assert shown.run(after) == ["4"], "where the second window begins"


@needs_browser
def test_places_show_the_token_in_its_context(shown: Browser) -> None:
    assert texts(shown, "#worst tbody tr:first-child td") == ["9.25", "aQb↵", "␣ 40.0%"]
    assert texts(shown, "#worst mark") == ["Q", "7"]


@needs_browser
def test_slider_of_steps_changes_passage_table_and_plane_together(shown: Browser) -> None:
    def state() -> Any:
        script = "return [Array.from(byId('table').data[0].z[0]), byId('embedding').data[0].x[0]]"
        return [[strength for _, strength in shades(shown)][:3], *shown.run(script)]

    last = state()
    assert texts(shown, "#step-text") == ["step 10,000 of 10,000"]
    move_slider(shown, "#step", 1)
    assert texts(shown, "#step-text") == ["step 1,000 of 10,000"]
    strengths, row, x = state()
    assert strengths[1] == 100 > strengths[2]
    assert row == pytest.approx([round(255 * (1 / 6) ** 0.5) / 255] * 6)
    assert (x, last[2]) == (9, 1), "the only vowel"
    assert texts(shown, "#row-bars .amount")[0].startswith("16.")
    point(shown, token(1))
    assert texts(shown, "#panel dd")[:2] == ["6.00 nats", "0.2%"]
    assert "rank" not in texts(shown, "#panel dt"), "it is known of the last step only"
    move_slider(shown, "#step", 2)
    assert state() == last


def drawn_table(window: Browser) -> tuple[list[str], list[list[float]]]:
    axis = "Array.from(byId('table').layout.xaxis.ticktext)"
    ticks, z = window.run(f"return [{axis}, byId('table').data[0].z.map((row) => Array.from(row))]")
    return ticks, z


@needs_browser
def test_table_is_sorted_and_compared(shown: Browser) -> None:
    ticks, z = drawn_table(shown)
    assert ticks == ["␣", "a", "b", "↵", "Q", "7"]
    assert z[0][:2] == pytest.approx([0.5, math.sqrt(0.75)], abs=0.01)
    click(shown, "[name=order][value=alphabet]")
    ticks, z = drawn_table(shown)
    assert ticks == ["↵", "␣", "a", "b", "7", "Q"]
    assert z[1][1:3] == pytest.approx([0.5, math.sqrt(0.75)], abs=0.01)
    click(shown, "[name=show][value=counts]")
    assert drawn_table(shown)[1][0] == pytest.approx([math.sqrt(1 / 6)] * 6, abs=0.01)
    click(shown, "[name=show][value=difference]")
    assert drawn_table(shown)[1][1][:3] == pytest.approx(
        [0 - math.sqrt(1 / 6), 0.5 - math.sqrt(1 / 6), math.sqrt(0.75) - math.sqrt(1 / 6)], abs=0.01
    )


@needs_browser
def test_click_on_a_row_shows_what_follows(shown: Browser) -> None:
    assert texts(shown, "#row-bars .head")[:2] == ["a", "␣"], "after the most used token"
    place = """
        const {xaxis, yaxis} = byId('table')._fullLayout;
        const {x, y} = document.querySelector('#table .nsewdrag').getBoundingClientRect();
        return [x + xaxis.d2p(3), y + yaxis.d2p(4)];
    """
    x, y = shown.run(place)

    def is_chosen() -> bool:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            mouse(shown, kind, x, y)
        return bool(shown.run("return state.row === 4"))

    wait_for(is_chosen)  # Plotly ignores a click before it has noticed the mouse
    assert "after Q: ↵" in texts(shown, "#table .hoverlayer")[0]
    assert texts(shown, "#row-bars .head")[:2] == ["7", "Q"]
    assert texts(shown, "#row-bars .amount")[0].split(" / ") == ["75.1%", "16.6%"]
    assert texts(shown, "#missing li") == ["a then b text 90.0%, model 50.0%", "Q then ↵ text 80.0%, model 70.0%"]
    click(shown, "#missing li button")
    assert shown.run("return byId('row').selectedOptions[0].textContent") == "a"
    assert texts(shown, "#row-bars .head")[:2] == ["b", "a"]


@needs_browser
def test_head_opens_large_and_shades_the_text(shown: Browser) -> None:
    assert texts(shown, "#head-title") == ["Layer\N{NO-BREAK SPACE}0, head\N{NO-BREAK SPACE}0: previous token"], (
        "the head with the highest score"
    )
    assert len(texts(shown, ".small-head")) == 4
    click(shown, ".small-head:nth-child(2)")
    assert texts(shown, "#head-title") == ["Layer\N{NO-BREAK SPACE}0, head\N{NO-BREAK SPACE}1: mixed"]
    assert "0.10 to the previous token" in texts(shown, "#head-scores")[0]
    point(shown, token(5, "attention-text"))
    strong = [at for at, (_, strength) in enumerate(shades(shown, "attention-text")) if strength]
    assert strong == [3], "two positions before"
    assert texts(shown, "#attention-readout") == ["↵ at position 6 looks at a 100.0% (2 before)"]
    pixels = """
        const {width, height} = document.querySelector('#head canvas');
        const {data} = document.querySelector('#head canvas').getContext('2d').getImageData(0, 0, width, height);
        return [width, height, [...Array(width * height).keys()].filter((at) => data[4 * at] < 128)];
    """
    n = len(IDS)
    assert shown.run(pixels) == [n, n, [n * i + max(0, i - 2) for i in range(n)]]
    # Pointing at the map chooses the row.
    x, y, size = shown.run("const {x, y, width} = byId('head').getBoundingClientRect(); return [x, y, width]")
    mouse(shown, "mouseMoved", x + 0.5 * size / n, y + 6.5 * size / n)
    eventually(shown, "return state.looking === 6")
    assert "Q" in texts(shown, "#attention-readout")[0]
    assert "a 0.0% (6 before)" in texts(shown, "#attention-readout")[0], "the cell that is pointed at"


@needs_browser
def test_layers_show_where_the_truth_appears(shown: Browser) -> None:
    rows = [
        texts(shown, f"#lens {part} tr:nth-child({n}) :is(th, td)")
        for part, n in (("thead", 1), ("tbody", 1), ("tbody", 2), ("tfoot", 1))
    ]
    read = ["a", "b", "␣", "a", "Q", "↵", "b", "7"]
    assert rows == [["token", *read], ["embedding", *["␣"] * 8], ["h.0", *read[1:], "↵"], ["next token", *read[1:], ""]]
    right = "return [...document.querySelectorAll('#lens .right')].map((cell) => cell.dataset.place)"
    assert shown.run(right) == ["0 1", *(f"1 {at}" for at in range(7))]
    point(shown, '#lens [data-place="1 2"]')
    assert texts(shown, "#lens-readout") == ["After h.0, at ␣: a 90.0% ␣ 5.0% ↵ 1.0%; the true a has 90.0%"]


@needs_browser
def test_plane_weights_and_activations(shown: Browser) -> None:
    traces = shown.run("return byId('embedding').data.map(({name, text, x}) => [name, text.join(), x.join()])")
    assert traces == [
        ["vowel", "a", "1"],
        ["consonant", "b", "2"],
        ["capital", "Q", "4"],
        ["digit", "7", "5"],
        ["space", "␣,↵", "0,3"],
    ]
    titles = shown.run("const {xaxis, yaxis} = byId('embedding').layout; return [xaxis.title.text, yaxis.title.text]")
    assert titles == ["first direction, 40.0% of the variance", "second direction, 20.0% of the variance"]
    assert texts(shown, "#weights figcaption") == [f"h.{n}.weightstandard deviation 0.5" for n in range(3)]
    assert texts(shown, "#activations figcaption") == ["h.0.mlp12.5% of the units never fire"]
    assert texts(shown, "#activations .amount") == ["1", "4"]
    widths = "return [...document.querySelectorAll('#activations .track')].map((track) => track.style.width)"
    assert shown.run(widths) == ["25%", "100%"]


def drawn_probabilities(logits: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Measure how often `draw` chooses each token."""
    n = 20_000
    generator = torch.Generator().manual_seed(1)
    tokens = draw(logits.expand(n, -1), generator=generator, **settings)[:, 0]
    return torch.bincount(tokens, minlength=logits.shape[-1]) / n


def computed_probabilities(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Compute the probabilities of sorted logits (V,), as `draw` documents them."""
    if temperature == 0:
        return torch.eye(len(logits))[0]
    if top_k:
        logits = torch.cat((logits[:top_k], torch.full((len(logits) - top_k,), -torch.inf)))
    p = (logits.double() / temperature).softmax(0)
    if top_p < 1:
        n = int((p.cumsum(0) < top_p).sum()) + 1
        p = torch.where(torch.arange(len(p)) < n, p, 0)
    return p / p.sum()


SETTINGS = [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7), (1.0, 2, 0.6), (0.0, 0, 1.0), (1.0, 2, 0.0)]


@needs_browser
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_sampling_agrees_with_the_draw_of_tokens(shown: Browser, temperature: float, top_k: int, top_p: float) -> None:
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    logits = torch.tensor(content()["sampling"]["logits"][0])
    found = shown.run("return distribution(2, args[0])", settings)
    expected = computed_probabilities(logits, temperature, top_k, top_p)
    assert found["after"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found["after"] == pytest.approx(drawn_probabilities(logits, **settings).tolist(), abs=0.02)
    assert found["before"] == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    kept = expected > 0
    assert found["remaining"] == int(kept.sum())
    assert found["removed"] == pytest.approx(float(logits.softmax(0)[~kept].sum()), abs=1e-6)
    for name, value in settings.items():
        move_slider(shown, f"[name={name}]", value)
    assert texts(shown, "#sampling-bars .amount")[0] == f"{percent(found['before'][0])} / {percent(found['after'][0])}"
    n = found["remaining"]
    assert ("all 6 tokens remain" if n == 6 else f"{n} of 6 tokens remain") in texts(shown, "#sampling-readout")[0]


@needs_browser
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (1.3, 0, 0.9), (0.7, 2, 1.0), (2.0, 0, 0.5)]
)
def test_sampling_counts_the_tokens_of_a_large_vocabulary(
    window: Browser, tmp_path: Path, temperature: float, top_k: int, top_p: float
) -> None:
    data = content()
    data["sampling"] |= {"tail": [[[-3.0, 20], [-4.0, 30]]] * len(IDS)}
    show(window, tmp_path, data)
    logits = torch.tensor([*data["sampling"]["logits"][0], *[-3.0] * 20, *[-4.0] * 30])
    found = window.run("return distribution(0, args[0])", {"temperature": temperature, "top_k": top_k, "top_p": top_p})
    expected = computed_probabilities(logits, temperature, top_k, top_p)
    parts = [*expected[:6].tolist(), float(expected[6:26].sum()), float(expected[26:].sum())]
    assert found["after"] == pytest.approx(parts, abs=1e-6)
    assert (found["remaining"], found["size"]) == (int((expected > 0).sum()), 56)
    assert texts(window, "#sampling-bars .row:last-child .head") == ["50 others"]


@needs_browser
def test_click_in_the_text_chooses_the_position_of_sampling(shown: Browser) -> None:
    click(shown, token(6, "sampling"))
    assert shown.run("return document.querySelector('[name=position]').value") == "6"
    assert texts(shown, "#sampling .later") == ["7"]
    assert texts(shown, "#sampling-bars .marked .head") == ["7"], "the true next token"


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [420, 1280])
def test_page_fits_the_window_in_both_themes(window: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    data = content()
    data["tokens"] = ["\n", " ", "שלום", "👩‍👩‍👧", "x" * 300, "\t"]
    data["passage"] |= {"ids": [3, 2, 3, 2, 2, 1, 4, 0]}
    show(window, tmp_path, data, width=width, dark=dark)
    is_wide = "(found) => !found.closest('.scroll, svg') && found.getBoundingClientRect().right > innerWidth + 1"
    wide = f"[...document.querySelectorAll('body *')].filter({is_wide}).map((found) => found.tagName + found.id)"
    assert window.run(f"return [document.documentElement.scrollWidth, {wide}]") == [width, []]
    left = "[...document.querySelectorAll('#passage .token')].map((one) => one.getBoundingClientRect().left)"
    lefts = window.run(f"return {left}")[:4]
    assert lefts == sorted(lefts), "tokens are in their order, whatever their direction"
    colours = "const {color, backgroundColor} = getComputedStyle(document.body); return [color, backgroundColor]"
    text, ground = (sum(map(int, re.findall(r"\d+", found))) for found in window.run(colours))
    assert (ground < text) == dark
    pixel = "return [...document.querySelector('#head canvas').getContext('2d').getImageData(1, 0, 1, 1).data]"
    assert (sum(window.run(pixel)[:3]) < 380) == dark, "a weight of 0 has the colour of the ground"
    click(window, "#theme")
    assert (sum(window.run(pixel)[:3]) < 380) != dark


@needs_browser
def test_hostile_texts_are_not_executed(window: Browser, tmp_path: Path) -> None:
    data = content()
    data["tokens"] = [f"{HOSTILE}{n}" for n in range(len(TOKENS))]
    data["tokens"][5] = "<b>7</b>"  # Plotly would interpret this tag
    data["compare"]["label"] = HOSTILE
    data["worst"]["places"] = [{**place, "before": HOSTILE, "token": HOSTILE} for place in data["worst"]["places"]]
    for layer in data["attention"]["kinds"]:
        for head in layer:
            head["name"], head["scores"] = HOSTILE, {HOSTILE: 0.5}
    data["lens"]["layers"] = data["activations"]["stream"]["layers"] = [HOSTILE, HOSTILE]
    data["weights"][0]["name"] = data["activations"]["units"][0]["name"] = HOSTILE
    show(window, tmp_path, data)
    for at in (1, 7):
        point(window, token(at))
        point(window, token(at, "attention-text"))
    point(window, '#lens [data-place="1 2"]')
    for selector in ("[name=colour][value=difference]", "[name=order][value=alphabet]", "#missing button"):
        click(window, selector)
    point(window, "#table .nsewdrag")
    eventually(window, "return document.querySelector('#table .hoverlayer').textContent.includes('%{y}')")
    for chart in ("table", "embedding"):
        eventually(window, "return byId(args[0]).textContent.includes('<b>7</b>')", chart)
        labels = "byId(args[0]).data.flatMap(({text, hovertext}) => [...Array.from(text), ...(hovertext ?? [])]).flat()"
        assert window.run(f"return {labels}.filter((text) => /<(?!br>)/.test(text))", chart) == [], "tags for Plotly"
    found = "return [window.hacked, document.querySelectorAll('img, b, main script, td script').length]"
    assert window.run(found) == [None, 0]
    assert texts(window, "#passage .token")[0].startswith("<script>window.hacked = 1</script>"), "literal text"
    assert "\\u2028" in texts(window, "#worst mark")[0], "a character that a browser would obey is escaped"
    settled(window)
    assert window.console_errors() == []
    assert {address.partition(":")[0] for address in window.requested_urls()} <= {"file", "data", "blob"}
