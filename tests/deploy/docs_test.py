"""What the documents say is so: links and paths exist, commands and options are known, the job file
of the README is valid.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from monitoring import ROOT

BIN = pathlib.Path(os.environ["ELA_BIN"])
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
             ROOT / "deploy" / "README.md"]
# `ela data ...` and the like run programs of their own.
SIBLINGS = {"data", "checkpoint", "model"}


def run(*words, cwd=None):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd,
                          timeout=60, env={**os.environ, "NO_COLOR": "1"})


def code_lines(path):
    """Indented blocks, several commands on a line taken apart."""
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            yield from (part.strip() for part in re.split(r"\s{2,}", line.strip()))


def commands(path, program):
    for line in code_lines(path):
        words = line.split()
        if program in words[1:] and words[0] == "mpirun":
            words = words[words.index(program):]
        if len(words) > 1 and words[0] == program:
            yield words


class Documents(unittest.TestCase):
    def test_links_lead_somewhere(self):
        for path in DOCUMENTS:
            for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
                if not target.startswith("http"):
                    self.assertTrue((path.parent / target).exists(), f"{path.name}: {target}")

    def test_paths_that_are_named_exist(self):
        named = 0
        for path in DOCUMENTS:
            for name in re.findall(r"`(\w[\w./-]*)`", path.read_text()):
                inside = [base for base in (ROOT, path.parent)
                          if "/" in name and (base / name.split("/")[0]).is_dir()]
                if inside:
                    named += 1
                    self.assertTrue(any((base / name).exists() for base in inside),
                                    f"{path.name}: {name}")
        self.assertGreater(named, 40)

    def test_commands_and_their_options_are_known(self):
        asked = 0
        for path in DOCUMENTS:
            for words in commands(path, "ela"):
                depth = 3 if words[1] in SIBLINGS else 2
                done = run(BIN / "ela", *words[1:depth], "--help")
                self.assertEqual(done.returncode, 0, " ".join(words) + "\n" + done.stderr)
                for option in (word for word in words if word.startswith("-")):
                    self.assertIn(option, done.stdout, " ".join(words))
                asked += 1
        self.assertGreater(asked, 15)

    def test_options_of_the_trainer_are_known(self):
        known = run(BIN / "ela-trainer", "--help").stdout
        uses = list(commands(ROOT / "README.md", "ela-trainer"))
        self.assertGreater(len(uses), 1)
        for words in uses:
            for option in (word for word in words if word.startswith("-")):
                self.assertIn(option, known)

    def test_the_job_file_of_the_readme_is_valid(self):
        text = (ROOT / "README.md").read_text()
        block = re.search(r"(?:^    .*\n|^\n)*^    apiVersion.*\n(?:^    .*\n)+", text, re.M)
        folder = pathlib.Path(tempfile.mkdtemp(prefix="ela-docs-"))
        self.addCleanup(shutil.rmtree, folder)
        (folder / "data").mkdir()
        for name in ("mine.model", "mine.train.bin", "mine.train.idx", "mine.validation.bin",
                     "mine.validation.idx"):
            (folder / "data" / name).write_text("x")  # `ela validate` looks only whether they exist
        job = re.sub(r"^    ", "", block.group().strip("\n"), flags=re.M)
        (folder / "job.yaml").write_text(job + "\n")
        done = run(BIN / "ela", "validate", "-f", "job.yaml", cwd=folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("preset: recommended", done.stdout)

    def test_shipped_jobs_are_explained(self):
        jobs = sorted((ROOT / "deploy" / "jobs").glob("*.yaml"))
        self.assertGreaterEqual(len(jobs), 2)
        for job in jobs:
            self.assertTrue(job.read_text().startswith("# "), job.name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
