"""Names and docstrings are in the field's language: no public name twice, no retired name, documented arguments."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "mesascope"
MODULES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SRC.rglob("*.py"))}
Function = ast.FunctionDef

RETIRED_IDENTIFIERS = frozenset(  # each has a standard term in docs/glossary.md
    """
    affordable alike alone apart Arm arm arms Asked asked Attended attending BENCH beside branched called causes crew
    disordered elsewhere Following following Frame framed held Here imagined Instrument instrument kept kernel_of
    known LinearMap likeness make_room Maps Mark Material Measure measure misses missed must must_hold named_by
    NothingChanged obstacle oracles ordinary Past Path picked pictures place places places_before prepared
    read_by Reading Reduced remembered retrospects Room Say say Setup setups share Shown shown Silent
    spell spelled statistic Stem swapped Tail tell Theory theories thrifty ticks told Touch toward Trail turned turns
    Watcher watcher whatever written
    """.split()
)
RETIRED_TEXTS = (
    r"\battn_write\b|\bmlp_write\b|\bhead_writes\b",
    r"mesascope\.(capturing|measures|reduced|causes|instruments|cluster|console)\b",
    r"\breduced models?\b|\bthe bench of\b|\bretrospects?\b|\bNothingChanged\b",
    r"\btold apart\b|\bheld against\b|\bforth and back\b|\bbenefit of the doubt\b|\bturned at random\b",
    r"\bcannot be had\b|\bwhat is put there\b|\bnothing to find \(",
)
INTERROGATIVE = re.compile(r"(What|Whether|Which|How|Where|Who|Whoever|Whatever)\b")
MAX_FOLDER_SIZE = 16


def functions_of(tree: ast.AST, *, public: bool) -> Iterator[tuple[str, Function]]:
    """Functions and methods of a module; the public ones are those that a user can reach by a public name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not (public and node.name.startswith("_")):
            yield from ((f"{node.name}.{name}", inner) for name, inner in functions_of(node, public=public))
        if isinstance(node, Function) and not (public and node.name.startswith("_")):
            yield node.name, node
            if not public:
                yield from functions_of(node, public=public)


def identifiers_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_no_public_name_is_defined_in_two_files():
    files = defaultdict(set)
    for file, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].add(file.relative_to(SRC).as_posix())
    assert {name: found for name, found in files.items() if len(found) > 1} == {}


def test_no_retired_name_is_an_identifier():
    found = {
        file.relative_to(SRC).as_posix(): names
        for file, tree in MODULES.items()
        if (names := {name for name in identifiers_of(tree) if name.strip("_") in RETIRED_IDENTIFIERS})
    }
    assert found == {}


@pytest.mark.parametrize("pattern", RETIRED_TEXTS)
def test_no_retired_name_is_in_a_text(pattern):
    files = [*SRC.rglob("*.py"), *SRC.rglob("*.j2"), *SRC.rglob("*.md")]
    files += [file for file in SRC.rglob("*.js") if not file.name.endswith(".min.js")]  # not the library of figures
    files += [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs").glob("*.py"),
    ]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == []


def test_names_of_functions_are_phrases():
    names = [name.split(".")[-1] for tree in MODULES.values() for name, _ in functions_of(tree, public=False)]
    names = [name for name in names if not name.startswith("__")]
    single = [name for name in names if "_" not in name.strip("_")]
    assert len(single) < 0.4 * len(names)


def test_no_docstring_begins_with_an_interrogative():
    found = [
        f"{file.relative_to(SRC)}: {docstring.splitlines()[0]}"
        for file, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        and (docstring := ast.get_docstring(node))
        and INTERROGATIVE.match(docstring)
    ]
    assert found == []


def overridden_methods() -> set[str]:
    """Methods that override one of a base class, by qualified name: their documentation is that of the base class."""
    classes = {node.name: node for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef)}

    def inherited(cls: ast.ClassDef) -> set[str]:
        bases = [classes[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in classes]
        return {method.name for base in bases for method in base.body if isinstance(method, Function)}.union(
            *map(inherited, bases)
        )

    return {f"{name}.{method}" for name, cls in classes.items() for method in inherited(cls)}


def documents_its_arguments_elsewhere(node: Function) -> bool:
    """Properties have none; commands document theirs as help texts, objectives in `objective`, overloads once."""
    names = {getattr(getattr(one, "func", one), "id", "") for one in node.decorator_list}
    attributes = {getattr(getattr(one, "func", one), "attr", "") for one in node.decorator_list}
    return bool(names & {"property", "cached_property", "objective", "overload"} or attributes & {"command"})


def test_public_functions_document_arguments_and_errors():
    missing, overridden = [], overridden_methods()
    for file, tree in MODULES.items():
        for name, node in functions_of(tree, public=True):
            if documents_its_arguments_elsewhere(node) or name in overridden:
                continue
            docstring = ast.get_docstring(node) or ""
            arguments = [one.arg for one in (*node.args.args, *node.args.kwonlyargs) if one.arg not in ("self", "cls")]
            raises = [one for one in node.body if isinstance(one, ast.Raise)]
            for section, needed in (("Args:", arguments), ("Raises:", raises)):
                if needed and section not in docstring:
                    missing.append(f"{file.relative_to(SRC)}: {name} has no {section}")
    assert missing == []


def returns_something(node: Function) -> bool:
    """Context managers are excepted: their first line says what holds inside."""
    manager = any(getattr(one, "id", "") == "contextmanager" for one in node.decorator_list)
    return node.returns is not None and ast.unparse(node.returns) != "None" and not manager


def test_public_functions_document_what_they_return():
    """In a section, unless the first line says it ("Return the loss of every layer.")."""
    missing, overridden = [], overridden_methods()
    for file, tree in MODULES.items():
        for name, node in functions_of(tree, public=True):
            if documents_its_arguments_elsewhere(node) or name in overridden or not returns_something(node):
                continue
            docstring = ast.get_docstring(node) or ""
            arguments = [one.arg for one in (*node.args.args, *node.args.kwonlyargs) if one.arg not in ("self", "cls")]
            stated = re.search(r"\breturn\b", docstring.partition("\n")[0], re.IGNORECASE)
            if arguments and not stated and not re.search(r"^(Returns|Yields):", docstring, re.MULTILINE):
                missing.append(f"{file.relative_to(SRC)}: {name}")
    assert missing == []


def test_no_folder_has_too_many_modules():
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in {file.parent for file in MODULES}}
    assert {str(folder): size for folder, size in sizes.items() if size > MAX_FOLDER_SIZE} == {}


def test_private_conventions_of_transformers_are_in_one_place():
    """Only `activations/hooks` and the fused kernel touch them; our own models are models of transformers."""
    private = re.compile(r"_attn_implementation_internal|_global_mapping|AttentionMaskInterface|AttentionInterface\b")
    allowed = (SRC / "activations" / "hooks", SRC / "models" / "fused.py")
    found = [
        file.relative_to(SRC).as_posix()
        for file in MODULES
        if private.search(file.read_text(encoding="utf-8")) and not any(file.is_relative_to(one) for one in allowed)
    ]
    assert found == []


def test_private_modules_are_imported_by_their_package_alone():
    found = []
    for file, tree in MODULES.items():
        package = file.relative_to(SRC).parts[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mesascope."):
                parts = [*node.module.split("."), *(alias.name for alias in node.names)][1:]
                private = any(part.startswith("_") for part in parts[: node.module.count(".")])
                if private and parts[0] != package:
                    found.append(f"{file.relative_to(SRC)}: {node.module}")
    assert found == []
