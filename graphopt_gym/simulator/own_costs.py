"""Costs of one's own, in place of what the cost model, the graph and the cluster say.

====================  =====================================================================================
argument              what it states
====================  =====================================================================================
``op_times_s``        seconds of ops on devices
``tensor_bytes``      bytes of what an op produces; or, of an edge, of what is sent along it
``transfer_s``        seconds that sending takes, of what an op produces or of an edge, whatever the link
``allowed_devices``   the devices that an op may be on
``static_bytes``      bytes that an op holds on its device for the whole step
====================  =====================================================================================

Each is given as an array, as a mapping, as a table, or as the path of a CSV or JSON file (``docs/own_costs.md`` shows
all forms). An op is named by its index or its label (``graphopt list ops GRAPH`` prints both; a table may have a column
``label`` beside ``op``, which is then compared with the graph's), a device by its index, its name or its kind; a name
stands for all devices that have it.

**Tensors and edges.** An op's output is one tensor: it is sent once to each other device that reads it, however many
ops read it there. So a cost that is stated of the op is the tensor's, and each of those transfers takes it. A cost that
is stated of an edge is that of the reading op's part: edges out of one op that state the same bytes and seconds (or
nothing) are one tensor, sent once to each device; an edge that states something else is a tensor of its own, sent for
itself. Bytes of edges change what is sent and the copy that it makes; on its own device the output takes what the op
says. ``transfer_s`` replaces latency and bandwidth; the transfer still waits for its link, which carries one at a time.

Views and sources have no kernel, so times stated of them count for nothing; a view as large as what it views *is* that
tensor, and nothing that is stated of the view's own bytes counts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.fields import byte_count, check_numbers, choice, not_negative
from graphopt_gym.files import parse_json, read_text
from graphopt_gym.graphs.graph import SOURCE, VIEW

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster

ARGUMENTS = ("op_times_s", "missing_op_times", "tensor_bytes", "transfer_s", "allowed_devices", "static_bytes")
MISSING = ("refuse", "cost_model")
INLINE_BYTES = 64 * 1024  # a larger file is stored by its path and fingerprint
LINK = -1.0  # of a tensor: its transfers take what the link takes


class CostFile(NamedTuple):
    """A file of own costs, read once. ``path`` as it was given."""

    path: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_cost_files(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with files in place of paths, so that what is read once is what counts, whatever becomes of it.

    Raises:
        InputError: a file that cannot be read, or is not what a solution says it was.
    """
    return {name: _read(name, value) if name != "missing_op_times" else value for name, value in given.items()}


def _read(name: str, given: Any) -> Any:
    stored = isinstance(given, Mapping) and set(given) == {"file", "sha256"}
    path = given["file"] if stored else given
    if isinstance(path, CostFile) or not isinstance(path, str | os.PathLike):
        return path
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".json"):
        raise InputError(f"{name} must be an array, a mapping, or a .csv or .json file; got {quoted(os.fspath(path))}")
    file = CostFile(os.fspath(path), read_text(path, f"{name} file"))
    if stored and file.sha256 != given["sha256"]:
        raise InputError(
            f"{name}: {file.path!r} has changed since it was solved with: sha256 was {str(given['sha256'])[:12]}…, is "
            f"{file.sha256[:12]}…; solve again"
        )
    return file


