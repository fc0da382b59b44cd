"""kemi_dmq.cfg in a kamailio.cfg that has its own modules and parameters."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.kamailio import BOTH_ROUTINGS, ROOT, Bed, wait_for, whole
from tests.support.sip import SipSocket, request

A, B = "127.0.0.2", "127.0.0.3"


def test_a_uac_that_was_loaded_before_keeps_its_restore_mode(bed: Bed) -> None:
    """uac then writes the old From into Record-Route."""
    before = """
loadmodule "tm.so"
loadmodule "rr.so"
loadmodule "uac.so"
modparam("uac", "restore_mode", "auto")
"""
    routes = """
    if (is_method("MESSAGE")) {
        record_route();
        uac_replace_from("sip:other@example.com");
        $du = $hdr(X-To);
        forward();
        exit;
    }
"""
    node = bed.python(A, before=before, routes=routes, native=True)
    node.start()
    with SipSocket() as sip:
        to = {"X-To": f"sip:{sip.name}"}
        sip.send(request(A, method="MESSAGE", via=sip.name, headers=dict(to)), A)
        forwarded = sip.receive()
    assert forwarded is not None and b"vsf=" in forwarded


@BOTH_ROUTINGS
def test_many_print_buffers_of_ones_own_fit_into_a_process(bed: Bed) -> None:
    a, b = bed.python(A, before="pv_buffer_slots=64"), bed.python(B, f"sip:{A}:5060")
    a.start()
    b.start()
    wait_for(whole(a, b))


@BOTH_ROUTINGS
def test_a_value_that_stands_after_the_include_counts(bed: Bed) -> None:
    cfg_rpc = 'loadmodule "cfg_rpc.so"'
    node = bed.python(A, before=cfg_rpc, after="tcp_rd_buf_size=1048576")
    node.cfg.write_text(node.cfg.read_text().replace("disable_tcp=yes", ""))
    node.start()
    assert node.kamcmd("cfg.get", "tcp", "rd_buf_size").strip() == "1048576"


@pytest.mark.parametrize("version", ["5_7_0", "5_7_1", "5_7_2"])
def test_no_parameter_is_set_that_the_first_5_7_did_not_have(tmp_path: Path, version: str) -> None:
    """5.6 has neither the parameter nor this define, by which 5.7 is known."""
    cfg = tmp_path / "dmq.cfg"
    cfg.write_text(
        f'#!KAMAILIO\nlisten=udp:{A}:5060\ninclude_file "{ROOT}/kamailio-cfg/kemi_dmq.cfg"\n'
        "request_route { exit; }\n"
    )

    def passes(*defines: str) -> bool:
        command = ["kamailio", "-c", "-f", str(cfg), *(f"-A{define}" for define in defines)]
        done = subprocess.run(command, capture_output=True, text=True)
        return "parse error" not in done.stdout + done.stderr and done.returncode == 0

    if passes("OS_NAME"):
        pytest.skip("this Kamailio has msg_recv_max_size")
    assert passes("OS_NAME", f"KAMAILIO_{version}")
    assert passes()
