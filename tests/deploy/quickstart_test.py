"""deploy/quickstart tokenises again where a file has changed, and only there."""

import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from monitoring import ROOT

# The function as it stands in the script, without what the script does.
FUNCTION = re.search(r"^fingerprint\(\) \{.*?^\}", (ROOT / "deploy/quickstart").read_text(),
                     re.M | re.S).group()


class Fingerprint(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name) / "a folder"
        (self.folder / "below").mkdir(parents=True)
        for name in ("one.txt", "below/two.txt"):
            (self.folder / name).write_text("text")
        (self.folder / "link").symlink_to("one.txt")
        (self.folder / "dangling").symlink_to("nowhere")

    def of(self, *paths):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", FUNCTION + '\nfingerprint "$@"',
                               "bash", *map(str, paths or [self.folder])],
                              capture_output=True, text=True, check=True)
        self.assertRegex(done.stdout, r"^[0-9a-f]{64}")
        return done.stdout

    def change(self, what):
        before = self.of()
        what()
        return self.of() != before

    def test_stays_while_nothing_is_written(self):
        self.assertFalse(self.change(lambda: (self.folder / "one.txt").read_text()))

    def test_changes_with_what_a_file_holds(self):
        self.assertTrue(self.change(lambda: (self.folder / "below/two.txt").write_text("longer")))

    def test_changes_with_a_time_alone(self):
        file = self.folder / "one.txt"
        newer = file.stat().st_mtime_ns + 1000
        self.assertTrue(self.change(lambda: os.utime(file, ns=(newer, newer))))

    def test_changes_with_a_file_that_comes_or_goes(self):
        self.assertTrue(self.change(lambda: (self.folder / "three.txt").write_text("")))
        self.assertTrue(self.change(lambda: (self.folder / "three.txt").unlink()))

    def test_takes_single_files(self):
        one, two = self.folder / "one.txt", self.folder / "below/two.txt"
        self.assertNotEqual(self.of(one), self.of(one, two))


if __name__ == "__main__":
    unittest.main(verbosity=2)