@dataclass(frozen=True, eq=False)
class OwnCosts:
    """Own costs of a graph of N ops and E edges on a cluster of D devices. None: nothing is stated of the kind.

    ``given`` are the arguments in JSON's types, from which it is made again.
    """

    op_times_s: np.ndarray | None  # float64 [D, N]; NaN: the cost model's
    op_bytes: np.ndarray | None  # int64 [N] of an op's output; -1: the graph's
    edge_bytes: np.ndarray | None  # int64 [E] sent along an edge; -1: those of the op
    op_transfer_s: np.ndarray | None  # float64 [N]; LINK: what the link takes
    edge_transfer_s: np.ndarray | None  # float64 [E]; LINK: what is stated of the op
    static_bytes: np.ndarray | None  # int64 [N]; -1: the graph's parameters and optimiser state
    allowed: np.ndarray | None  # bool [N, D]
    given: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        graph: ComputationGraph,
        cluster: Cluster,
        *,
        op_times_s: Any = None,
        missing_op_times: str = "refuse",
        tensor_bytes: Any = None,
        transfer_s: Any = None,
        allowed_devices: Any = None,
        static_bytes: Any = None,
    ) -> OwnCosts | None:
        """Read what is stated; None where nothing is. See the module's text.

        Args:
            op_times_s: float [N], [N, D] or [N, kinds of devices, as they first occur]; a device's name to float [N];
                an op to seconds; a table or file with columns ``op``, ``seconds`` and perhaps ``device``, or ``op`` and
                one a device.
            missing_op_times: what becomes of ops without a time (which is needed only where they are allowed):
                ``"refuse"``, or ``"cost_model"``, which prices them.
            tensor_bytes: int [N]; an op to bytes; rows (producer, consumer, bytes); a table or file with columns ``op``
                and ``bytes``, or ``src``, ``dst`` and ``bytes``. What is left out is as the graph says.
            transfer_s: likewise, in seconds. What is left out is as the link says.
            allowed_devices: bool [N, D]; an op, or the path of a module, to a device or a list; a table or file with
                columns ``op`` and ``device``, a row for each that is allowed. What is left out is allowed everywhere;
                of several modules the innermost counts.
            static_bytes: int [N]; an op to bytes; a table or file with columns ``op`` and ``bytes``. It is in place of
                the op's parameters and optimiser state. What is left out is as the graph says.

        Raises:
            InputError: one line with the field, the value and the fix.
        """
        choice("missing_op_times", missing_op_times, MISSING)
        read = _Reader(graph, cluster)
        arguments = read_cost_files(
            {
                "op_times_s": op_times_s,
                "tensor_bytes": tensor_bytes,
                "transfer_s": transfer_s,
                "allowed_devices": allowed_devices,
                "static_bytes": static_bytes,
            }
        )
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if missing_op_times != "refuse":
            if op_times_s is None:
                raise InputError(f"missing_op_times is {missing_op_times!r}, but there is no op_times_s; leave it out")
            arguments["missing_op_times"] = missing_op_times
        if not arguments:
            return None
        given = {name: arguments.get(name) for name in ARGUMENTS}
        op_bytes, edge_bytes = read.tensors("tensor_bytes", given["tensor_bytes"], "bytes", _bytes, np.int64)
        op_seconds, edge_seconds = read.tensors("transfer_s", given["transfer_s"], "seconds", _seconds, np.float64)
        static, _ = read.tensors("static_bytes", given["static_bytes"], "bytes", _bytes, np.int64, edges=False)
        for name, values in (("tensor_bytes", op_bytes), ("static_bytes", static)):
            if values is not None and values.clip(0).sum(dtype=np.float64) >= 2**62:
                raise InputError(f"{name} adds up to 2**62 bytes or more; give less")
        allowed = read.allowed(given["allowed_devices"])
        return cls(
            op_times_s=read.op_times(given["op_times_s"], missing_op_times, allowed),
            op_bytes=op_bytes,
            edge_bytes=edge_bytes,
            op_transfer_s=op_seconds,
            edge_transfer_s=edge_seconds,
            static_bytes=static,
            allowed=allowed,
            given={name: stored(value) for name, value in arguments.items()},
        )

    @property
    def sends_for_itself(self) -> bool:
        """Whether edges out of one op may be several tensors."""
        return self.edge_bytes is not None or self.edge_transfer_s is not None


