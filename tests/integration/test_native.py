"""C modules on kemi_dmq without dmq.so: they replicate with C nodes and with each other."""

from __future__ import annotations

from tests.support.c_modules import BIND, HTABLE, put, remove, value
from tests.support.kamailio import Bed, wait_for, whole

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"


def test_htable_replicates_both_ways_with_a_c_node(bed: Bed) -> None:
    a = bed.python(A, defines=BIND, after=HTABLE)
    c = bed.c(C, NOTIFY, before=HTABLE)
    a.start()
    c.start()
    wait_for(whole(a, c), 3)
    put(a, "from-a", "one")
    put(c, "from-c", "two")
    wait_for(lambda: value(c, "from-a") == "one")
    wait_for(lambda: value(a, "from-c") == "two")
    remove(a, "from-c")
    remove(c, "from-a")
    wait_for(lambda: value(c, "from-c") is None)
    wait_for(lambda: value(a, "from-a") is None)
    counters = a.counters()
    assert counters["native_errors"] == counters["callback_errors"] == 0
    assert a.stop() < 2
