"""Jobs through the coordinator, with its faults, as the command line shows them."""

import json
import pathlib
import re
import subprocess
import unittest
import urllib.request

import harness
from harness import BIN, kill, losses, rank_pids, run, wait_until


def read_page(address):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(address, timeout=harness.DEADLINE) as page:
        return page.read().decode()


class Service(harness.TestCase):
    def test_a_submitted_job_trains_and_is_followed(self):
        service = self.coordinator()
        done = service.ela("submit", "-f", self.job_file(), "--follow", check=0)
        job = done.stdout.split()[0]
        record = service.job(job)
        self.assertEqual(record["state"], "succeeded")
        run_dir = pathlib.Path(record["run_dir"])
        curve = losses(run_dir)
        self.assertEqual(len(curve), 30)
        self.assertLess(curve[-1], 0.9 * curve[0])
        self.assertEqual(json.loads((run_dir / "exit.json").read_text())["outcome"], "ok")
        for name in ("job.resolved.yaml", "logs/rank-0.log", "logs/rank-1.log"):
            self.assertTrue((run_dir / name).exists(), name)
        self.assertIn("checkpoint of step 30 is committed",
                      service.ela("logs", job, "--rank", "0", check=0).stdout)
        lines = service.ela("logs", job, check=0).stdout.splitlines()
        self.assertEqual(sum("checkpoint of step 30 is committed" in line for line in lines), 2)
        self.assertFalse([line for line in lines if line.startswith("[mpirun]")])
        times = [line.split()[2] for line in lines]
        self.assertEqual(times, sorted(times))
        steps = json.loads(run(BIN / "ela", "checkpoint", "list", run_dir, "-o", "json",
                               check=0).stdout)
        self.assertIn(30, [step["step"] for step in steps])
        text = run(BIN / "ela", "model", "generate", "--model", run_dir, "--prompt", "/* ",
                   "--max-tokens", "20", "--quiet", check=0).stdout
        self.assertTrue(text.startswith("/* ") and len(text) > 8, text)

    def test_a_killed_rank_costs_no_step_of_the_curve(self):
        service = self.coordinator()
        job_file = self.job_file(steps=60)
        whole = self.folder / "whole"
        self.train(job_file, whole)
        job = service.submit(job_file)
        service.wait_step(job, 8)
        run_dir = service.job(job)["run_dir"]
        kill(rank_pids(run_dir)[1])
        service.ela("wait", job, "--for", "completed", check=0)
        self.assertEqual(losses(run_dir), losses(whole))
        record = service.job(job)
        self.assertEqual(len(record["attempts"]), 2)
        self.assertEqual(record["attempts"][0]["outcome"], "infra")

    def test_a_coordinator_that_is_killed_takes_its_jobs_up_again(self):
        service = self.coordinator()
        job = service.submit(self.job_file(steps=80))
        service.wait_step(job, 3)
        pids = rank_pids(service.job(job)["run_dir"])
        service.kill()
        service.start()
        self.assertEqual(rank_pids(service.job(job)["run_dir"]), pids)
        service.ela("wait", job, "--for", "completed", check=0)
        self.assertEqual(len(service.job(job)["attempts"]), 1)
        self.assertEqual(len(losses(service.job(job)["run_dir"])), 80)

    def test_a_cancelled_job_leaves_no_process(self):
        service = self.coordinator()
        job = service.submit(self.job_file(steps=100000))
        service.wait_step(job, 2)
        run_dir = service.job(job)["run_dir"]
        service.ela("cancel", job, check=0)
        service.ela("wait", job, "--for", "completed", check=11)
        self.assertEqual(service.job(job)["state"], "cancelled")
        wait_until("the ranks are gone", lambda: not rank_pids(run_dir))

    def test_a_paused_job_goes_on_where_it_was(self):
        service = self.coordinator()
        job_file = self.job_file(steps=100)
        whole = self.folder / "whole"
        self.train(job_file, whole)
        job = service.submit(job_file)
        service.wait_step(job, 7)
        service.ela("pause", job, check=0)
        service.ela("wait", job, "--for", "paused", check=0)
        run_dir = service.job(job)["run_dir"]
        self.assertFalse(rank_pids(run_dir))
        self.assertLess(len(losses(run_dir)), 100)
        service.ela("resume", job, check=0)
        service.ela("wait", job, "--for", "completed", check=0)
        self.assertEqual(losses(run_dir), losses(whole))

    def test_lost_checkpoints_are_told_and_a_pause_waits_for_the_last(self):
        service = self.coordinator()
        job = service.submit(self.job_file(steps=100000))
        service.wait_step(job, 1)
        steps = pathlib.Path(service.job(job)["run_dir"]) / "checkpoints/steps"
        steps.rename(steps.with_name("kept"))
        steps.write_text("a file: no shard can be written, whoever runs this")
        failure = wait_until("a checkpoint fails", lambda: re.match(
            r"checkpoint failing since step \d+: .{10}", service.job(job)["reason"])).group()
        service.wait_step(job, int(service.job(job)["progress"]["step"]) + 12)  # others fail too
        self.assertIn(failure, service.ela("list", check=0).stdout)
        self.assertIn(failure, service.ela("describe", job, check=0).stdout)
        events = json.loads(service.ela("events", job, "-o", "json", check=0).stdout)
        self.assertEqual(sum("checkpoint failing" in event["message"] for event in events), 1)
        address = service.job(job)["attempts"][0]["ranks"][0]["metrics_address"]
        self.assertRegex(read_page(f"http://{address}/metrics"),
                         r"ela_checkpoint_failures_total{.*} [1-9]")
        service.ela("pause", job, check=0)
        wait_until("the last checkpoint is tried again", lambda: "is tried again" in service.ela(
            "logs", job, "--rank", "0", check=0).stdout)
        self.assertIn(failure, service.job(job)["reason"])
        steps.unlink()
        steps.with_name("kept").rename(steps)
        service.ela("wait", job, "--for", "paused", check=0)
        record = service.job(job)
        last = int(record["progress"]["last_checkpoint_step"])
        self.assertEqual(record["reason"], "paused")
        self.assertEqual(last, int(record["progress"]["step"]))
        service.ela("resume", job, check=0)
        service.wait_step(job, last + 1)
        self.assertEqual(int(service.job(job)["attempts"][1]["first_step"]), last)

    def test_control_c_detaches_and_the_job_goes_on(self):
        service = self.coordinator()
        follower = subprocess.Popen(
            [BIN / "ela", "submit", "-f", self.job_file(steps=100000), "--follow", "--address",
             service.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        job = follower.stdout.readline().strip()
        service.wait_step(job, 2)
        follower.send_signal(2)
        follower.communicate(timeout=harness.DEADLINE)
        self.assertEqual(follower.returncode, 130)
        step = int(service.job(job)["progress"]["step"])
        service.wait_step(job, step + 2)

    def test_two_jobs_for_the_slots_of_one_run_one_after_the_other(self):
        service = self.coordinator(slots=2)
        first = service.submit(self.job_file("first", steps=40))
        second = service.submit(self.job_file("second", steps=10))
        self.assertEqual(service.job(second)["state"], "queued")
        self.assertIn("slots", service.job(second)["reason"])
        for job in (first, second):
            service.ela("wait", job, "--for", "completed", check=0)

    def test_a_key_submits_once(self):
        service = self.coordinator()
        job_file = self.job_file(steps=5)
        first = service.submit(job_file, "--client-key", "k1")
        self.assertEqual(service.submit(job_file, "--client-key", "k1"), first)
        other = service.ela("submit", "-f", job_file, "--client-key", "k1", "--set",
                            "training.steps=6")
        self.assertEqual(other.returncode, 1)


def tearDownModule():
    harness.Corpus.remove()


if __name__ == "__main__":
    harness.main()