def stored(given: Any) -> Any:
    """An argument in JSON's types, as solutions store it: a large file by its path and fingerprint, all else whole."""
    if isinstance(given, CostFile):
        if len(given.text) > INLINE_BYTES:
            return {"file": given.path, "sha256": given.sha256}
        columns, rows, whole = _parse("", given)
        return whole if columns is None else {"columns": columns, "rows": [row for _, row in rows]}
    if isinstance(given, np.ndarray | np.generic):
        return given.tolist()
    if isinstance(given, Mapping):
        if given and all(isinstance(key, tuple) for key in given):
            return [[*map(stored, key), stored(value)] for key, value in given.items()]
        return {str(key): stored(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [stored(one) for one in given]
    if hasattr(given, "__array__"):  # of another library
        return np.asarray(given).tolist()
    return given


def _seconds(where: str, value: Any) -> float:
    return not_negative(where, value)


def _bytes(where: str, value: Any) -> int:
    return byte_count(where, value)


Rows = list[tuple[str, list[Any]]]  # (where a row stands, its cells)


def _parse(name: str, given: Any) -> tuple[list[str] | None, Rows, Any]:
    """(columns, rows, None) of a table; (None, [], the thing) of anything else. Cells of CSV: numbers, texts, None."""
    begin = f"{name}: " if name else ""
    if isinstance(given, CostFile):
        where = f"{begin}{given.path!r}"
        if Path(given.path).suffix.lower() == ".csv":
            return (*_parse_csv(where, given.text), None)
        begin, given = f"{where}: ", parse_json(given.text, where)
    if isinstance(given, Mapping) and "columns" in given and "rows" in given:
        columns, rows = given["columns"], given["rows"]
        texts = isinstance(columns, list | tuple) and all(isinstance(one, str) for one in columns)
        if not texts or not isinstance(rows, list | tuple) or set(given) - {"columns", "rows", "title", "notes"}:
            raise InputError(f"{begin}a table is {{'columns': [names], 'rows': [[cells]]}}; got {quoted(given, 80)}")
        listed = list(columns)
        found: Rows = []
        for number, row in enumerate(rows):
            if isinstance(row, Mapping) and not set(row) - set(listed):
                row = [row.get(column) for column in listed]
            if not isinstance(row, list | tuple) or len(row) != len(listed):
                raise InputError(f"{begin}rows[{number}] is {quoted(row, 80)}; give {len(listed)} cells: {listed}")
            found.append((f"{begin}rows[{number}]", list(row)))
        return listed, found, None
    if isinstance(given, list | tuple) and given and all(isinstance(row, Mapping) for row in given):
        listed = list(dict.fromkeys(str(key) for row in given for key in row))
        return listed, [(f"{begin}rows[{n}]", [row.get(key) for key in listed]) for n, row in enumerate(given)], None
    return None, [], given


def _parse_csv(where: str, text: str) -> tuple[list[str], Rows]:
    try:
        lines = list(csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True))
    except csv.Error as error:
        raise InputError(f"{where}: not CSV: {error}") from None
    numbered = [(number, row) for number, row in enumerate(lines, 1) if any(cell.strip() for cell in row)]
    if not numbered:
        raise InputError(f"{where} is empty; give a line with the columns' names, then the rows")
    columns = [cell.strip() for cell in numbered[0][1]]
    rows: Rows = []
    for number, row in numbered[1:]:
        if len(row) != len(columns):
            raise InputError(f"{where}: line {number} has {len(row)} cells; give {len(columns)}: {', '.join(columns)}")
        rows.append((f"{where}: line {number}", [_cell(cell.strip()) for cell in row]))
    return columns, rows


def _cell(text: str) -> Any:
    """A number where it is one, None where there is nothing, else the text."""
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class _Reader:
    """Reads statements on the ops of a graph and the devices of a cluster."""

    def __init__(self, graph: ComputationGraph, cluster: Cluster) -> None:
        self.graph, self.cluster = graph, cluster
        self.named: dict[str, list[int]] = {}
        for which in ("kind", "name"):  # a name counts before a kind of the same text
            found: dict[str, list[int]] = {}
            for number, device in enumerate(cluster.devices):
                found.setdefault(getattr(device, which), []).append(number)
            self.named |= found
        root = graph.view_root
        self.has_kernel = (graph.op_class != VIEW) & (graph.op_class[root] != SOURCE)

    # -- names -----------------------------------------------------------------------------------------------------

    def op(self, where: str, value: Any) -> int:
        """The index of an op that is named by its index or its label."""
        count = self.graph.num_ops
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, str) and not text.isdecimal():
            head, bracket, rest = text.partition("[")
            number, closed, _ = rest.partition("]")
            if bracket and closed and number.isdecimal() and int(number) < count:
                label = self.graph.label(int(number))
                if text in (label, f"{head}[{number}]") and label.startswith(f"{head}["):
                    return int(number)
                raise InputError(f"{where}: op is {quoted(text)}, but op {number} of the graph is {label!r}")
            raise InputError(
                f"{where}: op is {quoted(value, 80)}; give its index, 0 to {count - 1}, or its label, such as "
                f"{self.graph.label(count - 1)!r} (graphopt list ops GRAPH)"
            )
        if isinstance(text, float) and text.is_integer():
            text = int(text)
        if isinstance(text, bool) or not isinstance(text, str | int | np.integer) or not 0 <= int(text) < count:
            raise InputError(f"{where}: op is {quoted(value, 80)}; the graph has ops 0 to {count - 1}")
        return int(text)

    def devices(self, where: str, value: Any) -> list[int]:
        """The devices that an index, a name or a kind stands for."""
        text, count = value.strip() if isinstance(value, str) else value, self.cluster.num_devices
        if isinstance(text, str) and text in self.named:
            return self.named[text]
        if isinstance(text, str) and not text.isdecimal():
            raise unknown_name(f"{where}: device", text, self.named, f"(or an index, 0 to {count - 1})")
        if isinstance(text, bool) or not isinstance(text, str | int | np.integer) or not 0 <= int(text) < count:
            raise InputError(f"{where}: device is {quoted(value, 80)}; the cluster has devices 0 to {count - 1}")
        return [int(text)]

    def device_label(self, device: int) -> str:
        return f"device {device} ({self.cluster.devices[device].name})"

    # -- op times --------------------------------------------------------------------------------------------------

    def op_times(self, given: Any, missing: str, allowed: np.ndarray | None) -> np.ndarray | None:
        if given is None:
            return None
        name, partial = "op_times_s", missing == "cost_model"
        columns, rows, whole = _parse(name, given)
        if columns is not None:
            times = self._timed_rows(name, columns, rows)
        elif isinstance(whole, Mapping):
            times = self._timed_mapping(name, whole)
        else:
            times = self._timed_array(name, whole)
        real = self.has_kernel
        bad = np.argwhere(~((times >= 0) & (times < np.inf)) & real & ~np.isnan(times))
        if len(bad):
            device, op = bad[0]
            raise InputError(
                f"{name}: the time of {self.graph.label(op)} is {times[device, op]} s; give finite seconds, at least "
                f"0, for each op ({self.device_label(device)})"
            )
        if allowed is not None:  # where an op may not be, it needs no time: an invalid step takes the longest stated
            longest = np.where(np.isnan(times), -np.inf, times).max(axis=0)
            times = np.where(np.isnan(times) & ~allowed.T & (longest >= 0), longest, times)
        absent = np.argwhere(np.isnan(times) & real)
        if len(absent) and not partial:
            device, op = absent[0]
            array = columns is None and not isinstance(whole, Mapping)
            found = f"the time of {self.graph.label(op)} is {'nan s' if array else 'missing'}"
            raise InputError(
                f"{name}: {found}; give finite seconds, at least 0, for each op, or missing_op_times='cost_model' "
                f"({self.device_label(device)})"
            )
        return np.broadcast_to(np.where(real, times, 0.0), (self.cluster.num_devices, self.graph.num_ops))

    def _timed_array(self, name: str, given: Any) -> np.ndarray:
        """float64 [D, N] of an array, one a device or one a kind of device; [1, N] of one for all devices."""
        n, devices = self.graph.num_ops, self.cluster.num_devices
        kinds = list(dict.fromkeys(self.cluster.devices))
        kind_of = [kinds.index(device) for device in self.cluster.devices]
        shapes = list(dict.fromkeys([(n,), (n, devices), (n, len(kinds)), (n, 1), (len(kinds), n)]))
        values = check_numbers(name, given, *shapes)
        if values.ndim == 1:
            return values[None]
        if values.shape[0] != n:
            return values[kind_of]
        if values.shape[1] == devices:
            return values.T.copy()
        return values.T[kind_of] if values.shape[1] == len(kinds) else values.T

    def _timed_mapping(self, name: str, given: Mapping[Any, Any]) -> np.ndarray:
        n = self.graph.num_ops
        times = np.full((self.cluster.num_devices, n), np.nan)
        by_device = given and all(np.ndim(value) == 1 and not isinstance(value, Mapping) for value in given.values())
        if by_device:
            for key, value in given.items():
                for device in self.devices(name, key):
                    if not np.isnan(times[device]).all():
                        raise InputError(
                            f"{name}: {self.device_label(device)} is named twice, at last by {quoted(key)}"
                        )
                    times[device] = check_numbers(f"{name}[{key!r}]", value, (n,))
            return times
        for key, value in given.items():
            op = self.op(name, key)
            on = value if isinstance(value, Mapping) else {None: value}
            for named, seconds in on.items():
                where = f"{name}[{key!r}]" + ("" if named is None else f"[{named!r}]")
                which = range(len(times)) if named is None else self.devices(where, named)
                self._state(times, where, which, op, _seconds(where, seconds))
        return times

    def _timed_rows(self, name: str, columns: list[str], rows: Rows) -> np.ndarray:
        times = np.full((self.cluster.num_devices, self.graph.num_ops), np.nan)
        everywhere = list(range(self.cluster.num_devices))
        long = "seconds" in columns
        self._known_columns(name, rows, columns, ("op", "seconds"), ("device",) if long else None)
        at = {column: number for number, column in enumerate(columns)}
        named = [] if long else [column for column in columns if column not in ("op", "label")]
        on = {column: self.devices(name, column) for column in named}
        if not long and not on:
            raise InputError(f"{name}: columns are {', '.join(columns)}; give op and seconds, or op and one a device")
        for where, row in rows:
            op = self.op(where, row[at["op"]])
            if long:
                which = everywhere
                if "device" in at and row[at["device"]] is not None:
                    which = self.devices(where, row[at["device"]])
                self._state(times, where, which, op, _seconds(f"{where}: seconds", row[at["seconds"]]))
                continue
            for column, devices in on.items():
                if row[at[column]] is not None:
                    self._state(times, where, devices, op, _seconds(f"{where}: {column}", row[at[column]]))
        return times

    def _state(self, times: np.ndarray, where: str, devices: Iterable[int], op: int, seconds: float) -> None:
        for device in devices:
            if not np.isnan(times[device, op]):
                raise InputError(
                    f"{where}: the time of {self.graph.label(op)} on {self.device_label(device)} is stated twice; "
                    "leave one out"
                )
            times[device, op] = seconds

    def _known_columns(
        self, name: str, rows: Rows, columns: list[str], needed: Sequence[str], more: Sequence[str] | None
    ) -> None:
        """``more`` None: others are devices. A column ``label`` may be there too, and is compared with the ops'."""
        where = rows[0][0].rpartition(": ")[0] if rows else name
        for column in columns:
            if columns.count(column) > 1:
                raise InputError(f"{where}: column {column!r} is there twice")
            if more is not None and column not in (*needed, *more, "label"):
                raise unknown_name(f"{where}: column", column, (*needed, *more))
        for column in needed if more is not None else needed[:1]:
            if column not in columns:
                raise InputError(f"{where}: column {column!r} is missing; the columns are {', '.join(columns)}")
        if "label" in columns and "op" in columns:
            op, label = columns.index("op"), columns.index("label")
            for where, row in rows:
                at = self.op(where, row[op])
                if row[label] is not None and row[label] != self.graph.label(at):
                    raise InputError(
                        f"{where}: label is {quoted(row[label], 80)}, but op {at} of the graph is "
                        f"{self.graph.label(at)!r}; is it of another graph?"
                    )

    # -- tensors and static memory ---------------------------------------------------------------------------------

    def tensors(
        self,
        name: str,
        given: Any,
        unit: str,
        check: Callable[[str, Any], Any],
        dtype: Any,
        edges: bool = True,
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What is stated of ops, [N], and of edges, [E]; -1 where nothing is."""
        if given is None:
            return None, None
        columns, rows, whole = _parse(name, given)
        n = self.graph.num_ops
        if columns is not None:
            of_edges = edges and "op" not in columns
            named = ("src", "dst", unit) if of_edges else ("op", unit)
            self._known_columns(name, rows, columns, named, ())
            order = [columns.index(one) for one in named]
            rows = [(where, [row[at] for at in order]) for where, row in rows]
        elif isinstance(whole, Mapping):
            keys = {isinstance(key, tuple) for key in whole}
            if len(keys) > 1 or (not edges and True in keys):
                raise InputError(f"{name}: its keys are {quoted([*whole][:4], 80)}; give ops" + " or edges" * edges)
            of_edges = True in keys
            rows = [(f"{name}[{key!r}]", [*(key if of_edges else (key,)), value]) for key, value in whole.items()]
        else:
            values = np.asarray(_listed(name, whole))
            of_edges = edges and values.ndim == 2 and values.shape[1] == 3
            if of_edges:
                rows = [(f"{name}[{number}]", list(row)) for number, row in enumerate(_listed(name, whole))]
            else:
                shape = f"[{n}], one an op" + f", or rows of (src, dst, {unit})" * edges
                if values.shape != (n,) or values.dtype.kind not in "iuf":
                    raise InputError(
                        f"{name} has shape {values.shape} and type {values.dtype}, expected numbers {shape}"
                    )
                rows = [(f"{name}[{op}]", [op, value]) for op, value in enumerate(values.tolist())]
        out = np.full(len(self.graph.edge_src) if of_edges else n, -1, dtype)
        for where, row in rows:
            if of_edges and len(row) != 3:
                raise InputError(f"{where}: give the producing and the reading op")
            at = self.edge(where, *row[:2]) if of_edges else self.op(where, row[0])
            if out[at] >= 0:
                raise InputError(f"{where}: {' -> '.join(map(str, row[:-1]))} is stated twice; leave one out")
            out[at] = check(f"{where}: {unit}", row[-1])
        return (None, out) if of_edges else (out, None)

    def edge(self, where: str, src: Any, dst: Any) -> int:
        graph = self.graph
        source, target = self.op(f"{where}: src", src), self.op(f"{where}: dst", dst)
        begin, end = graph.succ_ptr[source], graph.succ_ptr[source + 1]
        at = int(begin + np.searchsorted(graph.edge_dst[begin:end], target))
        if at == end or graph.edge_dst[at] != target:
            raise InputError(
                f"{where}: there is no edge from {graph.label(source)} to {graph.label(target)}; leave it out"
            )
        return at

    # -- allowed devices -------------------------------------------------------------------------------------------

    def allowed(self, given: Any) -> np.ndarray | None:
        if given is None:
            return None
        name = "allowed_devices"
        columns, rows, whole = _parse(name, given)
        n, devices = self.graph.num_ops, self.cluster.num_devices
        if columns is not None:
            self._known_columns(name, rows, columns, ("op", "device"), ())
            op, device = columns.index("op"), columns.index("device")
            stated: dict[Any, list[int]] = {}
            for where, row in rows:
                key = self._ops(where, row[op])
                mine = stated.setdefault(key, [])
                for one in self.devices(where, row[device]):
                    if one in mine:
                        raise InputError(
                            f"{where}: {row[op]} on {self.device_label(one)} is stated twice; leave one out"
                        )
                    mine.append(one)
        elif isinstance(whole, Mapping):
            stated = {}
            for named, on in whole.items():
                where = f"{name}[{named!r}]"
                key = self._ops(where, named)
                if key in stated:
                    raise InputError(f"{where}: it is stated twice; leave one out")
                listed = on if isinstance(on, list | tuple | np.ndarray) else [on]
                stated[key] = [one for item in listed for one in self.devices(where, item)]
        else:
            values = np.asarray(_listed(name, whole))
            if values.shape != (n, devices) or values.dtype.kind not in "biu" or not np.isin(values, (0, 1)).all():
                raise InputError(
                    f"{name} has shape {values.shape} and type {values.dtype}, expected true or false {(n, devices)}: "
                    "a row an op, a column a device"
                )
            return self._some_device(name, values.astype(bool))
        allowed = np.ones((n, devices), bool)
        of_module = sorted((key for key in stated if isinstance(key, str)), key=lambda path: (len(path), path))
        for key in [*of_module, *(key for key in stated if not isinstance(key, str))]:  # the inner ones, then ops, win
            ops: Any = self._in_module(key) if isinstance(key, str) else [key]
            allowed[ops] = np.isin(np.arange(devices), stated[key])
        return self._some_device(name, allowed)

    def _ops(self, where: str, value: Any) -> int | str:
        """The index of an op, or the path of a module."""
        if isinstance(value, str) and not value.strip().isdecimal():
            path = value.strip()
            if self._in_module(path).any():
                return path
            if "[" not in path:
                raise unknown_name(f"{where}: op or module", path, [one for one in self.graph.modules if one])
        return self.op(where, value)

    def _in_module(self, path: str) -> np.ndarray:
        """bool [N]: whether an op comes from a module, or from one inside it."""
        inside = [one == path or path == "" or one.startswith(f"{path}.") for one in self.graph.modules]
        return np.array(inside)[self.graph.module]

    def _some_device(self, name: str, allowed: np.ndarray) -> np.ndarray:
        nowhere = np.flatnonzero(~allowed.any(axis=1))
        if len(nowhere):
            raise InputError(f"{name}: {self.graph.label(nowhere[0])} is allowed on no device; name at least one")
        return allowed


def _listed(name: str, value: Any) -> Any:
    """Something that an array can be made of."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise InputError(f"{name} must be an array, a mapping, or a .csv or .json file; got {quoted(value, 80)}")
    try:
        np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is no array: {str(error).splitlines()[0]}; give rows of equal length") from None
    return value
