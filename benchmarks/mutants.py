"""Mutation test: make one small wrong change at a time and see whether a test fails.

    python -m benchmarks.mutants [PACKAGE ...] [--per-file 5] [--seed 0] [--file TEXT]

The packages are those without torch by default. Each file gives up to `--per-file` mutants, drawn by the seed. A mutant runs
against the tests of its own package that call the changed function, the fastest first. Prints each mutant that no test
notices, and the share of noticed ones per package. Works in a copy of the tracked files.

mutmut 3.8.1 has neither a sample nor a choice of changes: 6,631 of its 9,729 mutants of these packages drop or replace an
argument or change a string. cosmic-ray 8.7.0 starts pytest for each mutant, which takes many seconds where tests import torch;
here, mutants are forked from a process that has imported it.
"""

import argparse
import ast
import copy
import gc
import importlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tqdm import tqdm

PACKAGES = ("common", "data", "families", "answers", "metrics", "reports")
# Imported once, before the tests of every mutant need them.
PRELOADED = (
    "PIL.Image",
    "hypothesis",
    "numpy",
    "pycocotools.coco",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
)

SWAPPED_OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip
SWAPPED_NAMES = {
    "min": "max",
    "any": "all",
    "minimum": "maximum",
    "floor": "ceil",
    "strip": "lstrip",
    "startswith": "endswith",
}
SWAPPED_NAMES |= {new: old for old, new in SWAPPED_NAMES.items()}
# Parts that are not changed, like strings and `strict=True`: they are types, or decide nothing that a user notices.
UNCHANGED_FIELDS = {"annotation", "returns", "decorator_list"}


@dataclass(frozen=True)
class Mutant:
    """The text between two offsets of a file, in bytes, is replaced. `function`: first line of the function around it, or 0."""

    path: str
    line: int
    function: int
    start: int
    end: int
    old: str
    new: str


# ---- what is changed ---------------------------------------------------------------------------------------------------


def changed(node: ast.AST, **fields) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def variants(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(node to replace, replacement): the wrong changes of one node."""
    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                yield node, changed(node, ops=[*node.ops[:i], SWAPPED_OPERATORS[type(operator)](), *node.ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPPED_OPERATORS:
            yield node, changed(node, op=SWAPPED_OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node, node.operand
        case ast.Constant(value=bool()):
            yield node, ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield node, ast.Constant(node.value + 1)
            yield node, ast.Constant(node.value - 1)
        case ast.Return(value=ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield node, ast.Return(ast.Constant(None))
        case ast.Name(id=name) if name in SWAPPED_NAMES:
            yield node, ast.Name(SWAPPED_NAMES[name])
        case ast.Attribute(attr=name) if name in SWAPPED_NAMES:
            yield node, changed(node, attr=SWAPPED_NAMES[name])
        case ast.If() | ast.While() | ast.IfExp():
            yield node.test, ast.UnaryOp(ast.Not(), node.test)
        case ast.Continue():
            yield node, ast.Break()
        case ast.Break():
            yield node, ast.Continue()


def nodes(node: ast.AST, function: int = 0) -> Iterator[tuple[int, ast.AST]]:
    """(first line of the function around it, node) of each node whose change can matter."""
    if isinstance(node, ast.FunctionDef):
        function = min(each.lineno for each in (node, *node.decorator_list))
    yield function, node
    for name, value in ast.iter_fields(node):
        if name in UNCHANGED_FIELDS:
            continue
        for child in value if isinstance(value, list) else [value]:
            is_strict = isinstance(child, ast.keyword) and child.arg == "strict"
            # Python 3.11 does not know where the parts of an f-string are.
            if isinstance(child, ast.AST) and not is_strict and not isinstance(child, ast.JoinedStr):
                yield from nodes(child, function)


def mutants_of(path: Path, name: str) -> list[Mutant]:
    """All mutants of a file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for function, node in nodes(ast.parse(source)):
        for target, replacement in variants(node):
            start, end = (
                starts[target.lineno - 1] + target.col_offset,
                starts[target.end_lineno - 1] + target.end_col_offset,
            )
            text = ast.unparse(ast.fix_missing_locations(replacement))
            text = text if isinstance(replacement, ast.stmt) else f"({text})"
            old = " ".join(source[start:end].decode().split())
            found.append(Mutant(name, target.lineno, function, start, end, old, text))
    return found


# ---- the tests ---------------------------------------------------------------------------------------------------------


@dataclass
class Calls:
    """A pytest plugin that notes the functions that each test calls, as (path, first line), and how long it takes."""

    root: str
    by_test: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def pytest_runtest_protocol(self, item, nextitem) -> None:
        self.began = time.process_time()
        # What a shared fixture calls counts for every test of the file.
        self.fixtures, self.calls = self.by_test[item.nodeid.split("::")[0]], self.by_test[item.nodeid]
        self._record(self.fixtures)

    def pytest_runtest_call(self, item) -> None:
        self._record(self.calls)

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] = time.process_time() - self.began
        if report.failed:
            self.failed.append(report.nodeid)

    def _record(self, calls: set[tuple[str, int]]) -> None:
        def profile(frame, event, argument) -> None:
            if event == "call":
                calls.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

        threading.setprofile(profile)
        sys.setprofile(profile)

    def pytest_sessionfinish(self) -> None:
        sys.setprofile(None)
        tests = [test for test in self.by_test if "::" in test and test not in self.failed]
        tests.sort(key=self.seconds.__getitem__)
        calls = {test: self.by_test[test] | self.by_test[test.split("::")[0]] for test in tests}
        inside = {test: {(path, line) for path, line in calls[test] if path.startswith(self.root)} for test in tests}
        record = [
            (test, self.seconds[test], {(os.path.relpath(p, self.root), n) for p, n in inside[test]}) for test in tests
        ]
        Path(self.root, "calls.pickle").write_bytes(pickle.dumps((record, self.failed)))


