"""What runs a bus: Kamailio (kamailio.py), the only place that imports KSR."""
