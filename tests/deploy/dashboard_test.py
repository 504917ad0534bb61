"""The dashboards as files: what Grafana would refuse, draw over itself or leave empty."""

import re
import unittest

import monitoring
from monitoring import DASHBOARDS, DEPLOY, load, panels

# The unit ids of Grafana 11 that may be used here.
UNITS = {"none", "short", "locale", "sci", "percentunit", "s", "dthms", "bytes", "Bps", "flops",
         "cps", "reqps", "dateTimeFromNow"}
TYPES = {"row", "timeseries", "stat", "gauge", "table"}
PALETTE = {"palette-classic", "thresholds", "continuous-BlYlRd"}


class Dashboards(unittest.TestCase):
    def each(self):
        self.assertGreaterEqual(len(DASHBOARDS), 2)
        return [load(path) for path in DASHBOARDS]

    def test_ids_of_dashboards_and_panels_are_unique(self):
        uids = []
        for board in self.each():
            uids.append(board["uid"])
            ids = [panel["id"] for panel in board["panels"]]
            self.assertEqual(len(ids), len(set(ids)))
        self.assertEqual(len(uids), len(set(uids)))

    def test_panels_fill_a_grid_of_24_columns_without_overlap(self):
        for board in self.each():
            taken = {}
            for panel in board["panels"]:
                at = panel["gridPos"]
                self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
                for x in range(at["x"], at["x"] + at["w"]):
                    for y in range(at["y"], at["y"] + at["h"]):
                        self.assertNotIn((x, y), taken, panel["title"])
                        taken[x, y] = panel["title"]
            height = 1 + max(y for _, y in taken)
            self.assertEqual(len(taken), 24 * height, "the grid has holes")

    def test_every_query_reads_the_data_source_that_the_user_chose(self):
        for board in self.each():
            variables = {v["name"]: v for v in board["templating"]["list"]}
            self.assertEqual(variables["datasource"]["type"], "datasource")
            self.assertEqual(variables["datasource"]["query"], "prometheus")
            chosen = {"type": "prometheus", "uid": "${datasource}"}
            users = panels(board) + board["annotations"]["list"]
            users += [v for v in variables.values() if v["type"] == "query"]
            for user in users:
                self.assertEqual(user["datasource"], chosen, user.get("title"))

    def test_every_panel_says_what_it_shows_in_a_known_unit(self):
        for board in self.each():
            for panel in panels(board):
                self.assertIn(panel["type"], TYPES)
                self.assertRegex(panel["description"], r"\.$", panel["title"])
                defaults = panel["fieldConfig"]["defaults"]
                units = {defaults["unit"]} if "unit" in defaults else set()
                self.assertTrue(units or panel["type"] == "table", panel["title"])
                for override in panel["fieldConfig"]["overrides"]:
                    units |= {p["value"] for p in override["properties"] if p["id"] == "unit"}
                self.assertLessEqual(units, UNITS, panel["title"])
                self.assertIn(defaults.get("color", {"mode": "thresholds"})["mode"], PALETTE)

    def test_a_panel_of_several_series_tells_them_apart(self):
        for board in self.each():
            for panel in panels(board):
                references = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(references), len(set(references)), panel["title"])
                if panel["type"] != "timeseries":
                    continue
                legends = [target.get("legendFormat") for target in panel["targets"]]
                self.assertTrue(all(legends), panel["title"])
                self.assertEqual(len(legends), len(set(legends)), panel["title"])

    def test_a_legend_names_labels_that_the_query_keeps(self):
        for board in self.each():
            for where, expression, legend in monitoring.queries(board):
                kept = set(re.findall(r"\w+", " ".join(
                    re.findall(r"\bby \(([^)]*)\)", expression))))
                if kept or expression.startswith(("max(", "sum(", "histogram_quantile(")):
                    self.assertLessEqual(monitoring.legend_labels(legend), kept, where)

    def test_variables_are_declared(self):
        for board in self.each():
            declared = {v["name"] for v in board["templating"]["list"]} | {"__rate_interval"}
            for where, expression, _ in monitoring.queries(board):
                used = set(re.findall(r"\$\{?(\w+)", expression))
                self.assertLessEqual(used, declared, where)

    def test_overrides_name_series_that_exist(self):
        for board in self.each():
            for panel in panels(board):
                if panel["type"] != "timeseries":
                    continue
                legends = {target["legendFormat"] for target in panel["targets"]}
                if any(monitoring.legend_labels(legend) for legend in legends):
                    continue  # the names come from label values
                for override in panel["fieldConfig"]["overrides"]:
                    self.assertIn(override["matcher"]["options"], legends, panel["title"])

    def test_links_lead_to_dashboards_that_exist(self):
        uids = {load(path)["uid"] for path in DASHBOARDS}
        for path in DASHBOARDS:
            self.assertLessEqual(set(re.findall(r'"/d/([\w-]+)', path.read_text())), uids)

    def test_compose_mounts_what_is_there(self):
        compose = (DEPLOY / "compose.yaml").read_text()
        mounted = re.findall(r"- \./([\w/]+):", compose)
        self.assertEqual(len(mounted), 3)
        for folder in mounted:
            self.assertTrue((DEPLOY / folder).is_dir(), folder)
        for image in re.findall(r"image: (\S+)", compose):
            self.assertRegex(image, r":v?\d+\.\d+\.\d+$")
        home = re.search(r"HOME_DASHBOARD_PATH: /etc/grafana/dashboards/(\S+)", compose).group(1)
        self.assertIn(home, [path.name for path in DASHBOARDS])


if __name__ == "__main__":
    unittest.main(verbosity=2)
