"""The files of deploy/ as the tests read them: dashboards, their queries, the rules."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def load(path):
    """A dashboard. A key that comes twice is an error: JSON would keep the last one."""
    def unique(pairs):
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), f"{path.name}: a key twice in {names}"
        return dict(pairs)
    return json.loads(path.read_text(), object_pairs_hook=unique)


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board):
    """(where, PromQL, legend) of every target, annotation and variable of a dashboard."""
    for panel in panels(board):
        for target in panel["targets"]:
            where = f"{board['uid']}: {panel['title']}: {target['refId']}"
            yield where, target["expr"], target.get("legendFormat", "")
    for annotation in board["annotations"]["list"]:
        where = f"{board['uid']}: annotation {annotation['name']}"
        yield where, annotation["expr"], annotation["titleFormat"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            where = f"{board['uid']}: variable {variable['name']}"
            query = re.fullmatch(r"query_result\((.*)\)", variable["query"]["query"])
            yield where, query.group(1), ""


def with_values(expression, job, interval="10s"):
    """The query as Grafana sends it."""
    return expression.replace("$job", job).replace("$__rate_interval", interval)


def legend_labels(legend):
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))


def metric_names(expression):
    """The names of the metrics that a query reads; recorded ones have colons."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"', '""', expression)
    return set(re.findall(r"\b(?:ela_[a-z0-9_]+|job(?:_layer)?:[a-z0-9_:]+|up\b|ALERTS\b)", bare))


def base_name(name):
    """The family of a histogram's series."""
    return re.sub(r"_(?:bucket|sum|count)$", "", name)


def recorded_names():
    return set(re.findall(r"- record: (\S+)", RULES.read_text()))


def alert_names():
    return re.findall(r"- alert: (\S+)", RULES.read_text())


def families(text):
    """{name: type} of the metrics in what /metrics answered."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
