#!/usr/bin/env python3
"""Plants one fault of each kind and checks that lint.py finds it, and only it."""

import contextlib
import io
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import lint  # noqa: E402


class LintTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name).resolve() / "tree"

    def plant(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def findings(self, rule, path, text, baseline=None):
        """Those of a tree of this one file."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.plant(path, text)
        return lint.run(self.root, [rule], baseline or {})[0]

    def assert_finds(self, rule, path, text, line):
        found = self.findings(rule, path, text)
        self.assertEqual([f.split(" ")[:2] for f in found], [[f"{path}:{line}:", f"[{rule}]"]])

    def assert_passes(self, rule, path, text):
        self.assertEqual(self.findings(rule, path, text), [])

    def test_includes_go_one_way(self):
        self.assert_finds("includes", "kernels/a.cc", '\n#include "data/loader.h"\n', 2)
        self.assert_finds("includes", "proto/a.cc", '#include "kernels/ops.h"\n', 1)
        self.assert_finds("includes", "data/a.cc", '#include "trainer/a.h"\n', 1)

    def test_coordinator_sees_only_the_key_value_part_of_checkpoints(self):
        self.assert_passes("includes", "coordinator/a.cc", '#include "checkpoints/kv/store.h"\n')
        self.assert_finds("includes", "coordinator/a.cc",
                          '#include "checkpoints/checkpoint.h"\n', 1)

    def test_parallel_does_not_know_the_layers(self):
        self.assert_passes("includes", "trainer/layers/a.cc", '#include "trainer/parallel/a.h"\n')
        self.assert_finds("includes", "trainer/parallel/a.cc", '#include "trainer/layers/a.h"\n', 1)

    def test_generated_and_outside_headers_are_nobodys(self):
        self.assert_passes("includes", "data/a.cc", '#include "ela/v1/job.pb.h"\n')
        self.assert_passes("includes", "data/a.cc", '#include "absl/status/status.h"\n')

    def test_headers_begin_with_pragma_once(self):
        self.assert_passes("pragma-once", "data/a.h", "// What it is.\n#pragma once\nint f();\n")
        self.assert_finds("pragma-once", "data/b.h", "int f();\n#pragma once\n", 1)

    def test_unfinished_work_is_named(self):
        self.assert_finds("words", "data/a.cc", "int a;\n// TODO: later\n", 2)
        self.assert_finds("words", "data/a.cc", "int a;  // a stub for now\n", 1)
        self.assert_finds("words", "deploy/run", "# FIXME\n", 1)

    def test_names_of_libraries_are_not_unfinished_work(self):
        self.assert_passes("words", "data/a.cc", "auto stub = Service::NewStub(channel);\n")
        self.assert_passes("words", "deploy/run", "mktemp /tmp/ela.XXXXXX\n")

    def test_options_are_long(self):
        self.assert_finds("options", "data/a.cc", 'app.add_option("-s,--step", step);\n', 1)
        self.assert_passes("options", "data/a.cc", 'app.add_option("-o,--output", o);\n')

    def test_lines_and_files_are_short(self):
        self.assert_passes("columns", "data/a.cc", "/" * 100 + "\n")
        self.assert_finds("columns", "data/a.cc", "int a;\n" + "/" * 101 + "\n", 2)
        self.assert_passes("file-length", "data/a.cc", "//\n" * 400)
        self.assert_finds("file-length", "data/a.cc", "//\n" * 401, 401)

    def test_functions_are_short(self):
        body = "  if (x) { y(); }\n  auto s = \"}\";  // }\n" * 34
        text = "namespace a {\nclass B {\n  int f() const {\n" + body + "%s  }\n};\n}\n"
        self.assert_passes("function-length", "data/a.cc", text % "")
        self.assert_finds("function-length", "data/a.cc", text % "\n", 3)

    def test_the_baseline_lets_pass_what_it_counts_and_no_more(self):
        long_line = "/" * 101 + "\n"
        baseline = {("columns", "data/a.cc"): 1}
        self.assertEqual(self.findings("columns", "data/a.cc", long_line, baseline), [])
        self.assertEqual(len(self.findings("columns", "data/a.cc", 2 * long_line, baseline)), 2)

    def test_the_baseline_only_falls(self):
        self.plant("baseline.txt", "columns data/a.cc 3\ncolumns data/gone.cc 2\n")
        self.plant("data/a.cc", "/" * 101 + "\n")
        self.plant("data/b.cc", "/" * 101 + "\n")
        file = self.root / "baseline.txt"
        with contextlib.redirect_stdout(io.StringIO()):
            lint.main(["--root", str(self.root), "--rule", "columns", "--baseline", str(file),
                       "--lower-baseline"])
        self.assertEqual(lint.read_baseline(file), {("columns", "data/a.cc"): 1})

    def test_layout_is_that_of_clang_format(self):
        if lint.why_skipped("format"):
            self.skipTest(lint.why_skipped("format"))
        self.assert_passes("format", "data/a.cc", "int f() { return 1; }\n")
        self.assert_finds("format", "data/a.cc", "int f(){return 1;}\n", 1)


if __name__ == "__main__":
    unittest.main()
