"""Compiled functions (*kernels*): every one is made by :func:`kernel`, and kept on disk so that it is compiled once.

Numba's own cache stops the program where it finds no folder to write to, and hands LLVM whatever a file holds, which
ends the process where the file was cut. Here a kernel that cannot be kept, or whose file is damaged, is compiled anew.

Where kernels are kept: in ``NUMBA_CACHE_DIR`` if that is set; else beside the source, in ``__pycache__``; where nothing
can be written there, in the user's folder of caches. A folder is read whether or not it can be written, so that what
was compiled when an image was built serves those who may only read it. Numba looks for folders in the same order, but
reads only the first one that it can write to.

A file is called after what it depends on: the bytecode of the kernel and of all kernels and constants that it refers
to, the types of the arguments (with the names of the fields of named tuples), the versions of Python, NumPy, Numba and
llvmlite, and the processor. So it never goes stale, and several processes may write at once; it begins with a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config, event, types
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from graphopt_gym.errors import InputError
from graphopt_gym.files import write_file

SUFFIX = ".kernel"
CHECKSUM_BYTES = 32
CONFIG = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "USING_SVML")  # settings of Numba that change what is compiled
SLOW_S = 1.0  # waiting longer than this for a compilation is explained

KERNELS: list[Dispatcher] = []  # every kernel of the modules loaded so far


_compiling = event.TimingListener()
event.register("numba:compiler_lock", _compiling)


class Tally:
    """What this process did: kernels compiled, and kernels loaded from disk, each signature one."""

    compiled = 0
    loaded = 0


def clock() -> float:
    """Seconds by a clock that stands still while kernels are compiled or loaded, so that a limit means the same on a
    machine's first run."""
    return time.perf_counter() - (_compiling.duration if _compiling.done else 0.0)


def kernel(function: Callable[..., Any] | None = None, *, inner: bool = False, allocates: bool = True) -> Any:
    """Compile a function at its first call, and keep it. It runs without the GIL.

    Args:
        function: what is compiled; it may refer to kernels, intrinsics, numbers, tuples, arrays, modules and classes.
        inner: whether only kernels call it: then what Python calls it by is left out, which takes longer to compile
            than many a kernel itself.
        allocates: False where it makes no array, so that it need not count references to those that it is given.
    """
    if function is None:
        return lambda given: kernel(given, inner=inner, allocates=allocates)
    options: Any = {"_nrt": allocates, "no_cpython_wrapper": inner, "no_cfunc_wrapper": True}
    made: Any = numba.njit(nogil=True, **options)(function)
    if isinstance(made, Dispatcher):  # not where NUMBA_DISABLE_JIT is set
        made._cache = KernelCache(made)  # type: ignore[attr-defined]
        KERNELS.append(made)
    return made


def form(made: Any, *arguments: Any) -> Callable[..., Any]:
    """A kernel for arguments of the types of these, and of no others: nothing looks at the types when it is called.

    To look takes Numba 10 microseconds where tables of fifty arrays are given, as much as many a step. The caller sees
    to it that types, orders of axes and numbers of axes stay the same; otherwise memory is read that is none.
    """
    if not isinstance(made, Dispatcher):  # where NUMBA_DISABLE_JIT is set
        return made  # type: ignore[no-any-return]
    found = made.compile(tuple(made.typeof_pyval(one) for one in arguments))
    return found  # type: ignore[no-any-return]


