"""The promises of the layout: directions, one home per equation, nothing undeclared."""

import ast
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = ROOT / "ss_gan_tf"
PACKAGES = ("ss_gan_tf", "experiments", "data_prep")

# Which modules of the library a module may import: every module has its row, so a new
# one has to be placed, and a row outlives its module for no longer than a test run.
MAY_IMPORT = {
    # the loop, and what it is made of
    "train": {
        "backbones", "checkpoints", "config", "evaluate", "export", "gradients",
        "guard", "input_pipeline", "machine", "preflight", "profiling", "replicas",
        "run_state", "stages", "summaries", "validation", "workers",
    },
    "preflight": {
        "backbones", "checkpoints", "config", "config_rules", "input_pipeline",
        "resources",
    },
    "collapse": {
        "adversary", "checkpoints", "config", "evaluate", "optimizers", "stages",
        "summaries", "train",
    },
    "numerics": {
        "allocation", "checkpoints", "config", "evaluate", "input_pipeline", "machine",
        "results", "stages", "train",
    },
    "run_state": {
        "checkpoints", "guard", "optimizers", "stages", "states", "summaries",
    },
    "validation": {
        "adversary", "backbones", "config", "evaluate", "inference", "input_pipeline",
        "replicas", "stages", "summaries", "workers",
    },
    "workers": {"messages", "per_image", "replicas"},
    "stages": {
        "adversary", "backbones", "checkpoints", "config", "losses", "optimizers",
        "replicas", "train_step",
    },
    "train_step": {"adversary", "gradients", "losses", "micro_batches", "replicas"},
    "gradients": {"micro_batches", "replicas"},
    # many runs, and what they say together
    "study": {"checkpoints", "config", "config_rules", "machine", "results"},
    "results": {"config", "config_rules", "strict_json", "summaries"},
    "comparison": {
        "bootstrap", "checkpoints", "config", "config_rules", "metrics", "per_image",
        "results",
    },
    "report": {
        "comparison", "config", "config_rules", "datasets", "figures", "page", "panels",
        "results", "study", "summaries", "tables", "variants", "visualize", "words",
    },
    "variants": {"bootstrap", "comparison", "figures", "page", "tables", "words"},
    "tables": {
        "bootstrap", "comparison", "config", "datasets", "page", "paper", "results",
        "words",
    },
    "panels": {
        "backbones", "checkpoints", "inference", "input_pipeline", "visualize",
    },
    # networks
    "generator": {"backbones", "convolution", "dilation", "resampling"},
    "adversary": {"backbones", "convolution", "resampling"},
    # what a run leaves behind and how it is read again
    "checkpoints": {
        "backbones", "config", "config_rules", "generator", "messages", "states",
        "strict_json",
    },
    "evaluate": {"inference", "measures", "overlap", "per_image"},
    "export": {"convolution", "folding", "inference"},
    "predict": {"export", "inference", "messages", "strict_json", "visualize"},
    "demo": {"messages", "predict", "visualize"},
    "submission": {"datasets"},
    # figures of a prediction
    "measures": {"boundary", "calibration", "granulation", "metrics"},
    "bootstrap": {"metrics"},
    "boundary": {"metrics"},
    "calibration": {"metrics"},
    "granulation": {"metrics"},
    "summaries": {"states", "strict_json", "visualize"},
    # leaves
    "allocation": set(),
    "augmentation": set(),
    "backbones": {"convolution", "dilation", "normalization"},
    "config": {"config_rules", "strict_json"},
    "config_rules": set(),
    "datasets": set(),
    "figures": set(),
    "machine": set(),
    "page": set(),
    "paper": set(),
    "convolution": set(),
    "dilation": {"convolution"},
    "normalization": {"convolution"},
    "guard": set(),
    "inference": set(),
    "input_pipeline": {"augmentation", "strict_json"},
    "lock": set(),
    "losses": set(),
    "messages": set(),
    "metrics": set(),
    "folding": {"convolution", "dilation", "normalization"},
    "onnx_export": set(),
    "optimizers": set(),
    "overlap": set(),
    "micro_batches": set(),
    "per_image": {"messages"},
    "profiling": set(),
    "replicas": {"lock", "messages"},
    "resampling": {"convolution"},
    "resources": set(),
    "states": set(),
    "strict_json": set(),
    "visualize": set(),
    "words": set(),
}  # fmt: skip

# Modules of the library that the other packages may import; None allows all.  A file
# with a row of its own is an exception to its package's.
LIBRARY_SEEN_BY = {
    "experiments": None,
    "data_prep": {"datasets", "messages", "strict_json"},
    "data_prep/browse.py": {
        "augmentation",
        "input_pipeline",
        "messages",
        "visualize",
    },
}

# Import name -> distribution, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "tensorflow_datasets": "tensorflow-datasets",
    "triton": "torch",  # whose wheels for Linux require it
}
# Required without an import of ours: other packages load these.
BEHIND_THE_SCENES = {"array_record", "importlib_resources", "protobuf", "tensorboard"}

