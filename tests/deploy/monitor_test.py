"""deploy/monitor: starts and stops the distribution's Prometheus, and says what is wrong."""

import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.request

import monitoring

sys.path.insert(0, str(monitoring.ROOT / "tests" / "e2e"))
import harness  # noqa: E402  (its folder is known only now)

MONITOR = monitoring.DEPLOY / "monitor"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address):
    """What Prometheus says of itself; None when nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"http://{address}/-/ready", timeout=10).read().decode()
    except OSError:
        return None


class Monitor(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ela-monitor-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.listen = f"127.0.0.1:{free_port()}"
        self.words = ["--data-dir", self.folder / "prometheus", "--listen", self.listen]

    def coordinator(self):
        coordinator = harness.Coordinator(self.folder / "state")
        self.addCleanup(coordinator.stop)
        self.words += ["--coordinator", coordinator.metrics]
        return coordinator

    def monitor(self, *words, env=None):
        return harness.run(MONITOR, *words, env=env, cwd=self.folder)

    def start(self):
        done = self.monitor(*self.words, "--background")
        if done.returncode == 0:
            self.addCleanup(self.monitor, *self.words, "--stop")
        return done

    def assertFails(self, done, code, *parts):
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for part in ("deploy/monitor: ",) + parts:
            self.assertIn(part, done.stderr)

    def test_in_the_background_it_answers_until_it_is_stopped(self):
        self.coordinator()
        done = self.start()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"http://{self.listen}", done.stdout)
        self.assertIn("Ready", answers(self.listen))
        self.assertFails(self.start(), 1, "runs on", "--stop")
        self.assertEqual(self.monitor(*self.words, "--stop").returncode, 0)
        self.assertIsNone(answers(self.listen))
        self.assertFails(self.monitor(*self.words, "--stop"), 1, "no Prometheus runs on")

    def test_in_the_foreground_it_ends_with_its_prometheus(self):
        self.coordinator()
        process = subprocess.Popen([str(word) for word in [MONITOR, *self.words]], text=True,
                                   stdout=subprocess.PIPE, cwd=self.folder)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        self.assertIn(self.listen, process.stdout.readline())
        self.assertIn("Ready", answers(self.listen))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=harness.DEADLINE), 143)
        self.assertIsNone(answers(self.listen))

    def test_without_options_it_finds_the_coordinator_of_quickstart(self):
        (self.folder / ".ela").mkdir()
        coordinator = harness.Coordinator(self.folder / ".ela" / "state")
        self.addCleanup(coordinator.stop)
        self.assertIn(coordinator.metrics, self.start().stdout)

    def test_without_a_coordinator_nothing_starts(self):
        self.words += ["--coordinator", f"127.0.0.1:{free_port()}"]
        self.assertFails(self.start(), 4, "no ela-coordinator answers", "--coordinator")
        self.assertFalse((self.folder / "prometheus").exists())

    def test_a_port_in_use_is_named(self):
        self.coordinator()
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", int(self.listen.split(":")[1])))
            holder.listen()
            self.assertFails(self.start(), 1, f"{self.listen} is in use", "--listen")

    def test_a_missing_prometheus_is_named(self):
        tools = self.folder / "tools"
        tools.mkdir()
        for name in ("bash", "cat", "curl", "dirname", "env", "grep", "tr"):
            (tools / name).symlink_to(shutil.which(name))
        done = self.monitor(*self.words, env={"PATH": str(tools)})
        self.assertFails(done, 1, "prometheus is not installed", "deploy/install-deps")

    def test_bad_options_are_refused(self):
        for words, part in [(["--lisen", "x"], "unknown option --lisen"),
                            (["--listen"], "--listen needs a value"),
                            (["--listen", "9090"], "not HOST:PORT"),
                            (["--listen", "0.0.0.0:9090"], "no authentication"),
                            (["--coordinator", "here|there:1"], "not HOST:PORT"),
                            (["--scrape-interval", "often"], "not a time")]:
            self.assertFails(self.monitor(*words), 2, part)


if __name__ == "__main__":
    unittest.main(verbosity=2)
