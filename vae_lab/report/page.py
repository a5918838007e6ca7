"""Many runs as one HTML page, which needs no server and no network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"

SCRIPTS = (
    "format",
    "model",
    "state",
    "charts",
    "summary",
    "table",
    "heatmap",
    "plane",
    "curves",
    "parallel",
    "collapse",
    "pictures",
    "statistics",
    "difference",
    "page",
)
"""The page's own JavaScript, in the order in which it is read; they share one scope."""


def render(payload: dict[str, Any]) -> str:
    """The page of `payload`, as `payload.py` makes it: the text of one HTML file.

    Style, scripts, Plotly and the data are each in it once. Whatever comes from runs is text, also where it looks like
    HTML; the page's own content policy lets it load nothing.

    Raises:
        ValueError: if a number is not finite, which JSON cannot say.
    """
    from plotly.offline import get_plotlyjs  # of the extra `report`

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` writes < > & ' as \u003c ..., so that no name can end the script that it is in
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
        "sort_keys": False,
    }
    return environment.get_template("page.html.j2").render(
        payload=payload,
        style=Markup((TEMPLATES / "style.css").read_text()),
        scripts=[Markup((TEMPLATES / "scripts" / f"{name}.js").read_text()) for name in SCRIPTS],
        plotly=Markup(get_plotlyjs()),
    )
