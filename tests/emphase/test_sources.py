"""What a result depends on is read from the sources: imports followed, nothing else counted, and hashes that change with them."""

from pathlib import Path

import pytest

from emphase import sources

#: A library of two methods on one ground, whose modules of `drift` import each other.
FILES = {
    "__init__.py": "",
    "ground.py": "import math\nLEAST = 1\n",
    "drift/__init__.py": "from .register import register\n",
    "drift/register.py": "from ..ground import LEAST\nfrom . import pairs\n\ndef register():\n    return LEAST\n",
    "drift/pairs.py": "def shift():\n    from .register import register\n    return register()\n",
    "ped/__init__.py": "import lib.ground\nfrom lib.ped import index\n",
    "ped/index.py": "import numpy\n",
    "ped/alone.py": "",
}


def forget():
    """As a new process does, which reads every file again."""
    for cached in (sources.source_sha256, sources._source, sources._imported, sources._definitions):
        cached.cache_clear()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The folder of a library that is the one looked at."""
    for name, text in FILES.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sources, "_PACKAGE", tmp_path / "lib")
    monkeypatch.setattr(sources, "_NAME", "lib")
    yield tmp_path / "lib"
    forget()


def hashes():
    """The hash of each method, read anew."""
    forget()
    return {name: sources.source_sha256(f"lib.{name}") for name in ("drift", "ped", "ground")}


def test_imports_are_followed_and_modules_that_import_each_other_come_once(library):
    found = sources.modules_behind("lib.drift")
    assert list(found) == ["lib.drift", "lib.drift.pairs", "lib.drift.register", "lib.ground"]
    assert found["lib.drift"] == library / "drift" / "__init__.py"
    assert list(sources.modules_behind("lib.ped")) == ["lib.ground", "lib.ped", "lib.ped.index"]
    assert list(sources.modules_behind("lib.ped.index")) == ["lib.ped.index"]
    with pytest.raises(KeyError, match=r"lib\.none: no module of lib"):
        sources.modules_behind("lib.none")


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("drift/pairs.py", {"drift"}),
        ("drift/__init__.py", {"drift"}),
        ("ped/index.py", {"ped"}),
        ("ped/alone.py", set()),
        ("ground.py", {"drift", "ped", "ground"}),
    ],
)
def test_an_edit_changes_the_hash_of_what_imports_it_and_of_nothing_else(library, file, changed):
    before = hashes()
    assert before == hashes()
    with open(library / file, "a") as edited:
        edited.write("# edited\n")
    after = hashes()
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_method_of_this_library_depends_on_all_its_modules_and_on_no_other_method():
    found = sources.modules_behind("emphase.drift")
    folder = Path(found["emphase.drift"]).parent
    assert {path for path in found.values() if path.parent == folder} == set(folder.glob("*.py"))
    assert {name.split(".")[1] for name in found if name != "emphase"} <= {
        "drift",
        "chunks",
        "errors",
        "files",
        "frames",
        "spot_lists",
        "kernels",
        "sources",
    }


def test_definitions_that_a_name_uses_come_with_it(library, tmp_path):
    study = tmp_path / "study.py"
    study.write_text(
        "from lib.drift import register as aligned\nfrom lib.ped.index import search\nimport json\n"
        "LEAST: float = 2.0\n\ndef first():\n    return second() + LEAST\n\ndef second():\n    return aligned()\n\n"
        "def third():\n    return search()\n"
    )
    text, modules = sources.definitions_behind(study, ["first", "unknown"])
    assert text == ["LEAST: float = 2.0\n", "def first():\n    return second() + LEAST\n", "def second():\n    return aligned()\n"]
    assert modules == ["lib.drift", "lib.drift.register"]
    assert sources.definitions_behind(study, ["third"])[1] == ["lib.ped.index"]


@pytest.mark.parametrize(
    "imported",
    [
        "from lib import ped\n\ndef use():\n    return ped.index",
        "import lib.ped as p\n\ndef use():\n    return p.index",
        "import lib\n\ndef use():\n    return lib.ped.index.search",
        "def use():\n    import lib.ped.index as i\n    return i",
        "def use():\n    from lib.ped import index\n    return index",
    ],
)
def test_a_module_is_found_however_it_is_imported(library, tmp_path, imported):
    study = tmp_path / "study.py"
    study.write_text(imported)
    assert "lib.ped.index" in sources.modules_behind(*sources.definitions_behind(study, ["use"])[1])


def test_what_a_process_read_once_is_what_it_goes_by(library):
    before = hashes()["ped"]
    with open(library / "ped" / "index.py", "a") as edited:
        edited.write("# edited\n")
    sources.source_sha256.cache_clear()
    assert sources.source_sha256("lib.ped") == before
