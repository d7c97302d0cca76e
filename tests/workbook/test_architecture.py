"""The architecture, read from the sources: arrows run down, no circle, rooms of a size, and what the library does not know."""

import ast
import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from architecture import EDGES, FILES, LIBRARY, NAMES, PACKAGES, ROOT, floor

import emphase
import helpers

TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("module", NAMES)
def test_no_import_runs_up(module):
    up = sorted(other for other in EDGES[module] if floor(other) > floor(module))
    assert not up, f"{NAMES[module].relative_to(ROOT)} imports {', '.join(up)}, which stands above it"


@pytest.mark.parametrize("module", [m for m in NAMES if floor(m) == 1])
def test_methods_do_not_import_each_other(module):
    package = module.split(".")[1]
    beside = sorted(other for other in EDGES[module] if floor(other) == 1 and other.split(".")[1] != package)
    assert not beside, f"{NAMES[module].relative_to(ROOT)} imports {', '.join(beside)}: methods stand side by side"


def test_no_circle_of_imports():
    def reach(module: str) -> set[str]:
        seen: set[str] = set()
        todo = [module]
        while todo:
            new = EDGES[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    circle = sorted(module for module in NAMES if module in reach(module))
    assert not circle, f"in a circle: {', '.join(circle)}"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_depends_on_the_modules_that_the_graph_names(path):
    named = helpers.methods_of(path)
    if path.stem in helpers.GRAPH:
        behind = {"emphase.crystals", "emphase.files", "emphase.drawing", *helpers.GRAPH[path.stem].methods}
        assert set(named) <= behind, f"{path.stem} uses {sorted(set(named) - behind)}, which GRAPH does not name"
        assert set(helpers.GRAPH[path.stem].methods) <= set(named), "GRAPH names what the notebook does not use"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_what_is_used_of_helpers_and_of_the_library_is_there(path):
    """Also where a cell runs on some samples only."""
    for chain in set(re.findall(r"\b(?:helpers|emphase)\.(?!py\b)[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", path.read_text(encoding="utf-8"))):
        first, *names = chain.split(".")
        found = {"helpers": helpers, "emphase": emphase}[first]
        for k, name in enumerate(names):
            if not isinstance(found, ModuleType):
                break
            if not hasattr(found, name) and importlib.util.find_spec(f"{found.__name__}.{name}") is None:
                pytest.fail(f"{'.'.join([first, *names[: k + 1]])} is not there")
            found = getattr(found, name, None) or importlib.import_module(f"{found.__name__}.{name}")


def imports(tree: ast.AST) -> list[str]:
    """The imports of a source as they are written."""
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_names_what_it_takes_of_ours(path):
    """`code_sha256` finds what a notebook uses by `helpers.name` and `emphase.name`."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    ours = [i for cell in code for i in imports(ast.parse(cell)) if re.match(r"(import|from) (helpers|emphase|pages)\b", i)]
    assert all(re.match(r"import helpers$|import emphase$|from emphase\.\w+", i) for i in ours), ours


def test_the_top_of_helpers_holds_definitions_alone():
    """So that the definitions behind a name are all that it depends on."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse((ROOT / "helpers.py").read_text(encoding="utf-8")).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        assert isinstance(node, kinds) or text or types, f"line {node.lineno}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_imports_modules_by_name(path):
    """`emphase.sources` reads imports: those of the whole library, or by a text, would hide what a method depends on."""
    text = path.read_text(encoding="utf-8")
    assert "import emphase" not in imports(ast.parse(text))
    assert "import_module" not in text or path.parent.name == "emphase"


# --- rooms --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_a_room(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    most = 1500 if path.name == "helpers.py" else 600
    assert lines <= most, f"{lines} lines"


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_small(path):
    for function in functions(path):
        doc = ast.get_docstring(function)
        body = function.end_lineno - function.lineno + 1 - (len(doc.splitlines()) + 1 if doc else 0)
        assert body <= 40, f"{function.name}: {body} lines"
        count = len([a for a in (*function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")])
        assert count <= 8, f"{function.name}: {count} arguments"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_public_is_described(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "TODO").partition(".")[0] != "TODO", "the module says what is in it"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"bare except in line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_name_stands_for_one_thing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    for node in tree.body:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []:
            names += [name.id for name in ast.walk(target) if isinstance(name, ast.Name)]
    assert sorted(names) == sorted(set(names)), "the later one is in force for both"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_a_package_is_its_table_of_contents(package):
    """A dozen public names or fewer, all of them there, in order."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    (listed,) = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"]
    imported = {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert len(listed) <= 12 and listed == sorted(listed) and set(listed) == imported
    assert len(ast.get_docstring(tree)) > 200, "the method in a paragraph"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_does_not_know_the_study(path):
    text = path.read_text(encoding="utf-8")
    known = re.findall(
        r"\bNCM\b|\bLLZO\b|\bllzo\b|\bgarnet\b|sample\.yaml|\bpapermill\b|\bsnakemake\b|\bimport helpers\b|\bresults/", text, re.IGNORECASE
    )
    assert not known, f"{path.name} names {', '.join(sorted(set(known)))}"


def test_the_manual_of_helpers_names_what_is_there():
    manual = ast.get_docstring(ast.parse((ROOT / "helpers.py").read_text(encoding="utf-8"))).partition("What is computed")[0]
    named = re.findall(r"\b(?:[a-z]+_\w+|[A-Z][a-z]+[A-Z]\w*|[A-Z]+_[A-Z_]+)\b", manual)
    assert len(named) > 12 and [name for name in named if not hasattr(helpers, name)] == []
