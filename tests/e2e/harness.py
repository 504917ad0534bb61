"""The built programs, run as a user runs them: a coordinator of its own, jobs, plain mpirun.

Every test gets a folder that is removed afterwards; every process that is started here is ended by
its pid, also when a test fails.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = pathlib.Path(os.environ["ELA_BIN"])
DEADLINE = 120  # seconds that anything may take before a test gives up; nothing is timed

ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "ELA_NUM_THREADS": "1",  # ranks share two cores with other tests
    "NO_COLOR": "1",
}

# A model of a few thousand parameters that has every part: decay, experts, label vectors, a lobe.
JOB = """
apiVersion: ela/v1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  model:
    vocab_size: {vocab}
    hidden_size: 32
    num_layers: 2
    num_attention_heads: 2
    attention: {{decay: head}}
    moe: {{num_experts: 4, top_k: 2, intermediate_size: 32, label_bias: inner}}
    memory_lobe: {{enabled: true}}
  tokenizer: {{path: {data}.model}}
  data:
    train: [{{path: {data}.train}}]
    validation: {data}.validation
    seq_len: 64
  training: {{steps: {steps}, global_batch_size: 4, eval_every: 10, eval_batches: 1}}
  optimizer: {{lr: 3e-3}}
  parallelism: {{sequence: 2, expert: 2}}
  checkpoint: {{every_steps: 5}}
  restart: {{backoff: 100ms}}
"""


def run(*words, env=None, cwd=None, check=None, stdin=None):
    """A program to its end. check: the exit code it must have."""
    done = subprocess.run([str(w) for w in words], capture_output=True, encoding="utf-8",
                          errors="replace", cwd=cwd,
                          env={**ENVIRONMENT, **(env or {})}, timeout=DEADLINE, input=stdin)
    if check is not None and done.returncode != check:
        raise AssertionError(f"{words} ended with {done.returncode}, not {check}\n"
                             f"{done.stdout}\n{done.stderr}")
    return done


def wait_until(what, condition):
    """The first true value of condition(), polled."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {DEADLINE} s in vain for: {what}")


class Corpus:
    """Token shards of a few C headers, built once for all tests of a program run."""

    folder = None
    VOCAB = 400

    @classmethod
    def prefix(cls):
        if cls.folder is None:
            cls.folder = tempfile.mkdtemp(prefix="ela-e2e-data-")
            text = pathlib.Path(cls.folder) / "text"
            text.mkdir()
            for header in sorted(pathlib.Path("/usr/include/asm-generic").glob("*.h")):
                shutil.copy(header, text)
            run(BIN / "ela", "data", "build", "--input", text, "--tokenizer",
                f"train:{cls.VOCAB}", "--output", f"{cls.folder}/c", "--validation-fraction",
                "0.1", check=0)
        return f"{cls.folder}/c"

    @classmethod
    def remove(cls):
        if cls.folder is not None:
            shutil.rmtree(cls.folder)
            cls.folder = None


def tearDownModule():
    Corpus.remove()


class Coordinator:
    """An ela-coordinator on ports of its own over a state folder."""

    def __init__(self, state, slots=4):
        self.state, self.slots = pathlib.Path(state), slots
        self.process = self.address = None
        self.start()

    def start(self, listen="127.0.0.1:0"):
        log = self.state.with_suffix(".log")
        offset = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [BIN / "ela-coordinator", "--listen", self.address or listen, "--metrics-listen",
                 "127.0.0.1:0", "--state-dir", self.state, "--slots", str(self.slots)],
                stdout=out, stderr=out, env=ENVIRONMENT)

        def listening():
            if self.process.poll() is not None:
                raise AssertionError("the coordinator ended:\n" + log.read_text()[offset:])
            return re.search(r"listening on (\S+), metrics on http://(\S+)/metrics",
                             log.read_text()[offset:])
        found = wait_until("the coordinator listens", listening)
        self.address, self.metrics = found.group(1), found.group(2)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=DEADLINE)

    def ela(self, *words, check=None, stdin=None):
        return run(BIN / "ela", *words, "--address", self.address, check=check, stdin=stdin)

    def job(self, job):
        return json.loads(self.ela("get", job, "-o", "json", check=0).stdout)

    def submit(self, path, *words):
        return self.ela("submit", "-f", path, *words, check=0).stdout.strip()

    def wait_step(self, job, step):
        wait_until(f"step {step}",
                   lambda: int(self.job(job).get("progress", {}).get("step", 0)) >= step)


class TestCase(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ela-e2e-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def coordinator(self, **options):
        coordinator = Coordinator(self.folder / "state", **options)
        self.addCleanup(self.end_jobs, coordinator)
        return coordinator

    def end_jobs(self, coordinator):
        """No job outlives its test, even when the coordinator was killed in it."""
        if coordinator.process.poll() is not None:
            coordinator.start()
        jobs = json.loads(coordinator.ela("list", "-o", "json", check=0).stdout)
        for job in jobs if isinstance(jobs, list) else jobs.get("jobs", []):
            coordinator.ela("cancel", job["id"])
            coordinator.ela("wait", job["id"], "--for", "ended")
        coordinator.stop()

    def job_file(self, name="tiny", steps=30, vocab=Corpus.VOCAB):
        path = self.folder / f"{name}.yaml"
        path.write_text(JOB.format(name=name, steps=steps, vocab=vocab, data=Corpus.prefix()))
        return path

    def train(self, job, run_dir, *words, ranks=2, env=None, check=0):
        """The job under plain mpirun, without a coordinator."""
        return run("mpirun.openmpi", "-n", ranks, "--oversubscribe", "--bind-to", "none",
                   BIN / "ela-trainer", "--job", job, "--run-dir", run_dir, "--metrics-address",
                   "", *words, env=env, check=check)


def has_card():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.startswith(b"GPU")
    except FileNotFoundError:
        return False


def metrics(run_dir):
    """metrics.jsonl as {step: record}, evaluations left out, times dropped."""
    records = {}
    for line in (pathlib.Path(run_dir) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "eval_loss" not in record:
            record.pop("step_seconds")
            records[record["step"]] = record
    return records


def losses(run_dir):
    return [record["loss"] for _, record in sorted(metrics(run_dir).items())]


def rank_pids(run_dir):
    """{rank: pid} of the ela-trainer processes that work in run_dir."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if not words[0].endswith(b"ela-trainer") or str(run_dir).encode() not in words:
            continue
        rank = [v for v in environment if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if rank:
            found[int(rank[0].split(b"=")[1])] = int(entry.name)
    return found


def kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)


def main():
    unittest.main(verbosity=2, argv=sys.argv)