class KernelCache(_Cache):
    """The compiled forms of one kernel on disk, one file a signature. Nothing that happens to it stops the program."""

    def __init__(self, kernel: Dispatcher) -> None:
        self._kernel = kernel
        self._source = kernel.py_func.__code__.co_filename
        self._enabled = True

    @property
    def cache_path(self) -> str | None:
        """The folder that is written to; None where there is none."""
        return next((str(folder) for folder, writable in _folders(self._source) if writable), None)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Forget all forms of the kernel."""
        if self.cache_path:
            _remove(Path(self.cache_path), self._stem + "-*")

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """The compiled form for a signature; None where none is kept, or what is kept is damaged."""
        rtsys.initialize(target_context)  # all that running a kernel needs; what compiling needs takes long to import
        found = self._load(sig, target_context) if self._enabled else None
        if found is None:
            target_context.refresh()
            _Notes.compiling(self.cache_path)
        else:
            Tally.loaded += 1
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled form, if anything can be written."""
        Tally.compiled += 1
        if not self._enabled or _Notes.full or data.lifted or data.library.has_dynamic_globals:
            return
        folder = self.cache_path
        if folder is None:
            _Notes.say_kept_nowhere("no folder for it can be written")
            return
        parts = self._parts(sig, data.codegen)
        content = dumps((_hashes(data), data._reduce()))
        path = Path(folder, _file_name(parts))
        stem, machine, code, _ = path.stem.rsplit("-", 3)
        try:
            _remove(path.parent, f"{stem}-{machine}-*", keep=f"{stem}-{machine}-{code}-*")  # the code as it was before
            write_file(path, _checksum(parts, content) + content)
        except (OSError, InputError) as error:  # the disk is full, the folder was taken away
            _Notes.full = True
            _Notes.say_kept_nowhere(str(error))

    def _load(self, sig: Any, target_context: Any) -> CompileResult | None:
        parts = self._parts(sig, target_context.codegen())
        for folder, _ in _folders(self._source):
            try:
                whole = (folder / _file_name(parts)).read_bytes()
            except OSError:
                continue
            content = whole[CHECKSUM_BYTES:]
            if whole[:CHECKSUM_BYTES] == _checksum(parts, content):
                with contextlib.suppress(Exception):  # whatever it is, compiling anew does
                    hashes, reduced = pickle.loads(content)
                    if hashes:
                        target_context.refresh()
                    return CompileResult._rebuild(target_context, *reduced)
        return None

    @property
    def _stem(self) -> str:
        function = self._kernel.py_func
        return f"{Path(self._source).stem}.{function.__qualname__}".replace("<", "").replace(">", "")

    def _parts(self, sig: Any, codegen: Any) -> tuple[str, str, str, str]:
        """What a compiled form depends on: (kernel, machine and versions, code, types of the arguments)."""
        arguments = sig if isinstance(sig, tuple) else (*sig.args, sig.return_type)
        return (
            self._stem,
            repr((*_versions(), *codegen.magic_tuple())),
            fingerprint(self._kernel),
            repr([_describe_type(one) for one in arguments]),
        )


def _file_name(parts: tuple[str, str, str, str]) -> str:
    return "-".join([parts[0], *(_digest(part)[:12] for part in parts[1:])]) + SUFFIX


def _hashes(data: Any) -> bool:
    """Whether a compiled form hashes: the linker finds what that takes only once all of Numba is loaded."""
    return any("hashsecret" in variable.name for variable in data.library._final_module.global_variables)


def fingerprint(made: Dispatcher) -> str:
    """A digest of a kernel's bytecode and options, and of everything that it refers to."""
    lines: list[str] = []
    _describe_kernel(made, lines, set())
    return _digest("\n".join(lines))


def _describe_kernel(made: Any, lines: list[str], seen: set[int]) -> None:
    if id(made) in seen:
        return
    seen.add(id(made))
    lines.append(repr(sorted(made.targetoptions.items())))
    _describe_function(made.py_func, lines, seen)


def _describe_function(function: FunctionType, lines: list[str], seen: set[int]) -> None:
    names: set[str] = set()
    _describe_code(function.__code__, function.__doc__, lines, names)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    for value in (function.__defaults__, *cells):
        _describe(value, names, lines, seen)
    for name in sorted(names & function.__globals__.keys()):
        lines.append(name)
        _describe(function.__globals__[name], names, lines, seen)


def _describe_code(code: CodeType, doc: str | None, lines: list[str], names: set[str]) -> None:
    names.update(code.co_names)
    lines += [code.co_code.hex(), repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount))]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _describe_code(constant, None, lines, names)
        elif constant is not doc:
            lines.append(repr(constant))


