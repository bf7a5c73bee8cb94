"""What jobs of the tests do on a card, by the driver's own library, which is wherever a card is.

``python cuda.py count``: the UUIDs of the cards that this process sees, one a line, or the driver's error.
``python cuda.py work MIB SECONDS``: holds memory of the first card and keeps it busy. Says ``ready`` before.
``python cuda.py fault``: writes where no memory is; the driver ends the program's context and reports an XID.
"""

from __future__ import annotations

import ctypes
import sys
import time
import uuid

CUDA_SUCCESS = 0
_STORE = b"""
.version 7.0
.target sm_50
.address_size 64
.visible .entry store() { .reg .b64 %a; .reg .b32 %v; mov.u64 %a, 16; mov.u32 %v, 1; st.global.u32 [%a], %v; ret; }
"""


class CudaError(Exception):
    """A call of the driver has failed."""


class Driver:
    """libcuda; each call raises CudaError unless it succeeds."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != CUDA_SUCCESS:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(result, ctypes.byref(text))
            raise CudaError(f"{name}: {(text.value or b'').decode()} ({result})")

    def uuids(self) -> list[str]:
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        found = []
        for index in range(count.value):
            device, raw = ctypes.c_int(), ctypes.create_string_buffer(16)
            self.call("cuDeviceGet", ctypes.byref(device), index)
            self.call("cuDeviceGetUuid_v2", raw, device)
            found.append(f"GPU-{uuid.UUID(bytes=raw.raw)}")
        return found

    def open(self) -> None:
        """Makes a context on the first card."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuCtxCreate_v2", ctypes.byref(context), 0, device)

    def work(self, mib: int, seconds: float) -> None:
        """Writes to ``mib`` MiB of the card's memory again and again."""
        memory, size = ctypes.c_uint64(), mib << 20
        self.call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
        print("ready", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(100):
                self.call("cuMemsetD8_v2", memory, ctypes.c_ubyte(1), ctypes.c_size_t(size))
            self.call("cuCtxSynchronize")

    def fault(self) -> None:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), _STORE)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, b"store")
        self.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
        self.call("cuCtxSynchronize")


def main(what: str, *words: str) -> int:
    try:
        driver = Driver()
        if what == "count":
            print("\n".join(driver.uuids()))
            return 0
        driver.open()
        if what == "work":
            driver.work(int(words[0]), float(words[1]))
        else:
            driver.fault()
    except (CudaError, OSError) as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
