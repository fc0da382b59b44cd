"""What app_python3 loads for kemi_dmq_native.cfg.  Your own Python is in DMQ_PEERS_FILE."""

import sys

import KSR

try:
    from kemi_dmq.routing import load
except ModuleNotFoundError as error:
    if error.name not in ("kemi_dmq", "kemi_dmq.routing"):  # a folder that nobody may read is empty
        raise
    KSR.crit(
        f"kemi_dmq: the package is in no folder that Kamailio's user can read of {sys.path}; "
        "put it into one of them, or its folder into the environment variable PYTHONPATH\n"
    )
    raise SystemExit(1) from None

mod_init = load(globals())
