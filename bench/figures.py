"""What is measured, against what, and what was promised: one table. Samples are collected under a figure's key; the engine's and the floor's apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

PERCENTILES = (50, 95, 99)


class Kind(Enum):
    """How a target is checked, at the medians unless a figure says otherwise. RATIO: engine <= value x floor. RATE: engine >= value x floor. PLUS: engine <=
    floor + value. MOST: engine <= value. LEAST: engine >= value. ALL: every attempt succeeds. NONE: shown for information."""

    RATIO = "ratio"
    RATE = "rate"
    PLUS = "plus"
    MOST = "most"
    LEAST = "least"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True)
class Figure:
    """One line of the table. `reference` says what the second column is, where it is not the bare script; `percent` at which percentile the target holds."""

    key: str
    title: str
    unit: str
    kind: Kind = Kind.NONE
    value: float = 0.0
    reference: str = "floor"
    percent: int = 50

    @property
    def target(self) -> str:
        """As the table shows it."""
        words = {
            Kind.RATIO: f"<= {self.value:g} x {self.reference}",
            Kind.RATE: f">= {self.value:g} x {self.reference}",
            Kind.PLUS: f"<= {self.reference} + {self.value:g} {self.unit}",
            Kind.MOST: f"<= {self.value:g} {self.unit}",
            Kind.LEAST: f">= {self.value:g} {self.unit}",
            Kind.ALL: "all succeed",
            Kind.NONE: "",
        }[self.kind]
        return words if self.percent == 50 else f"p{self.percent} {words}"

    def holds(self, engine: Sequence[float], floor: Sequence[float], failed: int) -> bool | None:
        """None without a target or samples."""
        if self.kind is Kind.ALL:
            return failed == 0 if engine or failed else None
        alone = self.kind in (Kind.MOST, Kind.LEAST)
        if self.kind is Kind.NONE or not engine or not (alone or floor):
            return None
        ours = percentile(engine, self.percent)
        if alone:
            return ours <= self.value if self.kind is Kind.MOST else ours >= self.value
        theirs = percentile(floor, self.percent)
        if self.kind is Kind.PLUS:
            return ours <= theirs + self.value
        return ours <= self.value * theirs if self.kind is Kind.RATIO else ours >= self.value * theirs


TABLE = (
    Figure("start", "start to first agent reply", "ms", Kind.RATIO, 1.1),
    Figure("first_result", "start to first command's result, pool off", "ms", Kind.RATIO, 1.1),
    Figure("pooled", "create to first command's result, from the pool", "ms", Kind.RATIO, 0.1),
    Figure("pool_misses", "creates that found the pool empty", "of all", Kind.NONE),
    Figure("first_exec", "first exec after a start, `sh -c true`", "ms", Kind.RATIO, 1.0),
    Figure("exec_true", "exec of `true`", "ms", Kind.PLUS, 3.0, "in-guest spawn"),
    Figure("exec_bare", "exec of `true`", "ms"),
    Figure("spawn_inside", "in-guest spawn of `true` by a process in the sandbox", "ms", reference="in-guest spawn"),
    Figure("exec_shell", "exec of `sh -c true`", "ms"),
    Figure("pause", "durable pause, idle, 512 MiB", "ms", Kind.MOST, 30.0),
    Figure("pause_size", "stored by that pause, memory", "MB"),
    Figure("pause_rate", "durable pause with 256 MiB dirty", "MB/s", Kind.RATE, 0.8, "bare write loop"),
    Figure("freed_size", "stored beyond idle after writing and freeing 300 MB of RAM and of files", "MB", Kind.MOST, 20.0),
    Figure("resume", "resume of that idle sandbox", "ms", Kind.RATIO, 1.2, "create"),
    Figure("resume_bare", "resume of that idle sandbox", "ms", Kind.NONE, reference="bare resume"),
    Figure("resume_layer", "resume with a 48 MiB layer", "ms", Kind.NONE, reference="bare resume"),
    Figure("put_back_rate", "bytes put back by it, over an idle resume's time", "MB/s", Kind.RATE, 0.8, "bare put-back loop"),
    Figure("pause_big", "durable pause with 1 GiB dirty", "MB/s", Kind.RATE, 0.8, "bare write loop"),
    Figure("resume_big", "resume with 1 GiB dirty, re-based", "ms", Kind.RATIO, 1.5, "create"),
    Figure("fork", "fork of 10", "ms", Kind.RATIO, 1.15, "10 bare starts"),
    Figure("fork_bare", "fork of 10", "ms", Kind.NONE, reference="bare save and 10 starts"),
    Figure("fork_stall", "fork of 1: longest time the source did not answer", "ms", Kind.MOST, 30.0),
    Figure("fork_big", "fork of 10 with 1 GiB dirty", "ms", Kind.RATIO, 1.15, "10 bare starts"),
    Figure("fork_big_bare", "fork of 10 with 1 GiB dirty", "ms", Kind.NONE, reference="bare flatten and 10 starts"),
    Figure("fork_big_stall", "fork of 1 with 1 GiB dirty: longest time the source did not answer", "ms"),
    Figure("burst", "30 starts at once, wall", "ms", Kind.RATIO, 1.2, "30 bare starts"),
    Figure("burst_each", "30 starts at once, each", "ms", Kind.ALL),
    Figure("density", "sandboxes alive at once", "", Kind.ALL),
    Figure("idle_memory", "memory per idle sandbox beyond its VMM (daemon and keeper)", "MB", Kind.MOST, 1.0),
    Figure("idle_cpu", "CPU per idle sandbox beyond its VMM", "% of a core", Kind.MOST, 0.02),
    Figure("vmm_memory", "private memory of an idle VMM", "MB"),
    Figure("vmm_cpu", "CPU of an idle VMM", "% of a core"),
    Figure("cell_first", "code interpreter: first run_code after a create", "ms", Kind.RATIO, 1.5, "the tenth"),
    Figure("cell_pooled", "code interpreter: first run_code of a sandbox from the pool", "ms", Kind.RATIO, 1.5, "the tenth"),
    Figure("upload", "file upload, 64 MiB", "MB/s", Kind.RATE, 0.8, "raw virtio-serial"),
    Figure("upload_bare", "file upload, 64 MiB", "MB/s", reference="bare loop into a file"),
    Figure("upload_again", "file upload, 64 MiB, into memory that the guest has used before", "MB/s", reference="raw virtio-serial"),
    Figure("download", "file download, 64 MiB", "MB/s", Kind.RATE, 0.8, "raw virtio-serial"),
    Figure("download_bare", "file download, 64 MiB", "MB/s", reference="bare loop out of a file"),
    Figure("proxied", "request to a web server in the sandbox, through HTTP and the proxy", "ms", Kind.PLUS, 3.0, "the guest's channel directly"),
)
_MANY = "with 10 on record"
OVER_HTTP = (
    Figure("h_first_result", "create to first command's result, pool off", "ms", Kind.RATIO, 1.15),
    Figure("h_create", "create, pool off", "ms", reference="start"),
    Figure("h_pooled", "create to first command's result, from the pool, a create every 2 s", "ms", Kind.RATIO, 0.15),
    Figure("h_pool_misses", "creates of these that found the pool empty", "of all"),
    Figure("h_pool_pressed", "the same at 1.5 times the refill rate", "ms", Kind.RATIO, 1.0, "pool off", 95),
    Figure("h_pool_pressed_misses", "creates of these that found the pool empty", "of all"),
    Figure("h_first_exec", "first exec after a create, `sh -c true`", "ms", Kind.RATIO, 1.0),
    Figure("h_exec_true", "exec of `true`", "ms", Kind.PLUS, 5.0, "in-guest spawn"),
    Figure("h_exec_engine", "exec of `true`", "ms", reference="bare exec"),
    Figure("h_first_byte", "stream: a byte of input to the same byte of output, there and back", "ms", Kind.MOST, 5.0),
    Figure("h_pause", "durable pause, idle, 512 MiB", "ms", Kind.MOST, 40.0),
    Figure("h_resume", "resume of that sandbox", "ms", Kind.RATIO, 1.2, "create"),
    Figure("h_sequential", "30 creates one after another, each", "ms", Kind.ALL),
    Figure("h_staggered", "30 creates, one every 200 ms, each", "ms", Kind.ALL),
    Figure("h_burst", "30 creates at once, wall", "ms", Kind.RATIO, 1.2, "30 bare starts"),
    Figure("h_burst_each", "30 creates at once, each", "ms", Kind.ALL),
    Figure("h_refused", "creates beyond the room, 60 at once: the last refusal", "ms", Kind.MOST, 1000.0),
    Figure("h_admitted", "those of them that were admitted, each", "ms", Kind.ALL),
    Figure("h_fork", "fork of 10", "ms", Kind.RATIO, 1.2, "10 bare starts"),
    Figure("h_fork_big", "fork of 10 with 1 GiB dirty", "ms", Kind.RATIO, 1.2, "10 bare starts"),
    Figure("h_upload", "file upload, 64 MiB", "MB/s", Kind.RATE, 0.8, "raw virtio-serial"),
    Figure("h_download", "file download, 64 MiB", "MB/s", Kind.RATE, 0.8, "raw virtio-serial"),
    Figure("h_upload_memory", "growth of the server's memory while 1 GiB is uploaded", "MB", Kind.MOST, 32.0),
    Figure("h_download_memory", "growth of the server's memory while 1 GiB is downloaded", "MB", Kind.MOST, 32.0),
    Figure("e_upload_memory", "the same through E2B's `/files`, upload", "MB", Kind.MOST, 32.0),
    Figure("e_download_memory", "the same through E2B's `/files`, download", "MB", Kind.MOST, 32.0),
    Figure("h_gets", "authenticated GET of a sandbox, server on one core, SQLite", "a second", Kind.LEAST, 1500.0),
    Figure("h_get_cpu", "the server's CPU time for one", "us", Kind.MOST, 667.0),
    Figure("h_get_half", "GET at 750 a second", "ms", Kind.MOST, 25.0, percent=99),
    Figure("h_get_pausing", "GET at 750 a second while a 1 GiB pause runs", "ms", Kind.MOST, 25.0, percent=99),
    Figure("h_get_many", "CPU time of a GET with 10,000 sandboxes on record", "us", Kind.RATIO, 1.1, _MANY),
    Figure("h_list_many", "CPU time of a list of 10 with 10,000 sandboxes on record", "us", Kind.RATIO, 1.1, _MANY),
    Figure("p_gets", "authenticated GET of a sandbox, server on one core, PostgreSQL on the other", "a second", Kind.LEAST, 1500.0),
    Figure("p_get_cpu", "the server's CPU time for one", "us", Kind.MOST, 667.0),
    Figure("h_ready", "`torpor serve` until it serves, templates present", "ms", Kind.MOST, 2000.0),
    Figure("h_help", "`torpor --help`", "ms", Kind.MOST, 150.0),
    Figure("h_adopt", "`torpor serve` until it serves, running sandboxes adopted", "ms", Kind.MOST, 2000.0),
    Figure("h_adopted", "sandboxes that ran on through that restart", "", Kind.ALL),
    Figure("e_first_result", "create to first command's result through E2B's Python SDK", "ms", Kind.RATIO, 1.15, "torpor.client"),
    Figure("e_cell_pooled", "E2B's SDK: first run_code after a create, server as it comes", "ms", Kind.RATIO, 1.5, "the tenth"),
    Figure("e_cell_first", "E2B's SDK: first run_code after a create, pool off", "ms", Kind.RATIO, 1.5, "the tenth"),
)
FIGURES = {figure.key: figure for figure in (*TABLE, *OVER_HTTP)}


def percentile(samples: Sequence[float], percent: int) -> float:
    """By nearest rank; the median of an even number is the mean of the two in the middle."""
    row = sorted(samples)
    if percent == 50 and len(row) % 2 == 0:
        return (row[len(row) // 2 - 1] + row[len(row) // 2]) / 2
    return row[max(0, math.ceil(len(row) * percent / 100) - 1)]


@dataclass
class Samples:
    """All that was measured in one run. A failed attempt has no sample but counts, and keeps its error."""

    engine: dict[str, list[float]] = field(default_factory=dict)
    floor: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)

    def add(self, key: str, engine: float | None = None, floor: float | None = None) -> None:
        for rows, sample in ((self.engine, engine), (self.floor, floor)):
            if sample is not None:
                rows.setdefault(FIGURES[key].key, []).append(sample)

    def fail(self, key: str, error: BaseException) -> None:
        self.failed.setdefault(FIGURES[key].key, []).append(f"{type(error).__name__}: {error}")
