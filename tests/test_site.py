"""The site: every page has its place, every public name its entry, and nothing is loaded from the network.

`make site` builds it, which also finds links that lead nowhere; these tests need none of its packages.
"""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import yaml
from markdown import Markdown
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
CONFIG_TEXT = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
CONFIG = yaml.safe_load(re.sub(r"!!python/\S+", "", CONFIG_TEXT))
PACKAGES_WITH_NAMES = [
    "mesascope",
    *(f"mesascope.{name}" for name in "activations analyses circuits executors explorer interventions".split()),
    *(f"mesascope.{name}" for name in "loggers probes store testing train".split()),
]


@pytest.fixture(scope="module")
def pages_module() -> ModuleType:
    """docs/site_pages.py, of which MkDocs' own classes are not needed here."""
    return import_without("site_pages", "mkdocs.structure.files", "File", "Files")


@pytest.fixture(scope="module")
def docstrings_module() -> ModuleType:
    """docs/site_docstrings.py, likewise."""
    return import_without("site_docstrings", "griffe", *"Attribute Class Extension Function Module Object".split())


def import_without(name: str, missing: str, *attributes: str) -> ModuleType:
    stand_in = ModuleType(missing)
    for attribute in attributes:
        setattr(stand_in, attribute, type(attribute, (), {}))
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(missing)
    sys.modules[missing] = stand_in
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[missing]
        if before is not None:
            sys.modules[missing] = before
    return module


