"""A hook of mkdocs: the pages of the site that stand nowhere below docs/, and links that hold in both places.

README and its neighbours are pages of the site; every installed pass has a page made of its class; a glob in the
navigation stands for the pages that it matches.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from griffe import Docstring, DocstringSection, DocstringSectionText
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from tabulate import tabulate

from fxprune.pipeline.kinds import Pass, option_fields
from fxprune.pipeline.registry import Installed, find_pass, installed
from fxprune.pipeline.values import show_value

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FROM_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
KEEPS = {
    "function": "the function: every output stays what it was",
    "silenced": "the outputs of the program whose removed units are silenced",
    "nothing": "nothing: it changes the function on purpose",
}
# A link, or the name of a page in code; README and its like are also read where no site is.
LINK = re.compile(
    r"\[(?P<text>[^\]]*)\]\((?P<to>[^)\s#]+)(?P<at>#[^)]*)?\)|`docs/(?P<page>[\w/-]+\.md)`"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, then fills the navigation."""
    for uri, name in FROM_ROOT.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for one in installed():
        files.append(File.generated(config, f"passes/{one.name}.md", content=write_page(one)))
    pages = [file.src_uri for file in files.documentation_pages()]
    config.nav = list(_fill(config.nav or [], pages))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Puts the table of passes before the first of them, and makes the links of the checkout hold on the site."""
    if page.file.src_uri == "passes.md":
        markdown = markdown.replace("\n## ", f"\n{_table()}\n\n## ", 1)
    here = FROM_ROOT.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda found: _link(found, here, page.file.src_uri, files), markdown)


def _fill(nav: list[Any], pages: list[str]) -> Iterator[Any]:
    """The navigation with the pages that its globs match in their place."""
    for entry in nav:
        if isinstance(entry, dict):
            yield {k: list(_fill(v, pages)) if isinstance(v, list) else v for k, v in entry.items()}
        elif "*" in entry:
            yield from sorted((p for p in pages if Path(p).match(entry)), key=_without_suffix)
        else:
            yield entry


def _without_suffix(page: str) -> str:
    """The name by which pages are sorted: `dead-units` stands before `dead-units-seen`."""
    return page.removesuffix(".md")


def _link(found: re.Match[str], here: str, uri: str, files: Files) -> str:
    """A link of the page at `uri`, written in the file `here`, as the site spells it; to what is no page: its text."""
    if found["page"]:
        return f"[`docs/{found['page']}`]({_relative(found['page'], uri)})"
    target = os.path.normpath(Path(here).parent / found["to"])
    on_site = {name: to for to, name in FROM_ROOT.items()}.get(target, target.removeprefix("docs/"))
    if files.get_file_from_path(on_site):
        return f"[{found['text']}]({_relative(on_site, uri)}{found['at'] or ''})"
    return found["text"] if (ROOT / target).exists() else found[0]


def _relative(target: str, uri: str) -> str:
    return os.path.relpath(target, Path(uri).parent)


def write_page(one: Installed) -> str:
    """The page of a pass: what its class says, and its remarks."""
    owner = find_pass(one.name)
    parts = Docstring(inspect.getdoc(owner) or "", lineno=1).parse("google", warnings=False)
    texts = [part.value for part in parts if isinstance(part, DocstringSectionText)]
    facts = [
        ("kind", one.kind),
        ("keeps", KEEPS[one.keeps]),
        ("in a pipeline", f"`{one.name}{{{one.options}}}`" if one.options else f"`{one.name}`"),
        ("class", f"`{owner.__module__}.{owner.__qualname__}`"),
        ("package", one.package),
    ]
    page = [f"# {one.name}", *texts, tabulate(facts, headers=("pass", one.name), tablefmt="github")]
    if options := list(_options(owner, parts)):
        head = ("option", "type", "default", "meaning")
        page += ["## Options", tabulate(options, headers=head, tablefmt="github")]
    if remarks := _remarks(one.name):
        page += ["## Remarks", remarks]
    page += [f"More about it: [passes](../passes.md{_anchor(one.name)})."]
    return "\n\n".join(page) + "\n"


def _table() -> str:
    """Every pass, by its page."""
    rows = [(f"[{p.name}](passes/{p.name}.md)", p.kind, p.keeps, p.does) for p in installed()]
    return tabulate(rows, headers=("pass", "kind", "keeps", "does"), tablefmt="github")


def _options(owner: type[Pass], parts: list[DocstringSection]) -> Iterator[tuple[str, ...]]:
    """Name, type, default and meaning of each option."""
    meanings = {
        item.name: " ".join(item.description.split())
        for part in parts
        if part.kind.value in ("parameters", "attributes")
        for item in part.value
    }
    types = get_type_hints(owner)
    for field in option_fields(owner):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        shown = "must be given" if default is MISSING else f"`{show_value(default)}`"
        name = field.name.replace("_", "-")
        yield f"`{name}`", _type(types[field.name]), shown, meanings.get(field.name, "")


def _type(hint: Any) -> str:
    """A type as one says it: the values of a choice, `int`, `str, ...`."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"several `{get_args(hint)[0].__name__}`"
    if args := get_args(hint):
        return " or ".join(_type(arg) for arg in args)
    return "`none`" if hint is type(None) else f"`{hint.__name__}`"


def _remarks(name: str) -> str:
    """The rows of docs/remarks.md that are about a pass."""
    lines = (DOCS / "remarks.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| `{name}.")]
    return "\n".join(
        ["| code | kind | says | what to do |", "| --- | --- | --- | --- |", *rows] if rows else []
    )


def _anchor(name: str) -> str:
    """The heading of docs/passes.md that names a pass; nothing where none does."""
    headings = re.findall(r"^## (.+)$", (DOCS / "passes.md").read_text(encoding="utf-8"), re.M)
    named = [h for h in headings if name in h.replace("`", "").split(", ")]
    return "#" + re.sub(r"[^\w-]+", "-", named[0].lower()).strip("-") if named else ""
