#!/usr/bin/env python3
"""Reads the sources and reports what breaks the rules of this tree.

  lint.py [--root DIR] [--rule NAME]... [--lower-baseline]

Every finding is one line: path:line: [rule] what is wrong. Exit status 1 if there is any.

Rules about size and layout are a ratchet: baseline.txt beside this file holds, per rule and file,
the number of findings that is let pass. Counts only fall: --lower-baseline writes the lower ones
and never adds or raises one. A rule that cannot be checked here (no clang-format) says so and
counts as skipped, not as passed: exit status 77 if it was the only one asked for.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys

FOLDERS = ("proto", "kernels", "data", "checkpoints", "trainer", "coordinator", "deploy", "tests")
CXX = (".h", ".cc", ".cu", ".cuh")
TEXT = CXX + (".proto", ".py", ".sh", ".txt", ".cmake", ".md", ".yaml", ".yml", "")

# What a folder may include besides itself. The longest matching entry counts.
MAY_INCLUDE = {
    "proto": (),
    "kernels": (),
    "data": ("proto",),
    "checkpoints": ("proto",),
    "trainer": ("kernels", "data", "checkpoints", "proto"),
    "coordinator": ("proto", "checkpoints/kv", "data/vocabulary.h"),
}
# Inside the trainer: loop -> model, optim, parallel; model -> layers; parallel knows none of them.
MAY_NOT_INCLUDE = {
    "trainer/parallel": ("trainer/layers", "trainer/model", "trainer/loop"),
    "trainer/layers": ("trainer/model", "trainer/loop"),
    "trainer/model": ("trainer/loop",),
}
MAX_COLUMNS = 100
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
# Short options that users' fingers know; every other option has a long name only.
SHORT_OPTIONS = ("-h", "-o", "-f")
CLANG_FORMAT_MAJOR = 14  # others lay some constructs out differently


class Source:
    """A file, and for C++ the same text with strings and comments blanked out."""

    def __init__(self, root, path):
        self.path = path.relative_to(root).as_posix()
        self.cxx = path.suffix in CXX
        self.text = path.read_text(encoding="utf-8", errors="replace")
        self.lines = self.text.splitlines()
        self.code = blank(self.text) if self.cxx else self.text

    def line_of(self, offset):
        return self.text.count("\n", 0, offset) + 1


LITERAL = re.compile(
    r'//[^\n]*|/\*.*?\*/'                            # comments
    r'|R"(?P<d>[^(\s]*)\(.*?\)(?P=d)"'               # raw strings
    r'|"(?:\\.|[^"\\\n])*"'                          # strings
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",         # characters, not digit separators
    re.S)


def blank(text):
    """The text with comments and literals replaced by spaces; lines and offsets stay."""
    return LITERAL.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def within(path, folder):
    return path == folder or path.startswith(folder + "/")


def check_includes(source):
    if not source.cxx:
        return
    folder = source.path.split("/")[0]
    if folder not in MAY_INCLUDE:
        return
    for match in re.finditer(r'^\s*#\s*include\s+"([^"]+)"', source.text, re.M):
        name = match.group(1)
        target = "proto/" + name if name.startswith("ela/") else name
        if target.split("/")[0] not in FOLDERS:
            continue
        allowed = any(within(target, f) for f in (folder,) + MAY_INCLUDE[folder])
        forbidden = any(within(source.path, inside) and within(target, f)
                        for inside, targets in MAY_NOT_INCLUDE.items() for f in targets)
        if forbidden or not allowed:
            yield source.line_of(match.start(1)), f"{folder}/ must not include {name}"


def check_pragma_once(source):
    if not source.path.endswith((".h", ".cuh")):
        return
    first = re.search(r"\S[^\n]*", source.code)
    if first is None or first.group().split() != ["#pragma", "once"]:
        yield 1, "the first line of code of a header is #pragma once"


def check_words(source):
    if within(source.path, "tests/lint"):
        return
    for number, line in enumerate(source.lines, 1):
        for word in re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", line):
            yield number, f"{word}: finish it, or describe it where users look for what is missing"
    if source.cxx:
        for match in LITERAL.finditer(source.text):
            if match.group().startswith(("//", "/*")) and re.search(r"\bstub\b", match.group()):
                yield source.line_of(match.start()), "stub: nothing unfinished is committed"


def check_options(source):
    if not source.cxx:
        return
    for match in re.finditer(r'\badd_(?:option|flag)\w*\(\s*"([^"]*)"', source.text):
        for name in match.group(1).split(","):
            if re.fullmatch(r"-[A-Za-z]", name) and name not in SHORT_OPTIONS:
                yield source.line_of(match.start(1)), f"option {name}: long options only"


def check_columns(source):
    if not source.path.endswith(CXX + (".proto", ".py")):
        return
    for number, line in enumerate(source.lines, 1):
        if len(line) > MAX_COLUMNS:
            yield number, f"{len(line)} columns, at most {MAX_COLUMNS}"


def check_file_length(source):
    if source.cxx and len(source.lines) > MAX_FILE_LINES:
        yield MAX_FILE_LINES + 1, f"{len(source.lines)} lines, at most {MAX_FILE_LINES}"


def check_function_length(source):
    if not source.cxx:
        return
    for begin, end in functions(source.code):
        first, last = source.line_of(begin), source.line_of(end)
        if last - first + 1 > MAX_FUNCTION_LINES:
            yield first, f"a function of {last - first + 1} lines, at most {MAX_FUNCTION_LINES}"


SCOPE = re.compile(r"^\s*(?:template\s*<.*>\s*)?(?:inline\s+)?"
                   r"(?:namespace|class|struct|union|enum|extern)\b", re.S)


MACRO = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.M)


def functions(code):
    """(offset of its first line, offset of its closing brace) of every function: a brace block
    that is neither a scope nor inside another function."""
    code = MACRO.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), code)  # may hold half a block
    scopes, head, depth, begin = [], 0, 0, 0
    for match in re.finditer(r"[{};]", code):
        if depth == 0 and match.group() == ";":
            head = match.end()
        elif depth == 0 and match.group() == "{" and SCOPE.match(code[head:match.start()]):
            scopes.append(match.start())
            head = match.end()
        elif match.group() == "{":
            if depth == 0:
                begin = head + len(code[head:]) - len(code[head:].lstrip())
            depth += 1
        elif match.group() == "}" and depth > 0:
            depth -= 1
            if depth == 0:
                yield begin, match.start()
                head = match.end()
        elif match.group() == "}" and scopes:
            scopes.pop()
            head = match.end()


def check_format(source):
    if not source.path.endswith((".h", ".cc")):
        return
    formatted = subprocess.run(["clang-format", "--assume-filename=" + source.path],
                               input=source.text, capture_output=True, text=True, check=True).stdout
    if formatted != source.text:
        yield 1, "not as clang-format lays it out"


RULES = {
    "includes": check_includes,
    "pragma-once": check_pragma_once,
    "words": check_words,
    "options": check_options,
    "columns": check_columns,
    "file-length": check_file_length,
    "function-length": check_function_length,
    "format": check_format,
}


def why_skipped(rule):
    if rule != "format":
        return None
    if shutil.which("clang-format") is None:
        return "clang-format is not installed"
    version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True).stdout
    match = re.search(r"version (\d+)", version)
    if match is None or int(match.group(1)) != CLANG_FORMAT_MAJOR:
        return f"needs clang-format {CLANG_FORMAT_MAJOR}, here is {version.strip()}"
    return None


def sources(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and path.suffix in TEXT and not {"build", "__pycache__"} & set(parts):
                yield Source(root, path)


def read_baseline(path):
    baseline = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.strip() and not line.startswith("#"):
            rule, name, count = line.split()
            baseline[rule, name] = int(count)
    return baseline


def write_baseline(path, baseline):
    lines = ["# rule, file, findings let pass. Counts only fall: lint.py --lower-baseline"]
    lines += [f"{rule} {name} {count}" for (rule, name), count in sorted(baseline.items()) if count]
    path.write_text("\n".join(lines) + "\n")


def run(root, rules, baseline):
    """Findings beyond the baseline, and the count of all findings by rule and file."""
    findings, counts = [], {}
    for source in sources(root):
        for rule in rules:
            found = list(RULES[rule](source))
            counts[rule, source.path] = len(found)
            allowed = baseline.get((rule, source.path), 0)
            if len(found) <= allowed:
                continue
            more = f" ({len(found)} such in this file, {allowed} let pass)" if allowed else ""
            findings += [f"{source.path}:{line}: [{rule}] {what}{more}" for line, what in found]
    return findings, counts


def main(arguments):
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=here.parent.parent)
    parser.add_argument("--rule", action="append", choices=sorted(RULES))
    parser.add_argument("--baseline", type=pathlib.Path, default=here / "baseline.txt")
    parser.add_argument("--lower-baseline", action="store_true")
    options = parser.parse_args(arguments)

    asked = options.rule or list(RULES)
    skipped = {rule: why for rule in asked if (why := why_skipped(rule))}
    for rule, why in skipped.items():
        print(f"skipped: [{rule}] {why}")
    rules = [rule for rule in asked if rule not in skipped]
    if not rules:
        return 77
    baseline = read_baseline(options.baseline)
    findings, counts = run(options.root.resolve(), rules, baseline)
    if options.lower_baseline:
        lowered = {key: min(count, counts.get(key, 0)) if key[0] in rules else count
                   for key, count in baseline.items()}
        write_baseline(options.baseline, lowered)
    print("\n".join(findings) if findings else f"{len(rules)} rules hold")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
