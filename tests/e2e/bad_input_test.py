"""What a user gets wrong: one clear line, the documented exit code, nothing lost."""

import pathlib
import shutil
import socket
import unittest

import harness
from harness import BIN, run


class BadInput(harness.TestCase):
    def expect(self, done, code, *words):
        self.assertEqual(done.returncode, code, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertNotIn("terminate called", done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def submit(self, *words):
        return run(BIN / "ela", "submit", *words, "--address", "127.0.0.1:1", "--timeout", "2s")

    def test_a_job_file_that_is_not_there(self):
        self.expect(self.submit("-f", "nowhere.yaml"), 2, "nowhere.yaml")

    def test_an_unknown_key_names_the_nearest(self):
        done = self.submit("-f", self.job_file(), "--set", "model.hiden_size=64")
        self.expect(done, 2, "hiden_size", "hidden_size")

    def test_a_mesh_that_does_not_fit_the_experts(self):
        done = self.submit("-f", self.job_file(), "--set", "parallelism.expert=3")
        self.assertEqual(done.returncode, 2)
        self.assertIn("parallelism.expert", done.stderr)

    def test_a_mesh_that_does_not_fit_the_machine(self):
        service = self.coordinator(slots=2)
        done = service.ela("submit", "-f", self.job_file(), "--set", "parallelism.sequence=4")
        self.expect(done, 2, "slots")

    def test_no_coordinator(self):
        self.expect(self.submit("-f", self.job_file()), 4, "127.0.0.1:1")

    def test_a_job_that_is_not_known(self):
        self.expect(self.coordinator().ela("get", "nosuchjob"), 3, "nosuchjob")

    def test_an_unknown_option_and_an_unknown_command(self):
        self.expect(run(BIN / "ela", "list", "--staet", "running"), 2, "--state")
        self.expect(run(BIN / "ela", "sumbit"), 2, "submit")

    def test_siblings_name_the_unknown_word_before_what_is_missing(self):
        for program, words, named in (
                ("ela-trainer", "--jobb x.yaml", "unknown option --jobb; did you mean --job?"),
                ("ela-trainer", "--job x.yaml surplus", "unexpected argument surplus"),
                ("ela-model", "generat --model x", "unknown command generat; did you mean"),
                ("ela-model", "eval --zzz=1", "unknown option --zzz; see ela model eval --help"),
                ("ela-model", "eval --seq-len many", "--seq-len"),
                ("ela-checkpoint", "lst run", "unknown command lst; did you mean list?"),
                ("ela-checkpoint", "list run --ouptut json", "did you mean --output?"),
                ("ela-data", "biuld", "unknown command biuld; did you mean build?"),
                ("ela-data", "inspect a b", "unexpected argument b"),
                ("ela-data", "verify a --output-format json", "unknown option --output-format"),
                ("ela-data", "build", "--input is required; see ela data build --help"),
                ("ela-coordinator", "--listn x", "unknown option --listn; did you mean --listen?"),
                ("ela-coordinator", "run", "unexpected argument run"),
                ("ela-supervisor", "--gaurd", "--gaurd"),
                ("ela-supervisor", "", "--attempt-dir")):
            with self.subTest(program=program, words=words):
                done = run(BIN / program, *words.split())
                self.expect(done, 2, named)
                self.assertTrue(done.stderr.startswith(program + ": "), done.stderr)
                self.assertEqual(done.stdout, "")

    def test_ranks_of_one_mpirun_complain_once(self):
        done = self.train("x.yaml", self.folder / "r", "--nonsense", check=None)
        self.assertEqual(done.stderr.count("unknown option --nonsense"), 1, done.stderr)

    def test_every_program_says_its_version_in_the_same_form(self):
        forms = set()
        for program in ("ela", "ela-trainer", "ela-model", "ela-checkpoint", "ela-data",
                        "ela-coordinator", "ela-supervisor"):
            done = run(BIN / program, "--version", check=0)
            self.assertEqual(done.stderr, "")
            name, form = done.stdout.split(" ", 1)
            self.assertEqual(name, program)
            forms.add(form)
        self.assertEqual(len(forms), 1, forms)
        self.assertRegex(forms.pop(), r"^\d+\.\d+\.\d+ \(\S.*, \w+\)\n$")

    def test_a_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            done = run(BIN / "ela-coordinator", "--listen", address, "--state-dir",
                       self.folder / "state", "--metrics-listen", "127.0.0.1:0")
        self.assertEqual(done.returncode, 1)
        self.assertIn(address, done.stderr)

    def test_a_vocabulary_that_is_not_the_tokenizers(self):
        job = self.job_file(vocab=512)
        pieces = str(harness.Corpus.VOCAB)
        for command in ("submit", "validate"):
            self.expect(run(BIN / "ela", command, "-f", job), 2, "vocab_size is 512", pieces)
        run_dir = self.folder / "run"
        self.train(job, run_dir, check=93)
        self.assertIn("vocab_size is 512", (run_dir / "exit.json").read_text())

    def fails_for_good(self, job_file, *words):
        """The job fails without a retry, and says why wherever one looks."""
        service = self.coordinator()
        job = service.submit(job_file)
        service.ela("wait", job, "--for", "completed", check=10)
        record = service.job(job)
        self.assertEqual(record["state"], "failed")
        self.assertEqual(len(record["attempts"]), 1)
        self.assertNotRegex(record["reason"], r"rank \d+: rank \d+")
        for word in words:
            self.assertIn(word, record["reason"])
            self.assertIn(word, service.ela("describe", job, check=0).stdout)

    def copied_corpus(self):
        folder = self.folder / "data"
        shutil.copytree(pathlib.Path(harness.Corpus.prefix()).parent, folder)
        path = self.job_file()
        path.write_text(path.read_text().replace(harness.Corpus.prefix(), str(folder / "c")))
        return path, folder

    def test_a_corrupt_shard(self):
        job_file, folder = self.copied_corpus()
        index = folder / "c.train.idx"
        index.write_bytes(b"NOTMIDX" + index.read_bytes()[7:])
        self.fails_for_good(job_file, "c.train.idx")

    def test_a_truncated_shard(self):
        job_file, folder = self.copied_corpus()
        tokens = folder / "c.train.bin"
        tokens.write_bytes(tokens.read_bytes()[:-100])
        self.fails_for_good(job_file, "c.train")

    def test_shards_whose_tokens_are_damaged(self):
        job_file, folder = self.copied_corpus()
        with open(folder / "c.train.bin", "r+b") as tokens:
            tokens.seek(1000)
            tokens.write(bytes(64))
        self.fails_for_good(job_file, "c.train.bin", "are damaged", "ela data build")

    def test_shards_that_are_not_there(self):
        service = self.coordinator()
        done = service.ela("submit", "-f", self.job_file(), "--set", "data.validation=/nowhere/x")
        self.expect(done, 2, "/nowhere/x", "ela data build")

    def test_a_trainer_started_alone_says_what_to_type(self):
        done = run(BIN / "ela-trainer", "--job", self.job_file(), "--run-dir", self.folder / "r")
        self.expect(done, 93, "mpirun", "2")

    def test_a_run_folder_that_cannot_be_made(self):
        (self.folder / "file").write_text("in the way")
        done = self.train(self.job_file(), self.folder / "file", check=None)
        self.assertEqual(done.returncode, 93)
        self.assertIn("cannot create the folder", done.stderr)

    def test_a_job_file_of_garbage(self):
        garbage = self.folder / "garbage.yaml"
        garbage.write_bytes(bytes(range(256)) * 10)
        self.expect(self.submit("-f", garbage), 2, "garbage.yaml")

    def test_a_model_that_is_not_there(self):
        done = run(BIN / "ela", "model", "generate", "--model", "/nowhere", "--prompt", "x")
        self.expect(done, 3, "/nowhere")


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
