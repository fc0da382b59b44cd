"""Kamailio's C structures, as far as this room reads or writes them, for each known version.

Sizes are checked when Kamailio starts; what they hold, as far as that can be seen from outside
(core.py).
"""

from __future__ import annotations

from typing import Any

import cffi

_COMMON = """
typedef struct { char *s; int len; } str;

typedef struct {
    char *name;
    void *function;
    int param_no;
    void *fixup;
    void *free_fixup;
    unsigned int flags;
} cmd_export_t;

typedef struct {
    char *name;
    void *function;
    int param_no;
    void *fixup;
    void *free_fixup;
    unsigned int flags;
    unsigned int fixup_flags;
    void *module_exports;
} ksr_cmd_export_t;

/* as a module has it, with its own cmds; ... */
typedef struct {
    char *name;
    unsigned int dlflags;
    cmd_export_t *cmds;
    void *params;
    void *rpc_methods;
    void *pv_items;
    void *response_f;
    void *init_mod_f;
    void *init_child_f;
    void *destroy_mod_f;
} module_exports_t;

/* ... and as the core keeps it */
typedef struct {
    char *name;
    unsigned int dlflags;
    ksr_cmd_export_t *cmds;
    void *params;
    void *rpc_methods;
    void *pv_items;
    void *response_f;
    void *init_mod_f;
    void *init_child_f;
    void *destroy_mod_f;
} ksr_module_exports_t;

typedef struct sr_module {
    char *path;
    void *handle;
    ksr_module_exports_t exports;
    unsigned int modflags;
    struct sr_module *next;
} sr_module_t;

typedef struct {
    str user, passwd, host, port, params, sip_params, headers;
    unsigned short port_no;
    unsigned short proto;
    char rest[268];
} sip_uri_t;

typedef struct {
    unsigned int af;
    unsigned int len;
    unsigned char addr[16];
} ip_addr_t;

typedef struct {
    int resp_code;
    str content_type;
    str reason;
    str body;
} peer_response_t;

typedef struct dmq_node dmq_node_t;
typedef int (*peer_callback_t)(void *msg, peer_response_t *resp, dmq_node_t *node);
typedef int (*init_callback_t)(void);
typedef int (*resp_callback_t)(void *msg, int code, dmq_node_t *node, void *param);

typedef struct dmq_peer {
    str peer_id;
    str description;
    peer_callback_t callback;
    init_callback_t init_callback;
    struct dmq_peer *next;
} dmq_peer_t;

typedef struct {
    resp_callback_t f;
    void *param;
} dmq_resp_cback_t;

/* the beginning of it */
typedef struct {
    void *req;
    void *rpl;
    void **param;
    int code;
} tmcb_params_t;
typedef void (*transaction_cb)(void *cell, int type, tmcb_params_t *params);

/* the beginning of it */
typedef struct {
    void (*fault)(void *ctx, int code, char *fmt, ...);
    int (*send)(void *ctx);
    int (*add)(void *ctx, char *fmt, ...);
    int (*scan)(void *ctx, char *fmt, ...);
    int (*rpl_printf)(void *ctx, char *fmt, ...);
    int (*struct_add)(void *row, char *fmt, ...);
} rpc_t;
typedef void (*rpc_function_t)(rpc_t *rpc, void *ctx);
typedef struct {
    char *name;
    rpc_function_t function;
    char **doc_str;
    unsigned int flags;
} rpc_export_t;
int rpc_register_array(rpc_export_t *rpc_array);

sr_module_t *get_loaded_modules(void);
void *find_export(char *name, int param_no, int flags);
int parse_headers(void *msg, unsigned long long flags, int next);
int build_sip_msg_from_buf(void *msg, char *buf, int len, unsigned int id);
void free_sip_msg(void *msg);
int parse_uri(char *buf, int len, sip_uri_t *uri);
void **sr_apy_env_get(void);
void *calloc(size_t count, size_t size);
void *dlsym(void *handle, char *name);
"""

_NODE = """
struct dmq_node {
    %s
    str orig_uri;
    sip_uri_t uri;
    ip_addr_t ip_address;
    int status;
    int last_notification;
    dmq_node_t *next;
};
"""

_API = """
typedef struct {
    dmq_peer_t *(*register_dmq_peer)(dmq_peer_t *peer);
    int (*bcast_message)(dmq_peer_t *peer, str *body, dmq_node_t *except,
        dmq_resp_cback_t *resp_cback, int max_forwards, str *content_type);
    int (*send_message)(dmq_peer_t *peer, str *body, dmq_node_t *node,
        dmq_resp_cback_t *resp_cback, int max_forwards, str *content_type);
    dmq_node_t *(*find_dmq_node_uri)(str *uri);
    %s
} dmq_api_t;
typedef int (*bind_dmq_t)(dmq_api_t *api);
"""

_REQUEST = """
typedef struct {
    str *method;
    str *headers;
    str *body;
    str *ssock;
    str *ssockname;
    void *dialog;
    unsigned int cb_flags;
    transaction_cb cb;
    void *cbp;
    str *callid;
    %s
} uac_req_t;
int request(uac_req_t *uac_r, str *ruri, str *to, str *from, str *next_hop);
"""

_SIZES = {
    "str": 16,
    "cmd_export_t": 48,
    "ksr_cmd_export_t": 56,
    "module_exports_t": 80,
    "ksr_module_exports_t": 80,
    "sr_module_t": 112,
    "sip_uri_t": 384,
    "ip_addr_t": 24,
    "dmq_node_t": 448,
    "dmq_peer_t": 56,
    "peer_response_t": 56,
    "dmq_resp_cback_t": 16,
    "rpc_export_t": 32,
}

_OLD = ("int local;", "", "", {"dmq_api_t": 32, "uac_req_t": 80})
_6_0 = ("int local;", "", "unsigned int cseqno;", {"dmq_api_t": 32, "uac_req_t": 88})
_6_1 = (
    "int fail_count; int local;",
    "str (*get_dmq_server_socket)(void);",
    "str *fromtag; unsigned int cseqno, fr_timeout, fr_inv_timeout;",
    {"dmq_api_t": 40, "uac_req_t": 104},
)
#: The branches whose structures are known; these did not change within a branch.
VERSIONS = {"5.6": _OLD, "5.7": _OLD, "5.8": _OLD, "6.0": _6_0, "6.1": _6_1}


def branch(version: str) -> str:
    """``5.6`` of ``5.6.3``."""
    return ".".join(version.split(".")[:2])


def declare(version: str) -> Any:
    """An FFI with the structures of this version, which must be one of VERSIONS."""
    node, api, request, _ = VERSIONS[branch(version)]
    ffi = cffi.FFI()
    ffi.cdef(_COMMON + _NODE % node + _API % api + _REQUEST % request)
    return ffi


def sizes(version: str) -> dict[str, int]:
    return _SIZES | VERSIONS[branch(version)][3]
