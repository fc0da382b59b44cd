"""What app_python3 loads for kemi_dmq_native.cfg.  Your own Python is in DMQ_PEERS_FILE."""

from kemi_dmq.routing import load

mod_init = load(globals())