def pages_in(nav: object) -> list[str]:
    """The pages of the navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in pages_in(one)]


def documented_in(page: Path) -> list[str]:
    """What a page of the reference documents, or points to where it is documented."""
    return re.findall(r"(?:^::: |\]\[)(mesascope[\w.]*)", page.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_in_the_navigation_once_and_every_entry_exists(pages_module):
    listed = pages_in(CONFIG["nav"])
    written = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted([*written, *pages_module.OUTSIDE])
    assert all((ROOT / source).is_file() for source in pages_module.OUTSIDE.values())


def test_every_folder_with_a_readme_has_a_page(pages_module):
    readmes = {file.relative_to(ROOT).as_posix() for file in (ROOT / "src").rglob("README.md")}
    assert readmes < set(pages_module.OUTSIDE.values())


@pytest.mark.parametrize("package", PACKAGES_WITH_NAMES)
def test_every_public_name_is_in_the_reference(package):
    page = REFERENCE / f"{package.removeprefix('mesascope.')}.md"
    names = importlib.import_module(package).__all__
    if package == "mesascope":
        modules = {name for name in names if (REFERENCE / f"{name}.md").exists()}
        assert all(f"]({name}.md)" in page.read_text(encoding="utf-8") for name in modules)
        names = set(names) - modules
    documented = [path.rpartition(".")[2] for path in documented_in(page)]
    assert sorted(documented) == sorted(names)


def test_every_package_that_lists_its_names_has_a_page():
    files = [ROOT / "src/mesascope/__init__.py", *(ROOT / "src/mesascope").glob("*/__init__.py")]
    with_names = [file.parent for file in files if re.search(r"^__all__", file.read_text("utf-8"), re.MULTILINE)]
    internal = {"checksums", "formulas", "ground_truth", "inspection", "report", "runner", "cli"}  # commands, `testing`
    found = {folder.relative_to(ROOT / "src").as_posix().replace("/", ".") for folder in with_names}
    assert found - {f"mesascope.{name}" for name in internal} <= set(PACKAGES_WITH_NAMES)


def is_own(value: object) -> bool:
    """Whether a value is a class or a function of the package, not a constant or an alias of a type."""
    return isinstance(value, type | FunctionType) and value.__module__.startswith("mesascope")


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda page: page.stem)
def test_every_entry_of_the_reference_exists_and_has_a_docstring(page):
    paths = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(paths)) == len(paths) > 0
    for path in paths:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        assert found.__doc__ or not is_own(found), path


def test_no_object_is_documented_twice(docstrings_module):
    paths = docstrings_module.list_documented()
    names = [path.rpartition(".")[2] for path in paths]
    assert sorted(set(names)) == sorted(names)  # links in docstrings are by name


def without_comments(file: Path) -> str:
    return re.sub(r"/\*.*?\*/|^\s*// .*$", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_nothing_is_loaded_from_the_network():
    addresses = re.findall(r"(?:https?:)?//\S+", re.sub(r"#.*", "", CONFIG_TEXT))
    assert addresses == []
    assert CONFIG["theme"]["font"] is False
    assert "offline" in CONFIG["plugins"]
    shim = CONFIG["extra"]["polyfills"]  # else the plugin would take one from the network
    assert [Path(one).name for one in shim] == ["iframe-worker.js"]
    files = [DOCS / one for one in (*shim, *CONFIG["extra_css"], *CONFIG.get("extra_javascript", ()))]
    assert not [file for file in files if re.search(r"(?:https?:)?//\w|@import", without_comments(file))]


def test_themes_are_light_dark_and_that_of_the_system():
    schemes = [one.get("scheme") for one in CONFIG["theme"]["palette"]]
    assert schemes == [None, "default", "slate"]


def test_packages_of_the_site_are_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    assert {Requirement(line).name for line in project["optional-dependencies"]["site"]} <= pinned


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "[a](docs/tour.md)", "[a](tour.md)"),
        ("index.md", "![a [b]](docs/report.png)", "![a [b]](report.png)"),
        ("index.md", "[studies](docs/studies)", "[studies](studies/README.md)"),
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("contributing.md", "[a](src/mesascope/probes/README.md)", "[a](packages/probes.md)"),
        ("changelog.md", "[a](docs/circuits.md#ablations)", "[a](circuits.md#ablations)"),
        ("tour.md", "[a](axes.md)", "[a](axes.md)"),
        ("performance.md", "[a.cpp](../src/mesascope/models/attention.cpp)", "a.cpp"),
        ("studies/affine.md", "[a](../verdicts.md#x)", "[a](../verdicts.md#x)"),
        ("circuits.md", "[a](#ablations)", "[a](#ablations)"),
        ("tour.md", "[a](https://x.org/docs/tour.md)", "[a](https://x.org/docs/tour.md)"),
        ("tour.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("index.md", "```\n[a](docs/tour.md)\n```", "```\n[a](docs/tour.md)\n```"),
    ],
)
def test_links_lead_to_pages_of_the_site(pages_module, page, link, expected):
    assert pages_module.rewrite_links(link, page) == expected


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("See :func:`capture`.", "See [`capture`][p.capture]."),
        ("A :class:`~a.b.Other`.", "A `Other`."),
        ("A :data:`a.OTHER`.", "A `a.OTHER`."),
        ("As in `mesascope.x.capture`.", "As in [`mesascope.x.capture`][p.capture]."),
        ("The argument `own`, ``capture`` and `unknown`.", "The argument `own`, ``capture`` and `unknown`."),
        ("Text\n\n>>> capture(1)\n2\n", "Text\n\n```pycon\n>>> capture(1)\n2\n```\n"),
        ("Layout:\n\n::\n\n    run.json", "Layout:\n\n    run.json"),
    ],
)
def test_docstrings_become_markdown(docstrings_module, docstring, expected):
    documented = {"capture": "p.capture", "own": "p.own"}
    assert docstrings_module.convert_docstring(docstring, documented, frozenset({"own"})) == expected


def test_no_docstring_has_markup_that_would_be_shown(docstrings_module):
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                converted = docstrings_module.convert_docstring(text, {})
                assert not re.search(r":\w+:`|^\.\. |^::", converted, re.MULTILINE), (file, node.lineno, converted)


@pytest.fixture(scope="module")
def markdown() -> Markdown:
    """A converter with the formulas of the site."""
    sys.path.insert(0, str(DOCS))
    try:
        extension = importlib.import_module("site_formulas").FormulaExtension()
    finally:
        sys.path.remove(str(DOCS))
    return Markdown(extensions=["tables", extension])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a $x_1^2$ b", r'<p>a <math alttext="x₁²"><msubsup>.*</msubsup></math> b</p>'),
        (r"$a_{i} * b_{i}$, *c*", r'<p><math alttext="a_i \* b_i">.*</math>, <em>c</em></p>'),
        (r"\$5 and `$HOME$`", r"<p>\$5 and <code>\$HOME\$</code></p>"),
        ("$5 and $10", r"<p>\$5 and \$10</p>"),
        ("| a |\n|---|\n| $\\vert x \\vert < 1$ |", r'<td><math alttext="\|x\| &lt; 1">.*</math></td>'),
        ("**$x$**", r"<p><strong><math .*</math></strong></p>"),
    ],
)
def test_formulas_of_pages_are_mathml(markdown, text, expected):
    assert re.search(expected, markdown.reset().convert(text), re.DOTALL)


def test_a_page_with_a_broken_formula_is_not_built(markdown):
    with pytest.raises(ValueError, match=r"\$\\frac\{a\}\$ has a command with 1 of its 2 arguments"):
        markdown.reset().convert(r"so $\frac{a}$")


def test_formulas_of_all_pages_can_be_typeset(markdown):
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *(ROOT / "src").rglob("README.md")]
    html = {page: markdown.reset().convert(page.read_text(encoding="utf-8")) for page in pages}
    assert html[DOCS / "analyses.md"].count("<math") > 30


def test_the_formulas_of_the_site_are_a_hook():
    assert "docs/site_formulas.py" in CONFIG["hooks"]
