"""ela model on several ranks, which share every sequence: what one rank says, they say."""

import json
import random

import harness
from harness import BIN, run


class InferenceTest(harness.TestCase):
    def setUp(self):
        super().setUp()
        self.run_dir = self.folder / "run"
        self.train(self.job_file(steps=4), self.run_dir, "--set",
                   "model.attention.softmax_every=2")

    def model(self, command, *words, ranks=1, check=0, stdin=None):
        launch = () if ranks == 1 else ("mpirun.openmpi", "-n", ranks, "--oversubscribe",
                                        "--bind-to", "none")
        return run(*launch, BIN / "ela-model", command, "--threads", 1, *words, check=check,
                   stdin=stdin)

    def test_scores_and_evals_are_those_of_one_rank(self):
        numbers = random.Random(1)
        lines = "".join(" ".join(str(numbers.randrange(harness.Corpus.VOCAB)) for _ in range(n))
                        + "\n" for n in (2, 3, 150))
        score = ("score", "--model", self.run_dir, "--tokens", "-", "--quiet")
        alone = self.model(*score, stdin=lines).stdout.splitlines()
        shared = self.model(*score, stdin=lines, ranks=3).stdout.splitlines()
        self.assertEqual(len(shared), 3)
        for a, b in zip(map(json.loads, alone), map(json.loads, shared)):
            self.assertAlmostEqual(a["loss"], b["loss"], places=4)
            self.assertEqual(len(a["logprobs"]), len(b["logprobs"]))
        evaluate = ("eval", "--model", self.run_dir, "--data",
                    harness.Corpus.prefix() + ".validation", "--seq-len", 50, "-o", "json")
        a, b = (json.loads(self.model(*evaluate, ranks=ranks).stdout) for ranks in (1, 3))
        self.assertAlmostEqual(a["loss"], b["loss"], places=4)
        self.assertEqual(a["tokens"], b["tokens"])

    def test_the_last_rank_goes_on_from_a_shared_prompt(self):
        generate = ("generate", "--model", self.run_dir, "--prompt", "int main(void) {",
                    "--temperature", 0, "--max-tokens", 12, "--quiet", "-o", "json")
        alone, shared = (json.loads(self.model(*generate, ranks=ranks).stdout)
                         for ranks in (1, 3))
        self.assertEqual(alone, shared)

    def generated(self, *words, check=0):
        return self.model("generate", "--model", self.run_dir, "--prompt", "int main(void) {",
                          "--temperature", 0, "--max-tokens", 60, "-o", "json", *words,
                          check=check)

    def test_a_card_writes_the_text_of_the_cpu(self):
        if not harness.has_card():
            self.skipTest("no card: nvidia-smi finds none")
        cpu, card = (json.loads(self.generated("--device", device, "--quiet").stdout)
                     for device in ("cpu", "cuda"))
        self.assertEqual(cpu, card)

    def test_a_card_that_is_not_there(self):
        if harness.has_card():
            self.skipTest("there is a card")
        done = self.generated("--device", "cuda", check=1)
        self.assertEqual((done.stdout, done.stderr.count("\n")), ("", 1))
        self.assertIn("CUDA", done.stderr)
        self.assertNotIn(" on ", self.generated("--device", "auto").stderr.split("tok/s")[1])
        self.assertIn("--device", self.generated("--device", "tpu", check=2).stderr)

    def test_bf16_scores_like_fp32_to_its_rounding(self):
        exact, rounded = (json.loads(self.model(
            "score", "--model", self.run_dir, "--tokens", "-", "--quiet", "--device", "cpu",
            "--precision", precision, stdin=" ".join(map(str, range(90)))).stdout)["loss"]
            for precision in ("fp32", "bf16"))
        self.assertNotEqual(exact, rounded)
        self.assertAlmostEqual(exact, rounded, delta=0.02)

    def test_a_mistake_is_told_once(self):
        done = self.model("score", "--model", self.run_dir, "--tokens", "-", ranks=2,
                          stdin="1 99999\n", check=2)
        self.assertEqual(done.stderr.count("the vocabulary has"), 1)
        done = self.model("generate", "--model", self.folder / "nowhere", "--prompt", "x",
                          ranks=2, check=3)
        self.assertEqual(done.stderr.count("nowhere"), 1)


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
