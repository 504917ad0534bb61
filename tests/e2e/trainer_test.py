"""ela-trainer under plain mpirun: what a run writes, and that it comes back bitwise."""

import json
import unittest

import harness
from harness import BIN, losses, metrics, run


class Trainer(harness.TestCase):
    def test_two_runs_are_bitwise_equal(self):
        job = self.job_file(steps=12)
        for name in ("a", "b"):
            self.train(job, self.folder / name)
        self.assertEqual(metrics(self.folder / "a"), metrics(self.folder / "b"))
        self.assertEqual(self.differences("a", "b"), 0)

    def differences(self, one, other):
        """Exit code of ela checkpoint diff: 0 if all tensors are bitwise equal."""
        return run(BIN / "ela", "checkpoint", "diff", self.folder / one,
                   self.folder / other).returncode

    def test_a_run_that_is_killed_ends_like_one_that_was_not(self):
        job = self.job_file(steps=18)
        self.train(job, self.folder / "whole")
        cut = self.folder / "cut"
        for fault in ("kill:1:8", "kill:0:14"):
            done = self.train(job, cut, env={"ELA_FAULT": fault}, check=None)
            self.assertNotEqual(done.returncode, 0)
        self.train(job, cut)
        self.assertEqual(metrics(cut), metrics(self.folder / "whole"))
        self.assertEqual(self.differences("whole", "cut"), 0)

    def test_a_run_goes_on_with_other_meshes(self):
        job, whole = self.job_file(steps=18), self.folder / "whole"
        self.train(job, whole)
        moved = self.folder / "moved"
        for steps, ranks, mesh in ((6, 2, ("sequence=2", "expert=2")),
                                   (12, 1, ("sequence=1", "expert=1")),
                                   (18, 4, ("sequence=2", "data=2", "expert=4"))):
            words = [w for key in mesh for w in ("--set", f"parallelism.{key}")]
            # The schedule is of the whole run, so each part is stopped by a fault, not by its end.
            env = {"ELA_FAULT": f"kill:0:{steps + 1}"} if steps < 18 else None
            self.train(job, moved, *words, ranks=ranks, env=env,
                       check=0 if steps == 18 else None)
        for a, b in zip(losses(moved), losses(whole), strict=True):
            self.assertAlmostEqual(a, b, delta=1e-4)

    def test_every_mesh_of_four_ranks_draws_the_same_curve(self):
        job = self.job_file(steps=10)
        self.train(job, self.folder / "one", "--set", "parallelism.sequence=1", "--set",
                   "parallelism.expert=1", ranks=1)
        expected = losses(self.folder / "one")
        for data, sequence, expert in ((4, 1, 2), (2, 2, 4), (1, 4, 1)):
            run_dir = self.folder / f"{data}x{sequence}x{expert}"
            self.train(job, run_dir, "--set", f"parallelism.data={data}", "--set",
                       f"parallelism.sequence={sequence}", "--set",
                       f"parallelism.expert={expert}", ranks=4)
            for a, b in zip(losses(run_dir), expected, strict=True):
                self.assertAlmostEqual(a, b, delta=1e-4)

    def test_a_nan_on_one_rank_stops_all_and_updates_none(self):
        job = self.job_file(steps=12)
        done = self.train(job, self.folder / "nan", env={"ELA_FAULT": "nan:1:7"}, check=None)
        self.assertEqual(done.returncode, 93)
        report = json.loads((self.folder / "nan/exit.json").read_text())
        self.assertIn("step 7", report["reason"])
        self.train(job, self.folder / "whole")
        self.train(job, self.folder / "nan")  # goes on from the last good state
        self.assertEqual(losses(self.folder / "nan"), losses(self.folder / "whole"))

    def test_a_nan_can_be_skipped_and_is_counted(self):
        job = self.job_file(steps=12)
        self.train(job, self.folder / "nan", "--set", "training.on_nan=skip",
                   env={"ELA_FAULT": "nan:0:7"})
        described = json.loads(run(BIN / "ela", "checkpoint", "describe", self.folder / "nan",
                                   "-o", "json", check=0).stdout)
        self.assertEqual(described["state"]["skipped_steps"], 1)
        self.assertEqual(described["state"]["optimizer_steps"], 11)

    def test_recompute_changes_no_bit(self):
        job = self.job_file(steps=8)
        self.train(job, self.folder / "kept")
        self.train(job, self.folder / "again", "--set", "training.recompute=true")
        self.train(job, self.folder / "one", "--set", "training.recompute=true", "--set",
                   "training.recompute_layers=1")
        for name in ("again", "one"):
            self.assertEqual(metrics(self.folder / "kept"), metrics(self.folder / name))

    def test_a_job_that_does_not_fit_is_told_what_would(self):
        job = self.job_file(steps=1)
        done = self.train(job, self.folder / "run", "--set",
                          "training.global_batch_size=1048576", check=93)
        self.assertRegex(done.stderr, r"the job needs \d+\.\d\d GiB on this machine \(2 ranks of .*"
                         r"training\.micro_batch_size: \d+ would fit, or "
                         r"training\.micro_batch_size: \d+ with training\.recompute: true")
        done = self.train(job, self.folder / "run", "--set",
                          "training.global_batch_size=1048576", "--set", "training.recompute=true",
                          check=93)
        self.assertRegex(done.stderr, r"available: training\.micro_batch_size: \d+ would fit\n")
        done = self.train(job, self.folder / "run", "--set", "model.num_layers=1024", "--set",
                          "model.moe.intermediate_size=1048576", check=93)
        self.assertIn("beside the model's parameters", done.stderr)
        done = self.train(job, self.folder / "run", "--set", "data.seq_len=1073741824", check=93)
        self.assertIn("not even sequences one at a time", done.stderr)

    def test_the_first_loss_is_that_of_a_uniform_guess(self):
        import math
        self.train(self.job_file(steps=1), self.folder / "run")
        record = metrics(self.folder / "run")[1]
        self.assertAlmostEqual((record["loss"] - record["aux_loss"]) /
                               math.log(harness.Corpus.VOCAB), 1, delta=0.01)

    def test_validate_tells_the_plan_and_starts_nothing(self):
        done = run(BIN / "ela-trainer", "--job", self.job_file(), "--validate", "-o", "json",
                   check=0)
        plan = json.loads(done.stdout)
        self.assertGreater(plan["parameters"], 10000)
        self.assertGreater(plan["bytes_per_rank"]["activations"], 0)


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
