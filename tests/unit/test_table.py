"""The node list in an htable."""

from __future__ import annotations

from kemi_dmq.node import Status
from kemi_dmq.table import NodeTable

from .conftest import LOCAL, Bed, node


def test_the_table_follows_the_list_and_only_changes_are_written(bed: Bed) -> None:
    rows: dict[str, str] = {}
    bed.kamailio.htables["dmq_nodes"] = rows
    bed.kamailio.defines["DMQ_NODES_TABLE"] = '"dmq_nodes"'
    bed.start()
    table = bed.runtime._table
    assert table is not None
    local, away = node(LOCAL, local=True), "sip:10.0.0.3:5060;transport=tcp"
    assert table.show([local, node("sip:10.0.0.2:5060", python=False), node(away)])
    assert rows == {
        LOCAL: "status=active;proto=udp;resolved_ip=10.0.0.1;local=1;kemi_dmq=1",
        "sip:10.0.0.2:5060": "status=active;proto=udp;resolved_ip=10.0.0.2;local=0;kemi_dmq=0",
        away: "status=active;proto=tcp;resolved_ip=10.0.0.3;local=0;kemi_dmq=1",
    }
    del rows[LOCAL]  # to see what is written
    assert table.show([local, node(away, Status.DISABLED)])
    assert list(rows) == [away] and rows[away].startswith("status=disabled;")


def test_what_kamailio_refuses_is_tried_again(bed: Bed) -> None:
    bed.start()
    table = NodeTable(bed.runtime.host, "dmq_nodes")
    assert not table.show([node(LOCAL, local=True)])
    rows = bed.kamailio.htables["dmq_nodes"] = {}
    assert table.show([node(LOCAL, local=True)]) and list(rows) == [LOCAL]
    bed.kamailio.htables.clear()
    assert not table.show([])


def test_without_the_define_there_is_no_table(bed: Bed) -> None:
    bed.start()
    assert bed.runtime._table is None
