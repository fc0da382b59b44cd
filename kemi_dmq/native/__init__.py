"""What KEMI cannot do, through cffi: DMQ's C API for other modules of this Kamailio, and dmq.so's
RPC commands.

htable, dialog, dmq_usrloc, presence and (from 6.1) rtpengine look for a function ``bind_dmq``
among the exports of all loaded modules, and get from it a table of functions (dmq_api_t).  Here
both are made, so that these modules, unmodified, use this bus.  A wrong layout of a C structure
would be a crash and not an error: so all is checked first (core.py), and nothing is bound, and
Kamailio does not start, where something is not as it must be.

This room needs cffi and is imported only with the setting bind_c_modules.  Everything C holds on
to lives in modules that are imported, which a reload leaves alone.
"""
