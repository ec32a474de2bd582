"""A pytest plugin that says where the seconds go: `python -m pytest -p tools.suite_costs --costs=FILE ...`.

It writes a row for each test to a CSV: wall seconds, CPU seconds of the test's own process and of those that
it started, and how many it started. At the end it prints the same for each file. Collection is no test's.
"""

import collections
import csv
import resource
import subprocess
import time

import pytest

COLUMNS = ("file", "test", "wall", "own", "children", "processes")


def pytest_addoption(parser):
    parser.addoption(
        "--costs", default="costs.csv", help="the CSV that the costs of the tests are written to"
    )


def pytest_configure(config):
    config.pluginmanager.register(Costs(config), "suite-costs")


def now():
    """Wall seconds, and CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), *(usage.ru_utime + usage.ru_stime for usage in usages)


class Costs:
    """Measures each test where it runs; the workers of pytest-xdist hand their rows to the main process."""

    def __init__(self, config):
        self.is_worker = hasattr(config, "workerinput")
        self.path = config.getoption("costs")
        self.rows = []
        self.processes = 0

    def pytest_sessionstart(self):
        start = subprocess.Popen.__init__

        def counted(popen, *args, **kwargs):
            self.processes += 1
            start(popen, *args, **kwargs)

        subprocess.Popen.__init__ = counted

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        before, processes = now(), self.processes
        yield
        file, _, test = item.nodeid.partition("::")
        used = (after - start for after, start in zip(now(), before, strict=True))
        self.rows.append((file, test, *used, self.processes - processes))

    def pytest_sessionfinish(self, session):
        if self.is_worker:
            session.config.workeroutput["costs"] = self.rows

    def pytest_testnodedown(self, node):
        self.rows.extend(getattr(node, "workeroutput", {}).get("costs", ()))

    def pytest_terminal_summary(self, terminalreporter):
        if self.is_worker:
            return
        rows = sorted(self.rows, key=lambda row: -row[3] - row[4])
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((*row[:2], *(f"{value:.3f}" for value in row[2:5]), row[5]) for row in rows)
        files = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0])
        for file, _, *costs in rows:
            files[file] = [total + value for total, value in zip(files[file], (1, *costs), strict=True)]
        files["all"] = [sum(column) for column in zip(*files.values(), strict=True)]
        terminalreporter.section("costs in seconds")
        line = "{:48} {:>5} {:>7} {:>8} {:>8} {:>9}".format
        terminalreporter.write_line(line("file", "tests", "wall", "own CPU", "children", "processes"))
        for file, (tests, *seconds, processes) in sorted(files.items(), key=lambda item: -sum(item[1][2:4])):
            seconds = [f"{value:.1f}" for value in seconds]
            terminalreporter.write_line(line(file.removeprefix("tests/"), tests, *seconds, processes))
