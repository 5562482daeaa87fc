"""The benchmark's pgbench scripts follow order_svc's statements; a parameter that nobody thought of shows
here.
"""

import re

from benchmarks import pgbench
from benchmarks.report import document
from benchmarks.sample import Sample
from chassis import pg


def test_every_parameter_of_the_statements_has_a_value_and_no_value_is_left_over():
    queries = pg.queries("order_svc")
    for statement, values in (
        (queries.create_order, pgbench._CREATE),
        (queries.apply_change, pgbench._SETTLE),
    ):
        assert {int(number) for number in re.findall(r"\$(\d+)", statement)} == set(values)
    for script in pgbench.scripts().values():
        assert not re.search(r"\$\d|--", script)


def test_ratios_compare_with_pgbench_at_the_same_number_of_clients():
    samples = [
        Sample(pgbench.CREATE_AND_SETTLE, 1, 200.0, 2.0, 3.0, 4.0),
        Sample("gateway", 1, 50.0, 10.0, 20.0, 30.0, failed=1, cpu_ms=33.5, others=0.4),
        Sample(pgbench.CREATE_AND_SETTLE, 4, 400.0, 4.0, 5.0, 6.0),
        Sample("gateway", 4, 100.0, 40.0, 50.0, 60.0),
    ]
    text = document({"cores": "2"}, samples, 8)
    assert "| 1 | gateway | 50 | 10.0 | 20.0 | 30.0 | 1 | 33.5 | 0.250 | 5.0 | 40% |" in text
    assert "| 4 | gateway | 100 | 40.0 | 50.0 | 60.0 | 0 | 0.0 | 0.250 | 10.0 | 0% |" in text
