"""A real job of two ranks under a real coordinator, scraped by the real Prometheus: every metric of
the design is there, every query of every dashboard returns data that carries what its legend names.
"""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.parse
import urllib.request

import monitoring

sys.path.insert(0, str(monitoring.ROOT / "tests" / "e2e"))
import harness  # noqa: E402  (its folder is known only now)
from harness import wait_until  # noqa: E402

# architecture.md, Metrics: type and the labels that every series carries, by who exports it.
RANK = {"job", "rank", "node"}
TRAINER = {
    "ela_train_loss": ("gauge", RANK | {"leaks_future"}),
    "ela_train_aux_loss": ("gauge", RANK),
    "ela_eval_loss": ("gauge", RANK | {"leaks_future"}),
    "ela_train_grad_norm": ("gauge", RANK),
    "ela_train_learning_rate": ("gauge", RANK),
    "ela_train_step": ("gauge", RANK),
    "ela_train_tokens_total": ("counter", RANK),
    "ela_train_step_duration_seconds": ("histogram", RANK),
    "ela_train_phase_duration_seconds": ("histogram", RANK | {"phase"}),
    "ela_train_model_flops_total": ("counter", RANK),
    "ela_train_mfu_ratio": ("gauge", RANK),
    "ela_train_skipped_steps_total": ("counter", RANK),
    "ela_train_memory_planned_bytes": ("gauge", RANK | {"kind"}),
    "ela_train_memory_peak_bytes": ("gauge", RANK | {"kind"}),
    "ela_process_resident_memory_bytes": ("gauge", RANK),
    "ela_attention_slow_path_chunks_total": ("counter", RANK | {"layer"}),
    "ela_moe_expert_load_ratio": ("gauge", RANK | {"layer", "expert"}),
    "ela_comm_bytes_total": ("counter", RANK | {"op", "axis"}),
    "ela_comm_duration_seconds": ("histogram", RANK | {"op", "axis"}),
    "ela_checkpoint_duration_seconds": ("histogram", RANK | {"op"}),
    "ela_checkpoint_bytes": ("gauge", RANK),
    "ela_checkpoint_failures_total": ("counter", RANK),
    "ela_checkpoint_last_success_timestamp_seconds": ("gauge", RANK),
    "ela_build_info": ("gauge", RANK | {"version", "program"}),
}
COORDINATOR = {
    "ela_job_state": ("gauge", {"job", "name", "state"}),
    "ela_job_restarts_total": ("counter", {"job", "reason"}),
    "ela_job_attempts": ("gauge", {"job"}),
    "ela_job_goodput_ratio": ("gauge", {"job"}),
    "ela_job_step": ("gauge", {"job"}),
    "ela_job_target_steps": ("gauge", {"job"}),
    "ela_job_ranks": ("gauge", {"job"}),
    "ela_job_eta_seconds": ("gauge", {"job"}),
    "ela_job_contact_lost": ("gauge", {"job"}),
    "ela_job_created_timestamp_seconds": ("gauge", {"job"}),
    "ela_job_last_checkpoint_step": ("gauge", {"job"}),
    "ela_job_last_checkpoint_timestamp_seconds": ("gauge", {"job"}),
    "ela_job_checkpoint_interval_steps": ("gauge", {"job"}),
    "ela_rank_last_heartbeat_timestamp_seconds": ("gauge", RANK),
    "ela_rpc_requests_total": ("counter", {"method", "code"}),
    "ela_rpc_duration_seconds": ("histogram", {"method"}),
    "ela_coordinator_slots": ("gauge", set()),
    "ela_coordinator_used_slots": ("gauge", set()),
    "ela_build_info": ("gauge", {"version", "commit", "program"}),
}
# Only of a job that has ended, which no panel asks for.
OTHERS = {"ela_job_ended_timestamp_seconds"}

