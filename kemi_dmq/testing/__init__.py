"""For tests without Kamailio: a KSR module that behaves like the real one, and whole buses in
virtual time (docs/testing.md).

    from kemi_dmq.testing.fake_kamailio import FakeKamailio, Request
    from kemi_dmq.testing.fake_ksr import FakeKSR
    from kemi_dmq.testing.simulator import Simulator

``python -m kemi_dmq.testing`` runs simulated buses with faults.
"""
