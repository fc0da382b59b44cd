"""Appended to node_script.py: a peer as a C module would register it, made of nothing but C
structures and function pointers, and commands that call dmq_api_t as a C module does.

It finds bind_dmq as a C module does; peer "cmod" answers as its message says.
"""

import os
import time

import kemi_dmq.native.binding
from kemi_dmq.native import layout

ffi = layout.declare(KSR.pv.get("$version(num)"))
ffi.cdef("char *get_body(void *msg);")
core = ffi.dlopen(None)
c_api = ffi.new("dmq_api_t *")
assert ffi.cast("bind_dmq_t", core.find_export(b"bind_dmq", 0, 0))(c_api) == 0
kept = []


def c_string(raw):
    kept.append(ffi.new("char[]", raw))
    return ffi.new("str *", {"s": kept[-1], "len": len(raw)})


def text(string):
    return bytes(ffi.buffer(string.s, string.len)).decode() if string.s else ""


def node_of(pointer):
    if not pointer:
        return None
    return [
        text(pointer.orig_uri),
        text(pointer.uri.host),
        pointer.uri.port_no,
        bytes(pointer.ip_address.addr)[: pointer.ip_address.len].hex(),
        pointer.status,
        pointer.local,
    ]


@ffi.callback("peer_callback_t")
def c_peer(msg, response, node):
    body = ffi.string(core.get_body(msg)).decode(errors="replace")
    note(
        "c_peer",
        node=node_of(node),
        body=body if len(body) < 100 else body[:20],
        size=len(body),
        received_here=msg == core_message(),
    )
    kind = c_string(b"text/plain")
    if body.startswith("hold "):
        while not os.path.exists(body.split()[1]):
            time.sleep(0.01)
    if body.startswith("send it back"):
        c_api.send_message(c_registered, c_string(b"back"), node, ffi.NULL, 1, kind)
    if body == "ask back":
        reply_callback.param = ffi.NULL
        c_api.send_message(c_registered, c_string(b"asked"), node, reply_callback, 1, kind)
    if body.startswith("fail"):
        return -1
    parts = body.split(" ", 3) if body.startswith("answer ") else ["", "200", "OK"]
    response.resp_code = int(parts[1])
    response.reason = c_string(parts[2].encode())[0]
    if len(parts) > 3:
        response.body = c_string(parts[3].encode())[0]
        response.content_type = c_string(b"text/x-c")[0]
    return 0


def core_message():
    for module in loaded():
        if ffi.string(module.exports.name) == b"app_python3":
            return ffi.dlopen(module.handle).sr_apy_env_get()[0]


def loaded():
    module = core.get_loaded_modules()
    while module:
        yield module
        module = module.next


@ffi.callback("init_callback_t")
def c_init():
    note("c_init")
    return 0


@ffi.callback("resp_callback_t")
def c_reply(msg, code, node, param):
    pointer = int(ffi.cast("intptr_t", msg))
    note(
        "c_reply",
        message="none" if pointer == -1 else "null" if pointer == 0 else "real",
        code=code,
        node=node_of(node),
        param=int(ffi.cast("intptr_t", param)),
    )
    return 0


given = ffi.new("dmq_peer_t *")
given.peer_id = c_string(b"cmod")[0]
given.description = c_string(b"a C module of the tests")[0]
given.callback = c_peer
given.init_callback = c_init
c_registered = c_api.register_dmq_peer(given)
assert c_registered and c_registered != given
assert text(c_registered.peer_id) == "cmod"
c_again = c_api.register_dmq_peer(given)
reply_callback = ffi.new("dmq_resp_cback_t *", {"f": c_reply})


class WithC(Kamailio):
    def do_again(self, args):
        return bool(c_again)

    def do_c_bcast(self, args):
        excluded = ffi.NULL
        if "without" in args:
            excluded = c_api.find_dmq_node_uri(c_string(args["without"].encode()))
        return c_api.bcast_message(
            self.peer(args), self.body(args), excluded, self.cback(args), 1, c_string(b"text/plain")
        )

    def do_c_send(self, args):
        node = c_api.find_dmq_node_uri(c_string(args["to"].encode()))
        kind = c_string(b"text/plain") if args.get("typed", True) else ffi.NULL
        return c_api.send_message(self.peer(args), self.body(args), node, self.cback(args), 1, kind)

    def do_c_copied(self, args):
        """Send to a node by a copy of its structure, as a module may keep one."""
        node = c_api.find_dmq_node_uri(c_string(args["to"].encode()))
        copy = ffi.new("dmq_node_t *", node[0])
        return c_api.send_message(
            c_registered, self.body(args), copy, ffi.NULL, 1, c_string(b"text/plain")
        )

    def do_c_find(self, args):
        return node_of(c_api.find_dmq_node_uri(c_string(args["uri"].encode())))

    def do_c_strings(self, args):
        """How many of its strings the process keeps."""
        return len(kemi_dmq.native.binding._binding._sender._strings)

    def do_c_socket(self, args):
        return text(c_api.get_dmq_server_socket())

    def peer(self, args):
        return ffi.NULL if args.get("no_peer") else c_registered

    def body(self, args):
        return c_string(args.get("body", "x").encode() * args.get("times", 1))

    def cback(self, args):
        if "param" not in args:
            return ffi.NULL
        reply_callback.param = ffi.cast("void *", args["param"])
        return reply_callback


def mod_init():
    return dmq.attach(WithC())
