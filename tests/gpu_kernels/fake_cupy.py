"""A stand-in for CuPy that runs on the CPU and is as strict as CuPy, so that the device path of kernels runs anywhere.

Arrays wrap numpy arrays and never turn into them silently; numpy arrays mixed with them are refused; reductions give
0-d arrays. Where the real CuPy can be imported (it needs no device for that) only names that it has are offered, and
arguments are checked against its own signatures. Stricter than CuPy: numpy functions are refused even where CuPy would
dispatch them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import cuda_on_host
import numpy as np
from fake_cuda import PINNED_POOL, POOL, CUDARuntimeError, Device, MemoryPool, OutOfMemoryError, Stream


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_METHODS = _words(
    "all any argmax argmin argpartition argsort astype choose clip compress conj conjugate copy cumprod cumsum "
    "diagonal dot fill flatten max mean min nonzero partition prod ptp put ravel repeat reshape round searchsorted "
    "sort squeeze std sum swapaxes take trace transpose var view byteswap")

_UNLIKE_FUNCTION = _words("reshape transpose clip astype copy round")
"""Methods whose arguments differ from those of the function of that name."""

_NEEDS_ARRAY = _words(
    "sum mean std var min max amin amax ptp median nanmedian nanmean nansum nanstd nanmax nanmin percentile quantile "
    "nanpercentile sort argsort argmax argmin partition argpartition nonzero flatnonzero argwhere where any all cumsum "
    "cumprod prod bincount clip round take ravel reshape transpose roll flip swapaxes moveaxis pad unique searchsorted "
    "tensordot matmul dot einsum_path gradient diff histogram count_nonzero repeat tile squeeze expand_dims")
"""Functions whose first argument CuPy wants as an array of its own."""

_UFUNC_KEYWORDS = _words("out dtype casting")


class ndarray:
    """A device array: memory that only functions of this module read."""

    __slots__ = ("_a",)
    __array_ufunc__ = None
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any = (), dtype: Any = float, order: str = "C") -> None:
        self._a = np.empty(shape, dtype, order)

    def __array__(self, *_args: Any, **_more: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
                        "array explicitly.")

    def __array_function__(self, func: Any, *_args: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} called on a device array; use the function of the array's own module")

    def get(self, stream: Any = None, order: str = "C", out: np.ndarray | None = None,
            blocking: bool = True) -> np.ndarray:
        if out is None:
            return self._a.copy()
        if not isinstance(out, np.ndarray) or out.shape != self._a.shape or out.dtype != self._a.dtype:
            raise ValueError("get: out must be a numpy array of the same shape and dtype")
        out[...] = self._a
        return out

    def set(self, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray) or array.shape != self._a.shape or array.dtype != self._a.dtype:
            raise ValueError("set: expected a numpy array of the same shape and dtype")
        self._a[...] = array

    def item(self, *index: int) -> Any:
        return self._a.item(*index)

    def tolist(self) -> Any:
        return self._a.tolist()

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS or not _exists("cupy.ndarray", name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        call = _checked(getattr(self._a, name), None, f"ndarray.{name}", method=True)
        twin = None if name in _UNLIKE_FUNCTION else getattr(_real("cupy"), name, None)
        return _bound(call, self, inspect.signature(twin)) if inspect.isfunction(twin) else call

    shape = property(lambda self: self._a.shape, lambda self, s: setattr(self._a, "shape", s))
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: self._a.flags)
    T = property(lambda self: _wrap(self._a.T))
    mT = property(lambda self: _wrap(np.matrix_transpose(self._a)))
    real = property(lambda self: _wrap(self._a.real), lambda self, v: setattr(self._a, "real", _unwrap(v)))
    imag = property(lambda self: _wrap(self._a.imag), lambda self, v: setattr(self._a, "imag", _unwrap(v)))
    base = property(lambda self: _wrap(self._a.base) if isinstance(self._a.base, np.ndarray) else None)
    device = property(lambda self: Device(0))

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        return _wrap(self._a[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._a[_index(index)] = _unwrap(value)

    def __bool__(self) -> bool:
        return bool(self._a)

    def __int__(self) -> int:
        return int(self._a)

    def __float__(self) -> float:
        return float(self._a)

    def __complex__(self) -> complex:
        return complex(self._a)

    def __copy__(self) -> ndarray:
        return _wrap(self._a.copy())

    def __deepcopy__(self, _memo: Any) -> ndarray:
        return _wrap(self._a.copy())

    def __repr__(self) -> str:
        return f"device {self._a!r}"

    def __format__(self, spec: str) -> str:
        return format(self._a.item() if self._a.ndim == 0 else str(self._a), spec)


def _add_operators() -> None:
    names = _words("add sub mul truediv floordiv mod pow and or xor lshift rshift matmul divmod")
    plain = names | _words("eq ne lt le gt ge")
    for name in [f"__{n}__" for n in plain] + [f"__r{n}__" for n in names]:
        def operate(self: ndarray, other: Any, name: str = name) -> Any:
            return _wrap(getattr(self._a, name)(_unwrap(other)))
        setattr(ndarray, name, operate)
    for name in (f"__i{n}__" for n in names if n not in ("divmod", "matmul")):
        def in_place(self: ndarray, other: Any, name: str = name) -> Any:
            self._a = np.asarray(getattr(self._a, name)(_unwrap(other)))
            return self
        setattr(ndarray, name, in_place)
    for name in ("__neg__", "__pos__", "__abs__", "__invert__"):
        def alone(self: ndarray, name: str = name) -> Any:
            return _wrap(getattr(self._a, name)())
        setattr(ndarray, name, alone)


def _wrap(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if 0 < POOL.limit < value.nbytes:
            raise OutOfMemoryError(f"Out of memory allocating {value.nbytes:,} bytes (limit set to {POOL.limit:,})")
        out = ndarray.__new__(ndarray)
        out._a = np.asarray(value)
        return out
    if isinstance(value, tuple):
        parts = [_wrap(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_wrap(v) for v in value]
    return value


def _unwrap(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError(f"Unsupported type {type(value)}: a numpy array among device arrays; use cupy.asarray")
    if isinstance(value, tuple | list):
        parts = [_unwrap(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_index(i) for i in index)
    if isinstance(index, slice):
        if any(isinstance(i, ndarray) for i in (index.start, index.stop, index.step)):
            raise TypeError("slice of device scalars; use int(...)")
        return index
    if isinstance(index, np.ndarray):
        raise TypeError("a device array indexed with a numpy array; use cupy.asarray")
    return _unwrap(index)


def _real(module: str) -> Any:
    """The real CuPy module (or class), None where it is not installed."""
    return _REAL.get(module)


_REAL: dict[str, Any] = {}
_MODULES = ("cupy", "cupy.linalg", "cupy.fft", "cupy.random", "cupy.lib.stride_tricks", "cupyx", "cupyx.scipy.fft",
            "cupyx.scipy.ndimage", "cupyx.scipy.linalg", "cupyx.scipy.special")


def _find_real() -> None:
    if _REAL or isinstance(sys.modules.get("cupy"), _Namespace):
        return
    for name in _MODULES:
        # some need libraries that come only with a device
        with contextlib.suppress(ImportError):
            _REAL[name] = importlib.import_module(name)
    if "cupy" in _REAL:
        _REAL["cupy.ndarray"] = _REAL["cupy"].ndarray


def _exists(module: str, name: str) -> bool:
    real = _real(module)
    return real is None or hasattr(real, name)


def _checked(function: Callable[..., Any], real: Any, name: str, *, method: bool = False) -> Callable[..., Any]:
    """`function` of numpy on unwrapped arguments, which the real function would take as well."""
    try:
        signature = inspect.signature(real) if real is not None else None
    except (TypeError, ValueError):
        signature = None
    ufunc = isinstance(function, np.ufunc)
    short = name.rpartition(".")[2]

    def call(*args: Any, **keywords: Any) -> Any:
        if signature is not None:
            try:
                signature.bind(*args, **keywords)
            except TypeError as err:
                raise TypeError(f"{name}{signature}: {err}") from None
        if ufunc and not set(keywords) <= _UFUNC_KEYWORDS:
            raise TypeError(f"{name}: wrong arguments {sorted(set(keywords) - _UFUNC_KEYWORDS)}")
        if ufunc and any(isinstance(a, list | tuple) for a in args):
            raise TypeError(f"{name}: unsupported type list")
        if (method or short in _NEEDS_ARRAY) and {"where", "initial"} & set(keywords):
            raise TypeError(f"{name}: CuPy has no keyword {sorted(keywords)}")
        if not method and short in _NEEDS_ARRAY and args and not isinstance(args[0], ndarray):
            raise TypeError(f"{name}: the first argument must be a cupy.ndarray, found {type(args[0]).__name__}")
        return _wrap(function(*_unwrap(args), **{k: _unwrap(v) for k, v in keywords.items()}))

    call.__name__ = call.__qualname__ = short
    return call


def _bound(call: Callable[..., Any], array: ndarray, signature: inspect.Signature) -> Callable[..., Any]:
    """A method whose arguments the function of that name would take after the array."""
    def method(*args: Any, **keywords: Any) -> Any:
        try:
            signature.bind(array, *args, **keywords)
        except TypeError as err:
            raise TypeError(f"ndarray.{call.__name__}{signature}: {err}") from None
        return call(*args, **keywords)
    return method


class _Namespace(types.ModuleType):
    """A module whose names are those of a numpy or scipy module, wrapped."""

    def __init__(self, name: str, host: Any = None, **own: Any) -> None:
        super().__init__(name, "stand-in")
        self.__dict__["_host"] = host
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        full = f"{self.__name__}.{name}"
        if name.startswith("__") or not _exists(self.__name__, name):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        host = self.__dict__["_host"]
        if not hasattr(host, name):
            raise AttributeError(f"the stand-in for CuPy has no {full}; add it to tests/gpu_kernels/fake_cupy.py")
        value = getattr(host, name)
        if isinstance(value, types.ModuleType):
            raise AttributeError(f"the stand-in for CuPy has no module {full}")
        if not isinstance(value, type) and callable(value):
            value = _checked(value, getattr(_real(self.__name__), name, None), full)
        self.__dict__[name] = value
        return value


def _asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    host = a if isinstance(a, np.ndarray) else _unwrap(a)
    if isinstance(a, np.ndarray) and copy is not False:
        host = np.array(a, dtype=dtype, order=order or "K")  # the host's memory is never shared
    return _wrap(np.array(host, dtype=dtype, order=order or "K", copy=copy))


def _array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0,
           *, blocking: bool = False) -> ndarray:
    host = obj if isinstance(obj, np.ndarray) else _unwrap(obj)
    return _wrap(np.array(host, dtype=dtype, copy=copy or None, order=order, ndmin=ndmin))  # type: ignore[call-overload]


def _asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def _get_array_module(*args: Any) -> Any:
    return sys.modules["cupy"] if any(isinstance(a, ndarray) for a in args) else np


def _scatter(function: np.ufunc) -> Callable[[ndarray, Any, Any], None]:
    def scatter(a: ndarray, slices: Any, value: Any) -> None:
        function.at(a._a, _index(slices), _unwrap(value))
    return scatter


class _Grid:
    def __init__(self, host: Any) -> None:
        self.host = host

    def __getitem__(self, key: Any) -> Any:
        return _wrap(self.host[key])


class _Generator:
    """A numpy generator whose arrays are on the device."""

    def __init__(self, host: Any) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return _checked(getattr(self._host, name), None, f"random.{name}", method=True)


class RawKernel:
    """A CUDA kernel run on the host, see `cuda_on_host`."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", *,
                 translate_cucomplex: bool = False, enable_cooperative_groups: bool = False,
                 jitify: bool = False) -> None:
        self.code, self.name, self.options = code, name, tuple(options)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0,
                 stream: Any = None) -> None:
        host_args = tuple(_unwrap(a) for a in args)
        cuda_on_host.launch(self.code, self.name, grid, block, host_args, self.options, shared_mem)

    def compile(self, log_stream: Any = None) -> None:
        cuda_on_host.library(self.code, self.options)


