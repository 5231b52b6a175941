"""HTML that needs nothing but a browser: tables that can be sorted, pictures, a page."""

import base64

from pretrain.files.text import for_html

from .tables import Cell, is_number

CSS = """
:root { color-scheme: light dark; --text: #1c1e21; --dim: #5c6370; --line: #d9dce1; --page: #fff; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --dim: #a0a6b0; --line: #3a3f47; --page: #16181c; --soft: #202329; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 110rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 2rem; }
.dim, figcaption { color: var(--dim); font-size: .9rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { background: var(--soft); white-space: normal; vertical-align: bottom; }
td.ap { text-align: right; font-weight: 600; }
th[scope=col] { cursor: pointer; } [aria-sort=ascending]::after { content: " ▲"; }
[aria-sort=descending]::after { content: " ▼"; }
.number { text-align: right; } .small { text-align: right; font-size: .78rem; color: var(--dim); }
.wrap, .name, tbody th { white-space: normal; }
.wrap { min-width: 8rem; } .name { min-width: 5rem; } tbody th { min-width: 6rem; }
figure { margin: 1rem 0; } img { max-width: min(100%, 80rem); height: auto; background: #fff; border-radius: 4px; }
pre { background: var(--soft); padding: .7rem; overflow: auto; font-size: .82rem; } pre.config { max-height: 30rem; }
summary { cursor: pointer; }
"""


# A click on a head sorts by that column, numbers by their value, another click the other way round. Where a content
# policy forbids scripts, the page says all the same.
SCRIPT = """
for (const head of document.querySelectorAll("th[scope=col]")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.ariaSort !== "descending";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => a === "–" || b === "–" ? (a === "–") - (b === "–")
    : (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b) * (down ? -1 : 1);
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
};
"""


def _cell_class(column):
    if " / " in column:
        return "small"
    if column in ("decoder", "units", "loss, first → last logged"):
        return "wrap"
    if column in ("weights", "dataset", "published row", "schedule"):
        return "name"
    if "published" in column or ":" in column:
        return "number"
    return "ap" if column.endswith("AP") or column == "top-1" else "number" if is_number(column) else ""


def _breakable(text):
    """Long names of runs and files may break where their words end."""
    return for_html(text).replace("_", "_<wbr>").replace("/", "/<wbr>")


def html_table(rows, caption):
    """Rows (column -> text) as a table with a caption below."""
    classes = {column: _cell_class(column) for column in rows[0]}
    head = "".join(
        f'<th scope="col" class="{c.replace("ap", "number")}">{_breakable(k)}</th>' for k, c in classes.items()
    )
    body = ""
    for row in rows:
        (_, name), *rest = row.items()
        texts = {k: _breakable(v) if classes[k] in ("name", "wrap") else for_html(v) for k, v in rest}
        cells = "".join(f'<td class="{classes[k]}"{_value(v)}>{texts[k]}</td>' for k, v in rest)
        body += f'<tr><th scope="row">{_breakable(name)}</th>{cells}</tr>\n'
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return f'<div class="wide">{table}</div>\n<p class="dim">{for_html(caption)}</p>\n'


def _value(cell):
    """What a cell sorts by, if not by its text."""
    return f' data-value="{cell.value:.6g}"' if isinstance(cell, Cell) else ""


def image(data, mime, alt, caption=""):
    """A picture, in the page itself."""
    uri = f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    caption = f"<figcaption>{for_html(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{uri}" alt="{for_html(alt)}">{caption}</figure>\n'


def html_page(title, body):
    """The whole page; the title is text, the body HTML."""
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    head += f"<title>{for_html(title)}</title>\n<style>{CSS}</style>"
    script = f"<script>{SCRIPT}</script>\n"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}{script}</body>\n</html>\n'
