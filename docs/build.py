"""Builds the site from the notebooks, the results page, the README and the docstrings: `make docs`.

It needs no network and runs no notebook. The site opens without a server: docs/_build/html/index.html.
"""

import argparse
import ast
import io
import json
import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock

HERE = Path(__file__).parent
ROOT = HERE.parent
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
GUIDES = {
    "nbs/index.ipynb": "The whole way in a minute",
    "nbs/count_your_own.ipynb": "Count your own images",
    "nbs/train_on_your_own.ipynb": "Train on your own images",
}
FLOORS = {
    "The tool": "nbs/[0-9]*.ipynb",
    "The studies": "nbs/studies/*.ipynb",
    "The paper": "nbs/paper/*.ipynb",
}


def pages(root: Path) -> list[Path]:
    "The Markdown files and notebooks that become pages."
    found = [root / "README.md", root / "CONTRIBUTING.md", root / "figures" / "README.md"]
    found += [root / "data" / "README.md", *sorted(root.glob("data/*/README.md"))]
    found += sorted(root.glob("benchmarks/**/README.md"))
    found += sorted(root.glob("data/*/*/README.md")) + sorted(
        root.glob("bloodcount/weights/*/README.md")
    )
    return [path for path in found if path.is_file()] + sorted(root.glob("nbs/**/[!.]*.ipynb"))


def modules(root: Path) -> list[str]:
    "The names of the modules, those of the studies last."
    files = sorted(root.glob("bloodcount/[!_]*.py")) + sorted(
        root.glob("bloodcount/studies/[!_]*.py")
    )
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in files]


def target(root: Path, page: Path, link: str) -> Path | None:
    "The file of the project that a link leads to; None for a link to elsewhere."
    if re.match(r"[a-z]+:", link):
        return None
    path = (page.parent / link).resolve()
    return path if path.is_relative_to(root) else None


def placed(root: Path, page: Path, text: str, source: Path) -> str:
    "The text of a page, the files beside it that it links to copied, and links to the README to the start page."

    def here(link: re.Match) -> str:
        path = target(root, page, link[2])
        if path == root / "README.md":
            return f"{link[1]}{link[2].removesuffix('README.md')}index.md{link[3]}"
        if path and path.is_file() and path.suffix not in (".md", ".ipynb"):
            copy = source / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        return link[0]

    return LINK.sub(here, text)


def stripped(source: str) -> str:
    "A cell without nbdev's directives."
    return re.sub(r"^(#\| .*|- skip_exec: true)(\n|$)", "", source, flags=re.M).strip("\n")


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # IPython's own lines
        return False
    return all(isinstance(each, (ast.Import, ast.ImportFrom)) for each in statements)


def notebook(root: Path, page: Path, source: Path) -> str:
    "A notebook without directives, and without the cells that hold nothing else; imports are folded."
    book = json.loads(page.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        cell["source"] = stripped("".join(cell["source"]))
        if cell["cell_type"] == "markdown":
            cell["source"] = placed(root, page, cell["source"], source)
        elif only_imports(cell["source"]):
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
    book["cells"] = [cell for cell in book["cells"] if cell["source"]]
    book["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "python3"}
    return json.dumps(book, ensure_ascii=False)


def toctree(caption: str, entries: list[str]) -> str:
    listed = "\n".join(entries)
    return f"\n```{{toctree}}\n:hidden:\n:titlesonly:\n:caption: {caption}\n\n{listed}\n```\n"


def contents(root: Path) -> str:
    "The tables of contents at the foot of the start page, which make the sidebar."
    listed = [str(path.relative_to(root)) for path in pages(root)]
    guides = [f"{title} <{path}>" for path, title in GUIDES.items() if path in listed]
    parts = [
        toctree("Start", ["Overview <self>", *guides]),
        toctree("Results", ["figures/README.md"]),
    ]
    for caption, pattern in FLOORS.items():
        found = sorted(str(path.relative_to(root)) for path in root.glob(pattern))
        parts.append(toctree(caption, found))
    parts.append(toctree("Python", ["Modules <api/index>"]))
    first = ("README.md", "figures/README.md")
    parts.append(toctree("More", [p for p in listed if p.endswith(".md") and p not in first]))
    return "".join(parts)


def public(path: Path) -> dict[str, str]:
    "The functions and classes that a module exports and explains: name, and autofunction or autoclass."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    shown = [n for n in named if n.name[0] != "_" and ast.get_docstring(n)]
    return {n.name: "autoclass" if isinstance(n, ast.ClassDef) else "autofunction" for n in shown}


def api_page(root: Path, name: str) -> str:
    "A module's page: what it is, its notebook, a table of what it holds, and each part."
    path = root / Path(*name.split(".")).with_suffix(".py")
    made_from = re.search(r"File to edit: \S*?(nbs/\S+\.ipynb)", path.read_text(encoding="utf-8"))
    link = f"Defined and explained in [{made_from[1]}](../{made_from[1]}).\n" if made_from else ""
    parts = public(path)
    listed = "".join(f"   {part}\n" for part in parts)
    table = f".. autosummary::\n   :nosignatures:\n\n{listed}\n" if parts else ""
    each = "".join(
        f".. {kind}:: {part}\n" + ("   :members:\n" if kind == "autoclass" else "")
        for part, kind in parts.items()
    )
    module = f".. automodule:: {name}\n   :no-members:\n\n.. currentmodule:: {name}\n\n"
    orphan = "---\norphan: true\n---\n"  # Listed by `api_index`; a sidebar with them all is long, and slow to make
    return f"{orphan}# {name}\n\n{link}\n```{{eval-rst}}\n{module}{table}{each}```\n"


def api_index(root: Path) -> str:
    "The page that lists all modules with what they are."
    rows = []
    for name in modules(root):
        path = root / Path(*name.split(".")).with_suffix(".py")
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append(f"| [{name}]({name}.md) | {says.splitlines()[0] if says else ''} |\n")
    return f"# Modules\n\n| module | what it is |\n|---|---|\n{''.join(rows)}"


def lay_out(root: Path, source: Path) -> None:
    "Write all that Sphinx reads."
    shutil.rmtree(source, ignore_errors=True)
    for page in pages(root):
        start = page == root / "README.md"
        copy = source / ("index.md" if start else page.relative_to(root))
        copy.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".ipynb":
            text = notebook(root, page, source)
        else:
            text = placed(root, page, page.read_text(encoding="utf-8"), source)
        copy.write_text(text + (contents(root) if start else ""), encoding="utf-8")
    (source / "api").mkdir()
    (source / "api" / "index.md").write_text(api_index(root), encoding="utf-8")
    for name in modules(root):
        (source / "api" / f"{name}.md").write_text(api_page(root, name), encoding="utf-8")


def build(
    out: Path,  # Folder that is made anew: source/ is what Sphinx reads, html/ the site
    root: Path = ROOT,
) -> list[str]:  # Its warnings
    "Build the site."
    shutil.rmtree(out, ignore_errors=True)
    lay_out(root, out / "source")
    sys.path.insert(0, str(root))
    warnings = io.StringIO()
    app = Sphinx(
        out / "source", HERE, out / "html", out / "doctrees", "html", status=None, warning=warnings
    )  # fmt: skip
    with mock(app.config.autodoc_mock_imports):  # Else autodoc loads them in search of their source
        app.build()
    return [line for line in warnings.getvalue().splitlines() if line.strip()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "_build")
    out = parser.parse_args().out
    found = build(out)
    print("\n".join(found), file=sys.stderr)
    print(f"{out / 'html' / 'index.html'}")
    sys.exit(bool(found))