class RawModule:
    """Several kernels of one text."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **_: Any) -> None:
        self.code, self.options = code, tuple(options)

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self.code, name, self.options)

    def compile(self, log_stream: Any = None) -> None:
        cuda_on_host.library(self.code, self.options)


def _fuse(*args: Any, **_: Any) -> Any:
    return args[0] if args and callable(args[0]) else (lambda f: f)


def _cuda() -> _Namespace:
    memory = _Namespace("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError, MemoryPool=MemoryPool)
    runtime = _Namespace(
        "cupy.cuda.runtime", CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: Device.n_devices,
        getDevice=lambda: Device.current, setDevice=lambda k: Device(k).use() and None,
        deviceSynchronize=lambda: Device().synchronize(), memGetInfo=lambda: Device.memory,
        runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13000,
        getDeviceProperties=lambda k: {"name": b"stand-in"})
    return _Namespace("cupy.cuda", memory=memory, runtime=runtime, Device=Device, Stream=Stream, MemoryPool=MemoryPool,
                      is_available=lambda: True, get_current_stream=lambda: Stream.null)


def modules() -> dict[str, types.ModuleType]:
    """The modules to put into ``sys.modules``."""
    import scipy.fft
    import scipy.linalg
    import scipy.ndimage
    import scipy.special

    for pool in (POOL, PINNED_POOL):
        pool.limit = pool.freed = 0
    cuda = _cuda()
    tricks = _Namespace("cupy.lib.stride_tricks", np.lib.stride_tricks)
    lib = _Namespace("cupy.lib", stride_tricks=tricks)
    plans = types.SimpleNamespace(get_plan_cache=lambda: types.SimpleNamespace(clear=lambda: None))
    linalg, fft = _Namespace("cupy.linalg", np.linalg), _Namespace("cupy.fft", np.fft, config=plans)
    random = _Namespace(
        "cupy.random", np.random, default_rng=lambda seed=None: _Generator(np.random.default_rng(seed)),
        RandomState=lambda seed=None: _Generator(np.random.RandomState(seed)))
    cupy = _Namespace(
        "cupy", np, ndarray=ndarray, cuda=cuda, lib=lib, linalg=linalg, fft=fft, random=random, asarray=_asarray,
        array=_array, asnumpy=_asnumpy, get_array_module=_get_array_module, RawKernel=RawKernel, RawModule=RawModule,
        __version__="stand-in", mgrid=_Grid(np.mgrid), ogrid=_Grid(np.ogrid), fuse=_fuse, newaxis=None,
        get_default_memory_pool=lambda: POOL, get_default_pinned_memory_pool=lambda: PINNED_POOL)
    sub = {name: _Namespace(f"cupyx.scipy.{name}", getattr(scipy, name))
           for name in ("fft", "ndimage", "linalg", "special")}
    scipy_twin = _Namespace("cupyx.scipy", **sub)
    cupyx = _Namespace("cupyx", scipy=scipy_twin, scatter_add=_scatter(np.add), scatter_max=_scatter(np.maximum),
                       scatter_min=_scatter(np.minimum), rsqrt=lambda a: _wrap(1 / np.sqrt(_unwrap(a))),
                       empty_pinned=np.empty, zeros_pinned=np.zeros, empty_like_pinned=np.empty_like)
    everything = [cupy, cuda, cuda.memory, cuda.runtime, lib, tricks, linalg, fft, random, cupyx, scipy_twin,
                  *sub.values()]
    return {m.__name__: m for m in everything}


def install(monkeypatch: Any) -> Any:
    """Put the stand-in in the place of CuPy until the test ends; return it."""
    _find_real()
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends"):
            monkeypatch.delitem(sys.modules, name)
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Device, "current", 0)
    monkeypatch.setattr(Device, "n_devices", 1)
    monkeypatch.setattr(Device, "memory", Device.memory)
    return sys.modules["cupy"]


def pytest_configure() -> None:
    """``pytest -p fake_cupy``: the stand-in for a whole run."""
    _find_real()
    sys.modules.update(modules())


_add_operators()
