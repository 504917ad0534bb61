"""ela model: which tokens experts draw, how even their load is, and what it refuses."""

import json
import pathlib
import re

import harness
from export_test import ROOT, ExportTestCase
from harness import BIN, run

HEADERS = sorted(pathlib.Path("/usr/include/asm-generic").glob("*.h"))
MASKED = ("training.objective=masked_token", "model.attention.decay=none",
          "model.memory_lobe.mode=bidirectional")


class ModelTest(ExportTestCase):
    def model(self, command, run_dir, *words, check=0):
        return run(BIN / "ela", "model", command, "--model", run_dir, *words, check=check)

    def experts(self, run_dir, text, *words):
        """The profiles as JSON and the lines of the table."""
        path = self.folder / "text"
        path.write_text(text)
        words = ("--text", path, *words)
        return (json.loads(self.model("experts", run_dir, *words, "-o", "json").stdout),
                self.model("experts", run_dir, *words).stdout.splitlines())

    def test_experts_as_table_and_as_json(self):
        top_k = 2
        profiles, table = self.experts(self.trained("optimizer.lr=0.01"), HEADERS[0].read_text(),
                                       "--top", 5, "--seq-len", 100)
        self.assertEqual([(p["layer"], p["expert"]) for p in profiles],
                         [(layer, expert) for layer in range(2) for expert in range(4)])
        self.assertEqual(len(table), 1 + len(profiles))
        for p, line in zip(profiles, table[1:]):
            self.assertEqual(line.split()[:3],
                             [str(p["layer"]), str(p["expert"]), f"{100 * p['load']:.0f}%"])
            shares = [t["drawn"] / t["seen"] for t in p["tokens"]]
            self.assertEqual(re.findall(r" (\d+%)", line)[1:], [f"{100 * s:.0f}%" for s in shares])
            self.assertLessEqual(len(shares), 5)
            chance = top_k * p["load"]
            for token, share in zip(p["tokens"], shares):
                self.assertTrue(share > chance or chance == 1, (p, token))
                self.assertTrue(0 < share <= 1 and 0 < token["mean_weight"] <= 1, token)
        for layer in range(2):
            self.assertAlmostEqual(sum(p["load"] for p in profiles if p["layer"] == layer), 1)

    def test_an_expert_that_draws_every_token_shows_the_most_frequent(self):
        profiles, table = self.experts(self.trained("model.moe.top_k=4", steps=2),
                                       HEADERS[0].read_text(), "--top", 3)
        for p, line in zip(profiles, table[1:]):
            self.assertEqual((p["load"], len(p["tokens"])), (0.25, 3))
            seen = [t["seen"] for t in p["tokens"]]
            self.assertEqual(seen, [t["drawn"] for t in p["tokens"]])
            self.assertEqual(seen, sorted(seen, reverse=True))
            self.assertEqual(line.count(" 100%"), 3)

    def test_no_expert_of_the_demo_job_dies(self):
        """MaxVio: the busiest expert's tokens over the mean, minus one: 1 if it draws every one."""
        prefix, run_dir = harness.Corpus.prefix(), self.folder / "demo"
        words = [word for setting in (
            f"model.vocab_size={harness.Corpus.VOCAB}", f"tokenizer.path={prefix}.model",
            f"data.train=[{{path: {prefix}.train}}]", f"data.validation={prefix}.validation",
            "data.seq_len=128", "training.steps=60", "training.eval_every=0",
            "checkpoint.every_steps=0", "parallelism.sequence=1", "parallelism.expert=1")
            for word in ("--set", setting)]
        self.train(ROOT / "deploy/jobs/demo.yaml", run_dir, *words, ranks=1)
        curve = harness.losses(run_dir)
        self.assertLess(curve[-1], curve[0] - 1)
        profiles, _ = self.experts(run_dir, "".join(header.read_text() for header in HEADERS[::4]),
                                   "--seq-len", 128)
        for layer in range(4):
            ratios = [4 * p["load"] for p in profiles if p["layer"] == layer]
            # Seen: at most 0.47, at least 0.45; without the balance loss 0.84 and 0.33.
            self.assertLess(max(ratios) - 1, 0.65, f"MaxVio of layer {layer}")
            self.assertGreater(min(ratios), 0.25, f"layer {layer}")

    def test_a_model_of_masked_tokens_neither_scores_nor_generates(self):
        run_dir = self.trained(*MASKED, steps=2)
        for words in (("score", run_dir, "--tokens", self.tokens()),
                      ("generate", run_dir, "--prompt", "x")):
            done = self.model(*words, check=2)
            self.assertEqual(done.stdout, "")
            self.assertIn("trained on masked tokens", done.stderr)

    def memory_told(self, run_dir, prompt):
        """What generate says of its memory: {kind: KiB}."""
        told = self.model("generate", run_dir, "--prompt", prompt, "--max-tokens", 1).stderr
        kinds = {"state": r"state (\S+) KiB at any length", "so far": r"caches (\S+) KiB so far"}
        found = {kind: re.search(pattern, told) for kind, pattern in kinds.items()}
        return {kind: float(match.group(1)) for kind, match in found.items() if match}

    def test_states_and_growing_caches_are_told_apart(self):
        hybrid = self.trained("model.attention.softmax_every=2", steps=2)
        short, long = (self.memory_told(hybrid, "int " * n) for n in (1, 40))
        self.assertGreater(short["state"], 0)
        self.assertEqual(short["state"], long["state"])
        self.assertLess(10 * short["so far"], long["so far"])

    def test_a_model_without_softmax_has_no_growing_cache(self):
        self.assertEqual(list(self.memory_told(self.trained(steps=2), "int ")), ["state"])


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