# What a healthy run leaves empty: (dashboard, panel, target). All else must have data.
MAY_BE_EMPTY = {
    "ela-run: Loss: C", "ela-run: Loss: D",  # a model that sees its targets
    "ela-run: annotation Restarts", "ela-run: annotation Alerts", "ela-fleet: annotation Alerts",
}


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(url, timeout=30).read().decode()
    except urllib.error.HTTPError as error:  # its text says what is wrong with a query
        raise AssertionError(f"{url}: {error}: {error.read().decode()}") from error


def is_number(value):
    return value not in ("NaN", "+Inf", "-Inf")


def series_of(text):
    """(metric, labels) of what /metrics answered, the parts of a histogram under its name."""
    types = monitoring.families(text)
    for line in text.splitlines():
        match = re.match(r"(\w+)(?:\{(.*)\})? ", line)
        if match is None or line.startswith("#"):
            continue
        name = match.group(1)
        if name not in types:
            name = monitoring.base_name(name)
        labels = dict(re.findall(r'(\w+)="((?:\\.|[^"\\])*)"', match.group(2) or ""))
        labels.pop("le", None)
        yield name, labels


class LiveRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="ela-live-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.addClassCleanup(harness.Corpus.remove)
        job_file = cls.folder / "live.yaml"
        job_file.write_text(harness.JOB.format(name="live", steps=1_000_000, data=harness.Corpus
                                               .prefix(), vocab=harness.Corpus.VOCAB))
        cls.coordinator = harness.Coordinator(cls.folder / "state", slots=2)
        cls.addClassCleanup(cls.coordinator.stop)
        cls.job = cls.coordinator.submit(job_file)
        cls.addClassCleanup(cls.end_job)
        cls.prometheus = cls.start_prometheus()

    @classmethod
    def end_job(cls):
        cls.coordinator.ela("cancel", cls.job)
        cls.coordinator.ela("wait", cls.job, "--for", "ended")

    @classmethod
    def start_prometheus(cls):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            listen = f"127.0.0.1:{probe.getsockname()[1]}"
        words = [monitoring.DEPLOY / "monitor", "--data-dir", cls.folder / "prometheus"]
        harness.run(*words, "--listen", listen, "--coordinator", cls.coordinator.metrics,
                    "--scrape-interval", "1s", "--background", check=0)
        cls.addClassCleanup(harness.run, *words, "--stop")
        return listen

    def api(self, path, **parameters):
        url = f"http://{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        answer = json.loads(get(url))
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def query(self, expression):
        """[(labels, value)], values that are no numbers left out."""
        result = self.api("query", query=expression)["result"]
        return [(one["metric"], one["value"][1]) for one in result if is_number(one["value"][1])]

    def await_data(self, what, expression):
        return wait_until(f"data of {what}: {expression}", lambda: self.query(expression))

    def await_checkpoint_and_evaluation(self):
        """From here on everything that a healthy run exports is there."""
        self.await_data("evaluation", "ela_eval_loss")
        self.await_data("commit", "ela_checkpoint_last_success_timestamp_seconds")
        self.await_data("all ranks", "count(ela_checkpoint_bytes > 0) == 2")

    def scrapes(self):
        """What the coordinator and each rank answer, by who they are."""
        self.await_checkpoint_and_evaluation()
        pages = {"coordinator": get(f"http://{self.coordinator.metrics}/metrics")}
        for group in json.loads(get(f"http://{self.coordinator.metrics}/sd")):
            rank = group["labels"]["rank"]
            pages[f"rank {rank}"] = get(f"http://{group['targets'][0]}/metrics")
        self.assertEqual(sorted(pages), ["coordinator", "rank 0", "rank 1"])
        return pages

    def test_promtool_finds_nothing_to_say_about_what_is_exported(self):
        for who, text in self.scrapes().items():
            done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                                  capture_output=True, timeout=60)
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""), who)

    def test_every_metric_of_the_design_is_exported_with_its_labels(self):
        pages = self.scrapes()
        for who, design in [("coordinator", COORDINATOR), ("rank 0", TRAINER)]:
            types = monitoring.families(pages[who])
            self.assertEqual(types, {name: kind for name, (kind, _) in design.items()}, who)
            found = {}
            for name, labels in series_of(pages[who]):
                if name not in types:
                    continue
                self.assertEqual(set(labels), design[name][1], f"{who}: {name}")
                found.setdefault(name, []).append(labels)
            self.assertEqual(set(found), set(design), f"{who}: families without a series")

    def test_every_query_of_the_dashboards_returns_what_its_legend_names(self):
        self.await_checkpoint_and_evaluation()
        known = set(TRAINER) | set(COORDINATOR) | OTHERS | {"up", "ALERTS"}
        known |= monitoring.recorded_names()
        asked = 0
        for path in monitoring.DASHBOARDS:
            for where, expression, legend in monitoring.queries(monitoring.load(path)):
                names = monitoring.metric_names(expression)
                unknown = names - known - {n for n in names if monitoring.base_name(n) in known}
                self.assertEqual(unknown, set(), where)
                expression = monitoring.with_values(expression, self.job)
                if where in MAY_BE_EMPTY:
                    found = self.query(expression)
                else:
                    found = self.await_data(where, expression)
                for labels, _ in found:
                    self.assertLessEqual(monitoring.legend_labels(legend), set(labels), where)
                asked += 1
        self.assertGreater(asked, 60)

    def test_nothing_else_is_scraped(self):
        self.await_checkpoint_and_evaluation()
        names = self.api("label/__name__/values")
        of_prometheus = r"ela_|job(_layer)?:ela_|scrape_|ALERTS|up$"
        self.assertEqual([name for name in names if not re.match(of_prometheus, name)], [])

    def test_rules_evaluate_and_a_healthy_run_fires_none(self):
        self.await_checkpoint_and_evaluation()
        for name in monitoring.recorded_names():
            self.await_data(name, name)
        rules = [rule for group in self.api("rules")["groups"] for rule in group["rules"]]
        self.assertEqual({rule["health"] for rule in rules}, {"ok"}, rules)
        self.assertLessEqual(set(monitoring.alert_names()), {rule["name"] for rule in rules})
        self.assertEqual(self.query('ALERTS{alertstate="firing"}'), [])

    def test_the_job_variable_offers_the_job_by_name(self):
        self.await_checkpoint_and_evaluation()
        board = monitoring.load(monitoring.DEPLOY / "grafana" / "dashboards" / "run.json")
        variable = next(v for v in board["templating"]["list"] if v["name"] == "job")
        query = next(q for where, q, _ in monitoring.queries(board) if "variable job" in where)
        (labels, value), = self.await_data("jobs", query)
        # Grafana matches the regular expression against the series as text.
        shown = "{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels.items())) + "} " + value
        pattern = variable["regex"].strip("/").replace("(?<", "(?P<")
        match = re.search(pattern, shown)
        self.assertEqual(match.groupdict(), {"value": self.job, "text": f"live {self.job}"})

    def test_communication_is_counted_on_every_axis_of_the_mesh(self):
        self.await_checkpoint_and_evaluation()
        axes = {labels["axis"] for labels, value in
                self.query("sum by (axis) (ela_comm_bytes_total) > 0")}
        self.assertLessEqual({"sequence", "expert", "world"}, axes)

    def test_a_killed_rank_is_a_restart_that_loads_a_checkpoint(self):
        self.await_checkpoint_and_evaluation()
        selector = f'ela_job_restarts_total{{job="{self.job}",reason="infra"}}'
        (_, before), = self.await_data("restarts", selector)
        run_dir = self.coordinator.job(self.job)["run_dir"]
        harness.kill(harness.rank_pids(run_dir)[1])
        self.await_data("restart", f"{selector} == {int(before) + 1}")
        self.await_data("load", 'ela_checkpoint_duration_seconds_count{op="load"} > 0')
        board = monitoring.load(monitoring.DEPLOY / "grafana" / "dashboards" / "run.json")
        queries = {where: query for where, query, _ in monitoring.queries(board)}
        self.await_data("annotation", monitoring.with_values(
            queries["ela-run: annotation Restarts"], self.job))


if __name__ == "__main__":
    unittest.main(verbosity=2)