def _describe(value: Any, names: set[str], lines: list[str], seen: set[int]) -> None:
    if isinstance(value, Dispatcher):
        _describe_kernel(value, lines, seen)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        lines.append(repr(value))
    elif isinstance(value, tuple):
        lines.append(f"tuple of {len(value)}")
        for item in value:
            _describe(item, names, lines, seen)
    elif isinstance(value, np.ndarray):
        lines += [repr((value.dtype, value.shape)), hashlib.sha256(value.tobytes()).hexdigest()]
    elif isinstance(value, ModuleType):
        lines.append(value.__name__)
        for name in sorted(names & vars(value).keys()):  # what it uses of another module of kernels
            if isinstance(vars(value)[name], Dispatcher | int | float | tuple):
                _describe(vars(value)[name], names, lines, seen)
    elif isinstance(getattr(value, "_defn", None), FunctionType):  # an intrinsic
        _describe_code(value._defn.__code__, value._defn.__doc__, lines, set())
    elif isinstance(value, type) or type(value).__name__ == "builtin_function_or_method":
        lines.append(f"{value.__module__}.{value.__qualname__}{getattr(value, '_fields', '')}")
    # a kernel can refer to nothing else: an attribute happens to be called like a global


def _describe_type(given: Any) -> Any:
    """A Numba type as text; of named tuples also the class and the names of the fields, which Numba leaves out."""
    if isinstance(given, types.BaseNamedTuple):
        kind: Any = given.instance_class  # type: ignore[attr-defined]
        parts = [_describe_type(one) for one in given.types]  # type: ignore[attr-defined]
        return kind.__module__, kind.__qualname__, kind._fields, parts
    return str(given)


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    return (
        platform.python_implementation(),
        platform.python_version(),
        np.__version__,
        numba.__version__,
        llvmlite.__version__,
        *(f"{name}={getattr(config, name, None)}" for name in CONFIG),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(parts: tuple[str, str, str, str], content: bytes) -> bytes:
    return hashlib.sha256("\0".join(parts).encode() + content).digest()


def _folders(source: str) -> Iterator[tuple[Path, bool]]:
    """(folder, whether it can be written) for the kernels of a source file, up to the first that can be written."""
    for folder in _candidates(source, config.CACHE_DIR):  # type: ignore[attr-defined]
        writable = _writable(folder)
        yield folder, writable
        if writable:
            return


@cache
def _candidates(source: str, chosen: str) -> list[Path]:
    parent = Path(source).absolute().parent
    own = f"{parent.name}_{_digest(str(parent))[:16]}"  # a folder for each folder of sources
    places = [Path(chosen, own)] if chosen else []
    if Path(source).is_file():
        places.append(parent / "__pycache__")
    user = Path(AppDirs(appname="graphopt-gym", appauthor=False).user_cache_dir)
    return [*places, user / "kernels" / own] if user.is_absolute() else places


@cache
def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _remove(folder: Path, pattern: str, keep: str | None = None) -> None:
    for path in folder.glob(pattern + SUFFIX):
        if keep is None or not path.match(keep):
            path.unlink(missing_ok=True)


class _Notes:
    """What is said on standard error, each at most once a process."""

    full = False  # writing failed: not tried again
    kept_nowhere = False
    slow = False
    listening = 0  # depth of :func:`explained`
    timer: threading.Timer | None = None

    @classmethod
    def say_kept_nowhere(cls, why: str) -> None:
        if not cls.kept_nowhere:
            cls.kept_nowhere = True
            cls.say(f"note: compiled code is not kept ({why}); set NUMBA_CACHE_DIR to a folder that can be written")

    @classmethod
    def compiling(cls, folder: str | None) -> None:
        """A kernel is about to be compiled, and kept in a folder."""
        if cls.listening and not cls.slow and not cls.timer:
            cls.timer = threading.Timer(SLOW_S, cls.say_slow, (folder,))
            cls.timer.daemon = True
            cls.timer.start()

    @classmethod
    def say_slow(cls, folder: str | None) -> None:
        if not cls.slow:
            cls.slow = True
            cls.say(f"compiling … (once{f'; kept in {folder}' if folder else ''})")

    @staticmethod
    def say(text: str) -> None:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Inside it, a wait of over a second for the compiler is explained on standard error, once a process."""
    _Notes.listening += 1
    try:
        yield
    finally:
        _Notes.listening -= 1
        if not _Notes.listening and _Notes.timer:
            _Notes.timer.cancel()
            _Notes.timer = None
