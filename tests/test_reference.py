"""The reference: every public name says what it is, and the rendered pages lead somewhere."""

from __future__ import annotations

import html.parser
import importlib
import inspect
import runpy

import pytest

from tests.pages import PAGES, ROOT

PACKAGES = (
    "trocr_jax",
    "trocr_jax.constraints",
    "trocr_jax.datasets",
    "trocr_jax.evaluation",
    "trocr_jax.training",
    "trocr_jax.generation_config",
)


def described(thing, name):
    """(name, what says what it is) of a class or function, and of a class's public methods and properties."""
    yield name, inspect.getdoc(thing)
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if not member.startswith("_") and inspect.isfunction(function):
            yield f"{name}.{member}", inspect.getdoc(getattr(thing, member))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_docstrings(package):
    module = importlib.import_module(package)
    assert module.__doc__
    silent = []
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            told = thing if getattr(thing, "__module__", "").startswith("trocr_jax") else None
            silent += [name for name, text in described(told, public) if not text] if told is not None else []
    assert not silent


class Links(html.parser.HTMLParser):
    """What a page links to and the ids that it has."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.targets += [attributes[name] for name in ("href", "src") if attributes.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("pdoc", reason="the extra [docs] has it")
    folder = tmp_path_factory.mktemp("rendered") / "site"
    script = runpy.run_path(str(ROOT / "docs" / "build.py"))
    script["build"](folder)
    script["build"](folder)  # over its own output
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds other files"):
        script["build"](folder.parent / "other")
    return folder


def test_rendered_links_lead_somewhere(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES) + 10
    broken = []
    for path, links in pages.items():
        for link in links.targets:
            target, _, anchor = link.partition("#")
            if ":" in target:
                continue
            file = (path.parent / target).resolve() if target else path
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_the_reference_has_what_docstrings_say(site):
    told = (site / "api" / "trocr_jax.html").read_text(encoding="utf-8")
    for name in importlib.import_module("trocr_jax").__all__:
        assert f'id="{name}"' in told, name
    assert "[B*R, length]" in told
    assert "What is written in the images" in told
