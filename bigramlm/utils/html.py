"""Self-contained HTML pages: a template, a style, scripts and a block of JSON.

A page fetches nothing. Texts in it are escaped, so that a browser never executes them, and a Content-Security-Policy
allows only the two scripts of the page, identified by their hashes. The template of a page extends `base.html` and
fills its block `body`. `base.css` and `base.js`, which all pages share, precede the files of the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from bigramlm.errors import UserError, require, visible
from bigramlm.utils import files


def render(package: str, *, scripts: Sequence[str], generator: str, data: Any, **values: Any) -> str:
    """Render the template page.html of a package, with its page.css, as a page.

    scripts: the names of the package's scripts, which are joined in this order. generator: the generator in the
    metadata of the page. data: the values for the scripts, as in JSON. values: those for the template; `title` and
    `version` are required.
    """
    # These imports are slow, and the other commands do not need them.
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    def template(name: str) -> str:
        return _asset(*((package, name) if name == "page.html" else _shared(name)))

    own = "\n".join([_asset(*_shared("base.js")), *(_asset(package, name) for name in scripts)])
    # An HTML parser normalizes line ends, which would change the hashes of the scripts.
    texts = [_normalize_line_ends(text) for text in (get_plotlyjs(), own)]
    environment = Environment(
        autoescape=True, trim_blocks=True, finalize=shown, loader=FunctionLoader(template), auto_reload=False
    )
    return environment.get_template("page.html").render(
        values,
        generator=generator,
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        plotly_version=get_plotlyjs_version(),
        policy=Markup(" ".join(_hash(text) for text in texts)),
        css=Markup(_asset(*_shared("base.css")) + _asset(package, "page.css")),
        data=to_json(shown(data)),
        plotly=Markup(texts[0]),
        script=Markup(texts[1]),
    )


def write(path: Path, make: Callable[[], str], *, generator: str, noun: str) -> None:
    """Write a page to a file, which must be free or such a page already.

    make: returns the page; it is called only if the page may be written. generator: as in `render`. noun: the word for
    such a page. Raises UserError if the file exists and is not a page of this generator, or cannot be written.
    """
    files.refuse_dangling(path)
    require(not path.is_dir(), f"{path} is a folder: choose a file, such as {path / f'{generator.split()[-1]}.html'}")
    require(path.parent.is_dir(), f"{path.parent} does not exist: create this folder or choose a different one")
    is_free = not path.exists() or (path.is_file() and _is_by(path, generator))
    require(is_free, f"{path} exists and is not a {noun}, so it is not overwritten: choose a different file")
    content = make().encode(errors="replace")
    try:
        files.write(path.resolve(), [content])  # if it is a link, its target is replaced
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose a different file") from error


def _is_by(path: Path, generator: str) -> bool:
    with path.open("rb") as file:
        return f'<meta name="generator" content="{generator}">'.encode() in file.read(4096)


def shown(value: Any) -> Any:
    """Escape what a browser would obey in texts.

    An example is a mark that reverses the rest of a line. value: a text, a path, or lists and dictionaries of them.
    Markup is left as it is, because it is the page's own.
    """
    if isinstance(value, dict):
        return {shown(name): shown(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shown(part) for part in value]
    return visible(str(value)) if type(value) is str or isinstance(value, Path) else value


def to_json(values: Any) -> Any:
    """Return values as JSON for a script element, as Markup."""
    from markupsafe import Markup

    # Without a <, the JSON can neither end the script element that contains it nor start another element.
    return Markup(
        json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    )


def _shared(name: str) -> tuple[str, str]:
    return "bigramlm.utils", f"assets/{name}"


def _asset(package: str, name: str) -> str:
    return (resources(package) / name).read_text("utf-8")


def _normalize_line_ends(script: str) -> str:
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