# The paper's items that must have a row of their own on the README's map.
MAPPED_ITEMS = {
    *(("eq", number) for number in range(1, 9)),
    ("table", 1),
    ("table", 2),
    ("fig", 4),
}

REFERENCE = re.compile(r"`([\w./]+\.py):([\w.]+)`")


def sources(package):
    """Every Python file of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_names(path):
    """Dotted names that a file imports, at its top or inside a function.

    `from a.b import c` gives a.b.c: whether c is a module is the reader's question.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import counts its dots from the file's own package.
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module or "").split(".")]
            origin = ".".join(part for part in parts if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def library_modules(path):
    """Modules of the library that a file imports, by their short names."""
    parts = (name.split(".") for name in imported_names(path))
    return {p[1] for p in parts if p[0] == "ss_gan_tf" and p[1:] and p[1] in MAY_IMPORT}


def public_nodes(tree):
    """Public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                yield node
                yield from public_nodes(node) if isinstance(node, ast.ClassDef) else ()


def all_files(*packages):
    return [
        pytest.param(path, id=str(path.relative_to(ROOT)))
        for package in packages
        for path in sources(package)
    ]


# Directions


def test_every_module_of_the_library_has_its_row():
    modules = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__"}
    assert modules == set(MAY_IMPORT)
    assert not [path for path in LIBRARY.iterdir() if (path / "__init__.py").exists()]


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_library_directions(module):
    used, allowed = library_modules(LIBRARY / f"{module}.py"), MAY_IMPORT[module]
    assert not used - allowed, "an arrow that the layout does not have"
    assert not allowed - used, "an arrow that nobody needs: take it out of the table"


def test_the_table_of_directions_has_no_circle():
    resolved = set()
    while ready := {m for m in MAY_IMPORT if MAY_IMPORT[m] <= resolved} - resolved:
        resolved |= ready
    assert resolved == set(MAY_IMPORT)


@pytest.mark.parametrize("path", all_files("experiments", "data_prep"))
def test_what_the_other_packages_see_of_the_library(path):
    path_here = path.relative_to(ROOT)
    package = LIBRARY_SEEN_BY[path_here.parts[0]]
    allowed = LIBRARY_SEEN_BY.get(path_here.as_posix(), package)
    if allowed is not None:
        assert library_modules(path) <= allowed


@pytest.mark.parametrize("path", all_files(*PACKAGES))
def test_no_package_imports_one_above_it(path):
    own = path.relative_to(ROOT).parts[0]
    others = {"experiments", "data_prep"} - {own}
    assert not others & {name.split(".")[0] for name in imported_names(path)}


# What the library leaves to the programs


@pytest.mark.parametrize("path", all_files("ss_gan_tf"))
def test_library_has_no_flags_argv_or_prints(path):
    for name in imported_names(path):
        assert not name.startswith(("absl.flags", "absl.app", "argparse", "sys.argv"))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr != "argv", f"line {node.lineno}"


@pytest.mark.parametrize("path", all_files("ss_gan_tf"))
def test_public_names_of_the_library_are_documented(path):
    tree = tree_of(path)
    bare = [] if ast.get_docstring(tree) else ["the module"]
    bare += [node.name for node in public_nodes(tree) if not ast.get_docstring(node)]
    assert not bare


# Files


def text_files():
    """Every text file of the checkout that is not made by a command."""
    made = {"data", "runs", "build", "dist", "__pycache__"}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in made
            and not name.endswith(".egg-info")
            and (not name.startswith(".") or name in {".ci", ".github"})
        ]
        for name in names:
            if name == ".git":  # of a linked checkout: names a folder of its own
                continue
            path = pathlib.Path(folder, name)
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a picture


def test_no_file_is_called_for_what_it_is_not():
    drawers = {"utils.py", "util.py", "misc.py", "common.py", "helpers.py"}
    assert not [path for path, _ in text_files() if path.name in drawers]


def test_no_file_names_a_folder_of_somebodys_machine():
    private = re.compile(r"(?<![\w.])/(home|Users|root|work|mnt)/\w|[A-Z]:\\{1,2}Users")
    read, found = 0, []
    for path, text in text_files():
        read += 1
        for match in private.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}")
    assert read > 40
    assert not found


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_every_module_of_the_library_has_its_tests(module):
    tree = tree_of(ROOT / "tests" / f"test_{module}.py")
    assert any(name.startswith("test_") for name in defined_names(tree))


# Installation


@pytest.fixture
def metadata(monkeypatch):
    """The arguments with which setup.py calls setup()."""
    seen = {}
    monkeypatch.setattr("setuptools.setup", seen.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return seen


def distributions(requirements):
    return {Requirement(line).name for line in requirements}


def test_every_import_is_declared_and_every_requirement_is_used(metadata):
    imported = {
        name.split(".")[0]
        for package in PACKAGES
        for path in sources(package)
        for name in imported_names(path)
    }
    foreign = imported - set(sys.stdlib_module_names) - set(PACKAGES)
    assert "tensorflow" in foreign
    used = {DISTRIBUTIONS.get(name, name) for name in foreign - {"tensorflow"}}
    optional = {
        name
        for extra in ("peers", "onnx", "demo", "programs")
        for name in distributions(metadata["extras_require"][extra])
    }
    assert optional <= used, "an extra that nothing imports"
    required = used - optional | BEHIND_THE_SCENES
    assert distributions(metadata["install_requires"]) == required


def test_tensorflow_is_a_choice_of_extras(metadata):
    wheels = {"tensorflow", "tensorflow-cpu"}
    assert not wheels & distributions(metadata["install_requires"])
    assert distributions(metadata["extras_require"]["cpu"]) == wheels
    assert distributions(metadata["extras_require"]["gpu"]) == {"tensorflow"}


@pytest.mark.parametrize(
    "system, machine, expected",
    [
        ("Linux", "x86_64", {"tensorflow-cpu"}),
        ("Linux", "aarch64", {"tensorflow"}),
        ("Darwin", "arm64", {"tensorflow"}),
        ("Darwin", "x86_64", {"tensorflow"}),
    ],
)
def test_one_tensorflow_per_platform(metadata, system, machine, expected):
    platform = {"platform_system": system, "platform_machine": machine}
    lines = map(Requirement, metadata["extras_require"]["cpu"])
    assert {line.name for line in lines if line.marker.evaluate(platform)} == expected


def test_without_tensorflow_the_error_names_the_extras():
    code = "import sys; sys.modules['tensorflow'] = None; import ss_gan_tf"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "ss_gan_tf[cpu]" in done.stderr and "ss_gan_tf[gpu]" in done.stderr


def test_every_package_and_its_data_are_installed(metadata):
    folders = {p.parent for package in PACKAGES for p in sources(package)}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert names == set(metadata["packages"])
    installed = {
        path
        for package, patterns in metadata["package_data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    beside = {
        path
        for path, _ in text_files()
        if path.relative_to(ROOT).parts[0] in PACKAGES
        and path.suffix != ".py"
        and "dummy_data" not in path.parts
    }
    assert beside and beside == installed


def test_one_version(metadata):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = metadata["version"]
    assert re.search(r"^version: (.+)$", citation, re.M).group(1) == version
    assert re.search(r"^## (\S+)", changelog, re.M).group(1) == version


def test_every_command_of_the_makefile_exists():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    ours = set(re.findall(r"-m ((?:experiments|data_prep)[\w.]*)", text))
    assert {"data_prep.prepare", "experiments.train"} <= ours
    for module in ours:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


# The README's paper map: | item | `file.py:symbol` | `tests/file.py:test` |


def defined_names(tree, prefix=""):
    """Functions, classes, constants and fields, dotted inside a class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined_names(node, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = getattr(node, "targets", None) or [node.target]
            yield from (prefix + t.id for t in targets if isinstance(t, ast.Name))


def paper_map():
    """(item, code references, test references) of every row of the map."""
    readme = ROOT / "README.md"
    for line in (
        readme.read_text(encoding="utf-8").splitlines() if readme.exists() else ()
    ):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3:
            code, tests = (REFERENCE.findall(cell) for cell in cells[1:])
            if code:
                yield cells[0], code, tests


ROWS = list(paper_map())


def mapped_items():
    """("eq", 3) and the like, for "Eq. 3", "eq. 3-7", "Table 1, Fig. 4"."""
    for item, _, _ in ROWS:
        for kind, first, last in re.findall(
            r"(eq|table|fig)[a-z]*\.?\s*(\d+)(?:\s*[-\u2013]\s*(\d+))?", item.lower()
        ):
            for number in range(int(first), int(last or first) + 1):
                yield kind, number


@pytest.mark.parametrize("item, code, tests", ROWS, ids=[row[0] for row in ROWS])
def test_paper_map_points_at_code_and_tests(item, code, tests):
    assert tests, "a row names the test that holds it"
    for path, name in code:
        home = ROOT / path if "/" in path else LIBRARY / path
        assert name in defined_names(tree_of(home)), f"{path}:{name}"
    for path, name in tests:
        assert name.split(".")[-1].startswith("test_")
        assert name in defined_names(tree_of(ROOT / path)), f"{path}:{name}"


def test_the_papers_items_are_on_the_map():
    assert MAPPED_ITEMS <= set(mapped_items())


def test_every_public_loss_is_on_the_map():
    losses = {node.name for node in public_nodes(tree_of(LIBRARY / "losses.py"))}
    mapped = {name for _, code, _ in ROWS for path, name in code if "losses" in path}
    assert losses and losses <= mapped
