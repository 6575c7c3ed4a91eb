"""Renders these pages and the reference of all public names, from their docstrings, as HTML.

usage: python docs/build.py FOLDER

Needs the extra [docs] (pdoc). FOLDER/index.html is the first page.
"""

from __future__ import annotations

import html
import importlib
import os
import pathlib
import re
import shutil
import sys

import markdown2
import pdoc
import pdoc.docstrings

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Pages from elsewhere that these link to, and their names in the output. Other files are copied.
OTHERS = {
    ROOT / "README.md": "readme.html",
    ROOT / "benchmarks" / "NOTES.md": "notes.html",
    ROOT / "notebooks" / "README.md": "notebooks.html",
    ROOT / "notebooks" / "samples" / "README.md": "samples.html",
}
FILES = "files"
# What the reference describes; everything else may change.
MODULES = (
    "trocr_jax",
    "trocr_jax.constraints",
    "trocr_jax.datasets",
    "trocr_jax.datasets.augmentation",
    "trocr_jax.datasets.randaugment",
    "trocr_jax.datasets.synthetic",
    "trocr_jax.evaluation",
    "trocr_jax.training",
    "trocr_jax.checkpoints.conversion",
    "trocr_jax.checkpoints.inspection",
    "trocr_jax.allocator",
    "trocr_jax.calibration",
    "trocr_jax.compilation_cache",
    "trocr_jax.registry",
)
EXTRAS = ("tables", "fenced-code-blocks", "header-ids", "code-friendly", "highlightjs-lang", "tag-friendly")
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; display: flex; font: 16px/1.55 system-ui, sans-serif; color: #1b1f24; }}
nav {{ flex: 0 0 15em; padding: 1.5em 1em; background: #f6f8fa; min-height: 100vh; box-sizing: border-box; }}
nav a {{ display: block; padding: .15em 0; }} nav b {{ display: block; margin-top: .8em; }}
main {{ flex: 1; min-width: 0; max-width: 56em; padding: 1em 2.5em 4em; }}
a {{ color: #0b62c4; text-decoration: none; }} a:hover {{ text-decoration: underline; }}
code {{ background: #f2f4f6; padding: .1em .3em; border-radius: 3px; font-size: .9em; overflow-wrap: anywhere; }}
pre {{ background: #f2f4f6; padding: .8em 1em; overflow-x: auto; border-radius: 6px; line-height: 1.4; }}
pre code {{ padding: 0; background: none; overflow-wrap: normal; }}
table {{ border-collapse: collapse; }} td, th {{ border: 1px solid #d0d7de; padding: .35em .7em; text-align: left; }}
td {{ vertical-align: top; }} img {{ max-width: 100%; }}
@media (max-width: 50em) {{ body {{ display: block; }} nav {{ min-height: 0; }} main {{ padding: 1em; }} }}
</style>
</head>
<body>
<nav>{nav}</nav>
<main>{content}</main>
</body>
</html>
"""


def pages() -> dict[pathlib.Path, str]:
    """Every Markdown page and the name of its rendering."""
    others = {page: name for page, name in OTHERS.items() if page.is_file()}
    return {page: f"{page.stem}.html" for page in sorted(DOCS.glob("*.md"))} | others


def title_of(page: pathlib.Path) -> str:
    """A page's first heading."""
    return page.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def navigation() -> str:
    """Links to the pages, in the index's order, and to the reference."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    links = ['<a href="index.html"><strong>trocr_jax</strong></a>', "<b>Pages</b>"]
    names = pages()
    for title, path in re.findall(r"^\| \[(.*?)\]\((.*?\.md)\)", index, re.MULTILINE):
        links.append(f'<a href="{names[(DOCS / path).resolve()]}">{title}</a>')
    links.append("<b>Reference</b>")
    links += [f'<a href="{api_path(name)}">{name.removeprefix("trocr_jax.")}</a>' for name in MODULES]
    return "\n".join(links)


def api_path(module: str) -> str:
    """Where the reference of a module is in the output."""
    return f"api/{module.replace('.', '/')}.html"


def render(page: pathlib.Path, nav: str, output: pathlib.Path) -> str:
    """A page as HTML, its links led to the renderings, or to copies. Raises ValueError for one that leads elsewhere."""
    names = pages()

    def led(match: re.Match[str]) -> str:
        attribute, link = match.groups()
        path, hash_mark, anchor = link.partition("#")
        if not path or "://" in link:
            return match[0]
        target = (page.parent / path).resolve()
        if target in names:
            return f'{attribute}="{names[target]}{hash_mark}{anchor}"'
        if not (target.is_file() and target.is_relative_to(ROOT)):
            raise ValueError(f"{page} links to {link}, which is no file of the repository")
        copy = pathlib.Path(FILES) / target.relative_to(ROOT)
        (output / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, output / copy)
        return f'{attribute}="{copy.as_posix()}"'

    content = markdown2.markdown(page.read_text(encoding="utf-8"), extras=list(EXTRAS))
    content = re.sub(r'\b(href|src)="([^"]*)"', led, content)
    return PAGE.format(title=html.escape(f"{title_of(page)} · trocr_jax"), nav=nav, content=content)


def render_reference(folder: pathlib.Path) -> None:
    """Renders the docstrings of MODULES."""
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            vars(module)[public] = getattr(module, public)  # names that are imported when first used
    convert = pdoc.docstrings.convert
    pdoc.docstrings.convert = lambda text, *where: convert(without_emphasis(text), *where)
    try:
        pdoc.render.configure(docformat="markdown", show_source=False, template_directory=DOCS / "templates")
        pdoc.pdoc(*MODULES, output_directory=folder)
    finally:
        pdoc.docstrings.convert = convert


def without_emphasis(text: str) -> str:
    """A docstring whose products, such as [B*K, V], are not taken for Markdown's emphasis."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"(?<=\w)\*(?=\w)", r"\\*", part) for part in parts[::2]]
    return "`".join(parts)


def build(folder: str | os.PathLike[str]) -> None:
    """Writes everything into a folder, which is made anew."""
    output = pathlib.Path(folder)
    if output.exists() and not (output / "api").is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} holds other files; name a new folder, or one that this wrote")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    nav = navigation()
    for page, name in pages().items():
        (output / name).write_text(render(page, nav, output), encoding="utf-8")
    render_reference(output / "api")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build(sys.argv[1])
