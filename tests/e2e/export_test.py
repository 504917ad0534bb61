"""Models that leave by ela checkpoint export: scored, imported, begun from, loaded by PyTorch."""

import json
import os
import pathlib
import random
import subprocess

import harness
from harness import BIN, losses, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The distribution's python3 has the distribution's torch.
PYTHON = "/usr/bin/python3"
TORCH_SCORES = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from modeling_ela import ElaModel
torch.set_num_threads(1)
model = ElaModel.load(sys.argv[1], dtype=torch.float64)
for line in sys.stdin:
    ids = torch.tensor([[int(word) for word in line.split()]])
    with torch.no_grad():
        logprobs = model(ids[:, :-1]).log_softmax(-1)
        whole, states = model(ids[:, :-1], return_states=True)
        cut, states = model(ids[:, :1], return_states=True)
        if ids.shape[1] > 2:  # decoding goes on from states
            rest, states = model(ids[:, 1:-1], states, return_states=True)
            cut = torch.cat([cut, rest], dim=1)
    assert torch.allclose(cut, whole, rtol=1e-9, atol=1e-9), (cut - whole).abs().max()
    print(json.dumps(logprobs.gather(2, ids[:, 1:, None])[0, :, 0].tolist()))
"""


class ExportTestCase(harness.TestCase):
    ALONE = ("--set", "parallelism.sequence=1", "--set", "parallelism.expert=1")

    def trained(self, *settings, steps=6):
        """The run folder of a small model."""
        words = [word for setting in settings for word in ("--set", setting)]
        self.train(self.job_file(steps=steps), self.folder / "run", *self.ALONE, *words, ranks=1)
        return self.folder / "run"

    def export(self, run_dir, name, *words):
        run(BIN / "ela", "checkpoint", "export", run_dir, "--to", self.folder / name, *words,
            check=0)
        return self.folder / name

    def tokens(self):
        """A file of sequences: the shortest, and across the edges of chunks."""
        numbers = random.Random(1)
        path = self.folder / "tokens"
        path.write_text("\n".join(
            " ".join(str(numbers.randrange(harness.Corpus.VOCAB)) for _ in range(length))
            for length in (2, 3, 65, 150)) + "\n")
        return path

    def scores(self, model, tokens):
        out = run(BIN / "ela", "model", "score", "--model", model, "--tokens", tokens, "--quiet",
                  check=0).stdout
        return [json.loads(line)["logprobs"] for line in out.splitlines()]


class ExportTest(ExportTestCase):
    def test_an_exported_model_does_what_the_checkpoint_does(self):
        checkpoint = self.trained()
        folder, parts = self.export(checkpoint, "out"), self.export(checkpoint, "parts",
                                                                    "--part-bytes", "20KiB")
        tokens = self.tokens()
        expected = self.scores(checkpoint, tokens)
        self.assertEqual([len(line) for line in expected], [1, 2, 64, 149])
        self.assertEqual(self.scores(folder, tokens), expected)
        self.assertEqual(self.scores(parts, tokens), expected)
        # As bytes: what a hardly trained model writes need not be UTF-8.
        told = [subprocess.check_output(
            [BIN / "ela", "model", "generate", "--model", model, "--prompt", "int", "--max-tokens",
             "20", "--seed", "3", "--quiet"], env=harness.ENVIRONMENT, timeout=harness.DEADLINE)
            for model in (checkpoint, folder)]
        self.assertNotEqual(told[0], b"")
        self.assertEqual(told[0], told[1])
        evals = [run(BIN / "ela", "model", "eval", "--model", model, "--data",
                     harness.Corpus.prefix() + ".validation", "--seq-len", "64", "-o", "json",
                     check=0).stdout for model in (checkpoint, folder)]
        self.assertEqual(json.loads(evals[0])["loss"], json.loads(evals[1])["loss"])

    def test_a_job_begins_from_any_form_of_a_model(self):
        base = self.trained()
        folder = self.export(base, "out")
        run(BIN / "ela", "checkpoint", "import", folder, "--to", self.folder / "in", check=0)
        curves = []
        for i, source in enumerate((base, folder, self.folder / "in")):
            run_dir = self.folder / f"next{i}"
            self.train(self.job_file(name="next", steps=3), run_dir, "--set",
                       f"training.init_from={source}")
            curves.append(losses(run_dir))
        self.assertEqual(curves[0], curves[1])
        self.assertEqual(curves[0], curves[2])
        self.assertLess(curves[0][0], losses(base)[0])

    def test_a_lobe_is_trained_alone_on_a_base_and_put_elsewhere(self):
        base = self.trained("model.memory_lobe.enabled=false")
        lobed = self.folder / "lobed"
        self.train(self.job_file(name="lobed", steps=4), lobed, *self.ALONE, "--set",
                   f"training.init_from={base}", "--set", "training.train_only=memory_lobe",
                   ranks=1)
        changed = self.differing(base, lobed)
        self.assertTrue(changed)
        self.assertEqual([name for name in changed if ".lobe." not in name], [])
        lobe = self.export(lobed, "lobe", "--only", "memory_lobe")
        run(BIN / "ela", "checkpoint", "import", base, "--lobe", lobe, "--to",
            self.folder / "again", check=0)
        self.assertEqual(self.differing(lobed, self.folder / "again"), [])

    def differing(self, one, other):
        """Tensors of the model that are not bitwise equal."""
        out = run(BIN / "ela", "checkpoint", "diff", one, other, "-o", "json").stdout
        return [line["tensor"] for line in json.loads(out) if line["tensor"].startswith("model/")]

    def test_a_source_that_does_not_fit_is_refused_by_name(self):
        base = self.trained()
        done = self.train(self.job_file(name="deep", steps=3), self.folder / "deep", "--set",
                          f"training.init_from={base}", "--set", "model.num_layers=3", check=None)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("lacks tensors of this model: layers.2.", done.stderr)

    def test_installed_programs_export_and_score(self):
        run_dir, tokens = self.trained(steps=2), self.tokens()
        run("cmake", "--install", BIN.parent, "--prefix", self.folder / "usr", check=0)
        ela = self.folder / "usr" / "bin" / "ela"
        run(ela, "checkpoint", "export", run_dir, "--to", self.folder / "out", check=0)
        self.assertEqual((self.folder / "out" / "modeling_ela.py").read_text(),
                         (ROOT / "checkpoints" / "export" / "modeling_ela.py").read_text())
        scored = run(ela, "model", "score", "--model", self.folder / "out", "--tokens", tokens,
                     "--quiet", check=0).stdout
        self.assertEqual([json.loads(line)["logprobs"] for line in scored.splitlines()],
                         self.scores(run_dir, tokens))

    def test_a_damaged_export_is_refused(self):
        folder = self.export(self.trained(steps=2), "out")
        with open(folder / "model.safetensors", "r+b") as file:
            file.seek(-9, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-9, os.SEEK_END)
            file.write(bytes([byte ^ 4]))
        done = run(BIN / "ela", "model", "score", "--model", folder, "--tokens", self.tokens())
        self.assertEqual(done.returncode, 1)
        self.assertIn("checksum", done.stderr)
        self.assertEqual(run(BIN / "ela", "checkpoint", "verify", folder).returncode, 1)


class PyTorchTestCase(ExportTestCase):
    def setUp(self):
        super().setUp()
        if run(PYTHON, "-c", "import torch").returncode != 0:
            self.skipTest("python3-torch is not installed: deploy/install-deps --tests")


class PyTorchTest(PyTorchTestCase):
    """modeling_ela.py in float64 against ela model score in float32."""

    def compare(self, *settings):
        checkpoint = self.trained("optimizer.lr=0.02", "lr_scheduler.warmup_steps=0", *settings)
        folder, tokens = self.export(checkpoint, "out", "--part-bytes", "100KiB"), self.tokens()
        ours = self.scores(folder, tokens)
        theirs = [json.loads(line) for line in
                  run(PYTHON, "-B", "-c", TORCH_SCORES, folder, stdin=tokens.read_text(),
                      check=0).stdout.splitlines()]
        self.assertEqual([len(line) for line in ours], [len(line) for line in theirs])
        # Rounding to float shows 4e-7 to 7e-7; another decay or epsilon in one of them, 8e-5.
        worst = max(abs(a - b) for x, y in zip(ours, theirs) for a, b in zip(x, y))
        self.assertLess(worst, 5e-6)
        self.assertGreater(max(map(max, ours)) - min(map(min, ours)), 1)  # it learned something

    def test_hadamard_exp_with_decay_inner_bias_and_lobe(self):
        self.compare()

    def test_sum_squared_with_hyper_link(self):
        self.compare("model.attention.kernel=sum_squared", "model.residual=hyper_link",
                     "model.attention.decay=none")

    def test_sub_squared_with_outer_bias(self):
        self.compare("model.attention.kernel=sub_squared", "model.moe.label_bias=outer")

    def test_modulated_dot_without_bias_or_lobe(self):
        self.compare("model.attention.kernel=modulated_dot", "model.moe.label_bias=none",
                     "model.memory_lobe.enabled=false")

    def test_a_hybrid_with_softmax(self):
        self.compare("model.attention.softmax_every=2", "model.memory_lobe.num_heads=2",
                     "model.memory_lobe.norm=true")


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
