"""The site: it builds from what is here without a network, and its links lead somewhere."""

import functools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


class Page(HTMLParser):
    "The links, the loaded files and the anchors of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("href"):
            self.loads.append(found["href"])
        elif found.get("src"):
            self.loads.append(found["src"])


@functools.cache
def read(path: Path) -> Page:
    return Page(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    "The whole site, made anew."
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, ROOT / "docs" / "build.py", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "html"


def prose(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_links_between_files_of_the_project_lead_to_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.splitlines()] or [*ROOT.rglob("nbs/**/*.ipynb")]
    dead = [
        (path.name, link)
        for path in files
        if path.suffix in (".md", ".ipynb") and path.is_file()
        for link in LINK.findall(prose(path))
        if not urlsplit(link).scheme and not (path.parent / unquote(link)).exists()
    ]
    assert not dead


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site):
    dead = []
    pages = [page for page in sorted(site.rglob("*.html")) if "_static" not in page.parts]
    assert len(pages) > 50
    for page in pages:
        for link in read(page).links + read(page).loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                dead.append((page.name, link))
            elif parts.fragment and there.suffix == ".html":
                if unquote(parts.fragment) not in read(there).anchors | {"", "top"}:
                    dead.append((page.name, link))
    assert not dead


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site):
    "No script, style, font or picture of another host: nobody can see who reads."
    for page in (page for page in site.rglob("*.html") if "_static" not in page.parts):
        outside = [link for link in read(page).loads if urlsplit(link).netloc]
        assert not outside, page
        scripts = re.findall(r"<script[^>]*>(.*?)</script>", page.read_text(encoding="utf-8"), re.S)
        assert not any(re.search(r"https?://(?!www\.w3\.org)", script) for script in scripts), page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text), style


@pytest.mark.slow
def test_the_python_pages_explain_parameters(site):
    page = (site / "api" / "bloodcount.drawing.html").read_text(encoding="utf-8")
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    assert "The image with the outline and the centre of each cell drawn on it." in said
    assert "image – (H, W, 3) uint8 RGB" in said


def test_directives_stay_out_of_the_pages():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import build
    finally:
        sys.path.pop(0)
    book = json.loads(build.notebook(ROOT, ROOT / "nbs" / "09_drawing.ipynb", Path("unused")))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert code and not any(re.search(r"^#\| ", cell["source"], re.M) for cell in code)
    assert any(cell["outputs"] for cell in code) and all(cell["source"] for cell in code)
