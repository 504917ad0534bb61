"""prometheus.yml and the rules, by promtool."""

import re
import subprocess
import unittest

from monitoring import DEPLOY, RULES, alert_names, metric_names

TESTS = RULES.with_name("rules_test.yml")


def promtool(*words):
    return subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=240,
                          cwd=RULES.parent)


class Rules(unittest.TestCase):
    def assertPasses(self, done):
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_config_and_rules_are_valid(self):
        self.assertPasses(promtool("check", "config", "prometheus.yml"))
        self.assertPasses(promtool("check", "rules", "rules.yml"))

    def test_alerts_fire_when_they_should_and_only_then(self):
        self.assertPasses(promtool("test", "rules", TESTS.name))

    def test_every_alert_has_an_example(self):
        self.assertGreater(len(alert_names()), 8)
        text = TESTS.read_text()
        for name in alert_names():
            self.assertRegex(text, rf"\b{name}\b", f"no example of {name} in {TESTS.name}")

    def test_every_alert_is_in_the_readme(self):
        listed = re.findall(r"^\| `(Ela\w+)` \|", (DEPLOY / "README.md").read_text(), re.M)
        self.assertEqual(listed, alert_names())

    def test_rules_read_ela_metrics(self):
        for expression in re.findall(r"expr: (.*)", RULES.read_text()):
            if expression != "|":
                self.assertTrue(metric_names(expression), expression)


if __name__ == "__main__":
    unittest.main(verbosity=2)