@dataclass
class Only:
    """A pytest plugin that runs these tests only, in this order."""

    tests: list[str]

    def pytest_collection_modifyitems(self, items) -> None:
        order = {test: i for i, test in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])


def run_pytest(tree: Path, arguments: list[str], plugin, seconds: int) -> int:
    """The exit code of pytest in a forked process, or minus the signal that ended it: SIGALRM after so many seconds."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(seconds)
    os.chdir(tree)
    sys.path[0] = str(tree)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[plugin]))


def is_noticed(tree: Path, mutant: Mutant, record: list) -> bool:
    """Whether a test of the package fails with the change."""
    file = tree / mutant.path
    if mutant.function:
        tests = [row for row in record if (mutant.path, mutant.function) in row[2]]
    else:  # a constant of the module, which any test may use
        tests = [row for row in record if any(path == mutant.path for path, _ in row[2])] or record
    if not tests:
        return False
    source = file.read_bytes()
    file.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    try:
        files = sorted({test.split("::")[0] for test, *_ in tests})
        limit = 30 + 5 * round(sum(seconds for _, seconds, _ in tests))
        return run_pytest(tree, ["-x", *files], Only([test for test, *_ in tests]), limit) != 0
    finally:
        file.write_bytes(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "packages", nargs="*", default=PACKAGES, help=f"packages of boxtune (default: {' '.join(PACKAGES)})"
    )
    parser.add_argument("--per-file", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=10.0, help="leave out tests of more CPU seconds than this")
    parser.add_argument("--file", default="", help="only files with this text in their path")
    arguments = parser.parse_args()
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # a mutant takes a third of the time if the garbage collector leaves what was imported alone

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        for name in subprocess.check_output(["git", "ls-files"], text=True).splitlines():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, tree / name)
        shares = []
        for package in arguments.packages:
            run_pytest(tree, [f"tests/{package}"], Calls(str(tree)), 3600)
            record, failed = pickle.loads((tree / "calls.pickle").read_bytes())
            slow = [test for test, seconds, _ in record if seconds > arguments.longest]
            record = [row for row in record if row[0] not in slow]
            print(f"{package}: {len(record)} tests", *(f"left out, fails: {test}" for test in failed), sep="\n    ")
            print(*(f"    left out, slow: {test}\n" for test in slow), sep="", flush=True)
            sys.dont_write_bytecode = True  # a mutant may have the size and the second of the original
            sampled = []
            for path in sorted((tree / "boxtune" / package).rglob("*.py")):
                name = str(path.relative_to(tree))
                found = mutants_of(path, name) if arguments.file in name else []
                random.Random(f"{arguments.seed} {name}").shuffle(found)
                sampled += found[: arguments.per_file]
                Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
            noticed = 0
            for mutant in tqdm(sampled, desc=package, unit="mutant"):
                if is_noticed(tree, mutant, record):
                    noticed += 1
                else:
                    tqdm.write(f"{mutant.path}:{mutant.line}: {mutant.old}  →  {mutant.new}", file=sys.stdout)
                    sys.stdout.flush()
            sys.dont_write_bytecode = False
            shares.append((package, noticed, len(sampled)))
    for package, noticed, count in shares:
        print(f"{package:<9} {noticed:>3} of {count:>3} mutants noticed ({noticed / max(count, 1):.0%})")


if __name__ == "__main__":
    main()
