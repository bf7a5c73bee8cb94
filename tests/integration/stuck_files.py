"""``stuck_files.py DIRECTORY``: a FUSE file system of this process; stopped (SIGSTOP), it is a file server that hangs.

As much of the kernel's protocol (linux/fuse.h, 7.31) as files in one directory need that are made, written, read and
removed. Needs root and /dev/fuse.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, OPEN, READ, WRITE = 1, 2, 3, 4, 10, 14, 15, 16
STATFS, RELEASE, FLUSH, INIT, OPENDIR, ACCESS, CREATE, BATCH_FORGET, INTERRUPT = (
    17,
    18,
    25,
    26,
    27,
    34,
    35,
    42,
    36,
)
ENOENT, ENOSYS = 2, 38


class Files:
    """Node 1 is the directory; nothing is kept by the kernel: every look at a file asks here."""

    def __init__(self) -> None:
        self.nodes: dict[int, bytearray] = {}
        self.names: dict[bytes, int] = {}

    def answer(self, operation: int, node: int, body: bytes) -> bytes | int | None:
        """The body of the reply, an error, or None: no reply."""
        if operation in (FORGET, BATCH_FORGET, INTERRUPT):
            return None
        if operation == INIT:
            return struct.pack("=IIIIHHII", 7, 31, 65536, 0, 12, 9, 65536, 1) + bytes(36)
        if operation == LOOKUP:
            found = self.names.get(body.rstrip(b"\0"))
            return self.entry(found) if found else -ENOENT
        if operation in (GETATTR, SETATTR):
            return struct.pack("=QII", 0, 0, 0) + self.attributes(node)
        if operation == CREATE:
            name = body[16:].rstrip(b"\0")
            made = self.names.setdefault(name, len(self.nodes) + 2)
            self.nodes.setdefault(made, bytearray())
            return self.entry(made) + bytes(16)
        if operation in (OPEN, OPENDIR):
            return struct.pack("=QII", 0, 1, 0)  # FOPEN_DIRECT_IO
        return self.data(operation, node, body)

    def data(self, operation: int, node: int, body: bytes) -> bytes | int:
        if operation == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return bytes(self.nodes[node][offset : offset + size])
        if operation == WRITE:
            _, offset, size = struct.unpack_from("=QQI", body)
            content = self.nodes[node]
            content[offset : offset + size] = body[40 : 40 + size]
            return struct.pack("=II", size, 0)
        if operation == STATFS:
            return bytes(80)
        if operation == UNLINK:
            self.names.pop(body.rstrip(b"\0"), None)
        return b"" if operation in (RELEASE, FLUSH, UNLINK, ACCESS) else -ENOSYS

    def entry(self, node: int) -> bytes:
        return struct.pack("=QQQQII", node, 0, 0, 0, 0, 0) + self.attributes(node)

    def attributes(self, node: int) -> bytes:
        mode = 0o40777 if node == 1 else 0o100666
        size = len(self.nodes.get(node, b""))
        return struct.pack("=QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main() -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"stuck", sys.argv[1].encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    files = Files()
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError:  # unmounted
            return
        _, operation, unique, node = struct.unpack_from("=IIQQ", request)
        reply = files.answer(operation, node, request[40:])
        if reply is not None:
            body, error = (b"", reply) if isinstance(reply, int) else (reply, 0)
            os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


if __name__ == "__main__":
    main()
