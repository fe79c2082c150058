"""The part of the stand-in for CuPy that is about devices: numbers, memory pools, streams."""

from __future__ import annotations

from typing import Any


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    __module__ = "cupy.cuda.memory"


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""

    __module__ = "cupy_backends.cuda.api.runtime"


class Device:
    """Device 0 … `n_devices` − 1; `current` and `synchronized` are for tests to look at."""

    n_devices = 1
    current = 0
    synchronized = 0
    memory = (8 << 30, 16 << 30)

    def __init__(self, device: int | None = None) -> None:
        self.id = Device.current if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> Device:
        if not 0 <= self.id < Device.n_devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        Device.current = self.id
        return self

    def synchronize(self) -> None:
        Device.synchronized += 1

    def __enter__(self) -> Device:
        self._before.append(Device.current)
        return self.use()

    def __exit__(self, *_: Any) -> None:
        Device.current = self._before.pop()

    mem_info = property(lambda self: Device.memory)
    compute_capability = property(lambda self: "90")


class MemoryPool:
    """A pool that holds nothing; single arrays beyond `limit` are refused, `freed` counts calls of free_all_blocks."""

    def __init__(self) -> None:
        self.limit, self.freed = 0, 0

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self.limit = int(Device.memory[1] * fraction) if fraction is not None else int(size or 0)

    def get_limit(self) -> int:
        return self.limit

    def free_all_blocks(self, stream: Any = None) -> None:
        self.freed += 1

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0


POOL, PINNED_POOL = MemoryPool(), MemoryPool()


class Stream:
    """Everything runs at once, in order."""

    null: Any

    def __init__(self, **_: Any) -> None:
        self.done = True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        Device.synchronized += 1

    def record(self, event: Any = None) -> Any:
        return event

    def wait_event(self, event: Any) -> None:
        pass


Stream.null = Stream()
