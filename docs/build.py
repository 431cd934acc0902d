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
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FLOORS = {
    "The tool": "nbs/[0-9]*.ipynb",
    "The studies": "nbs/studies/*.ipynb",
    "The paper": "nbs/paper/*.ipynb",
}


def pages(root: Path) -> list[Path]:
    "The Markdown files and notebooks that become pages."
    found = [root / "README.md", root / "CONTRIBUTING.md", root / "figures" / "README.md"]
    found += [root / "data" / "README.md", *sorted(root.glob("data/*/README.md"))]
    found += [root / "benchmarks" / "README.md"]
    found += sorted(root.glob("data/*/*/README.md")) + sorted(root.glob("bloodcount/weights/*/README.md"))
    return [path for path in found if path.is_file()] + sorted(root.glob("nbs/**/[!.]*.ipynb"))


def modules(root: Path) -> list[str]:
    "The names of the modules, those of the studies last."
    files = sorted(root.glob("bloodcount/[!_]*.py")) + sorted(root.glob("bloodcount/studies/[!_]*.py"))
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


def notebook(root: Path, page: Path, source: Path) -> str:
    "A notebook without directives, and without the cells that hold nothing else."
    book = json.loads(page.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        text = stripped("".join(cell["source"]))
        cell["source"] = placed(root, page, text, source) if cell["cell_type"] == "markdown" else text
    book["cells"] = [cell for cell in book["cells"] if cell["source"]]
    book["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "python3"}
    return json.dumps(book, ensure_ascii=False)


def toctree(caption: str, entries: list[str]) -> str:
    listed = "\n".join(entries)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def contents(root: Path) -> str:
    "The tables of contents at the foot of the start page, which make the sidebar."
    listed = [path.relative_to(root) for path in pages(root)]
    parts = [toctree("Start", ["self", "nbs/index.ipynb"])] if root / "nbs/index.ipynb" in pages(root) else []
    parts.append(toctree("Results", ["figures/README.md"]))
    for caption, pattern in FLOORS.items():
        entries = [str(path.relative_to(root)) for path in sorted(root.glob(pattern))]
        parts.append(toctree(caption, entries))
    beside = {"README.md", "figures/README.md"}
    rest = [str(p) for p in listed if p.suffix == ".md" and str(p) not in beside]
    parts.append(toctree("Python", [f"api/{name}" for name in modules(root)]))
    parts.append(toctree("More", rest))
    return "".join(parts)


def public(path: Path) -> Iterator[str]:
    "The functions and classes that a module exports and explains, in their order."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and node.name[0] != "_" and ast.get_docstring(node):
            yield node.name


def api_page(root: Path, name: str) -> str:
    "A module's page: what it is, its notebook, a table of what it holds, and each part."
    path = root / Path(*name.split(".")).with_suffix(".py")
    made_from = re.search(r"File to edit: \S*?(nbs/\S+\.ipynb)", path.read_text(encoding="utf-8"))
    link = f"Defined and explained in [{made_from[1]}](../{made_from[1]}).\n" if made_from else ""
    summary = "\n".join(f"   {part}" for part in public(path))
    return (
        f"# {name}\n\n{link}\n```{{eval-rst}}\n.. automodule:: {name}\n   :no-members:\n\n"
        f".. currentmodule:: {name}\n\n.. autosummary::\n   :nosignatures:\n\n{summary}\n\n"
        + "".join(f".. autofunction:: {part}\n" if kind == "function" else f".. autoclass:: {part}\n   :members:\n" for part, kind in kinds(path))
        + "```\n"
    )


def kinds(path: Path) -> list[tuple[str, str]]:
    "The public parts of a module: name, and function or class."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return [(p, "class" if isinstance(named[p], ast.ClassDef) else "function") for p in public(path)]


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
