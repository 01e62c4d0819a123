"""What measuring tools write, read as numbers of a hardware profile.

nvbandwidth JSON (``-j``), fio JSON (``--output-format=json``), ``nvidia-smi -q -x``, ``dcgmi discovery -l``, STREAM and
Intel MLC text. A number that a tool prints but that answers another question than the profile asks is not taken:
nvbandwidth's latency chases pointers through 2 MiB, which says nothing of a table.
"""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tiercast_profiles.errors import BadInput
from tiercast_profiles.units import MB, MIB, NS_PER_US, bytes_to_gb

KNOWN = "nvbandwidth JSON, fio JSON, nvidia-smi -q -x XML, dcgmi discovery -l, STREAM text, Intel MLC text"
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}  # fio: k is 1024 unless kb_base says otherwise


@dataclass(frozen=True, slots=True)
class Stated:
    """One number or name a file states: ``path`` in the profile, ``what`` the tool calls it."""

    path: str
    value: float | int | str
    what: str
    low: float | None = None
    high: float | None = None


def read_report(text: str, label: str) -> tuple[Stated, ...]:
    """What one file states.

    Raises:
        BadInput: no tool of the list wrote it, it is cut off, or it holds nothing that a profile asks for.
    """
    try:
        stated = tuple(_reader(text, label))
    except (AttributeError, KeyError, TypeError, ValueError):  # a list where the tool writes a mapping, and the like
        raise BadInput(f"{label}: not laid out as the tool writes it; give its unchanged output") from None
    if not stated:
        raise BadInput(f"{label}: holds no number that a hardware profile asks for")
    for item in stated:
        if not isinstance(item.value, str) and not (math.isfinite(item.value) and item.value > 0):
            raise BadInput(f"{label}: {item.what}: {item.value} is no positive number")
    return stated


def _reader(text: str, label: str) -> Iterable[Stated]:
    start = text.find("\n{") + 1 if '"fio version"' in text else 0  # fio prints its notes in front of the JSON
    if text[start:].lstrip().startswith("{"):
        data = _json(text[start:], label)
        if "nvbandwidth" in data:
            return _nvbandwidth(data["nvbandwidth"], label)
        if "fio version" in data:
            return _fio(data, label)
    elif "<nvidia_smi_log" in text:
        return _nvidia_smi(text, label)
    elif "Memory Latency Checker" in text:
        return _mlc(text, label)
    elif "Best Rate MB/s" in text:
        return _stream(text, label)
    elif "GPU ID" in text and "Device Information" in text:
        return _dcgmi(text, label)
    raise BadInput(f"{label}: not the output of a known tool; known: {KNOWN}")


def _json(text: str, label: str) -> dict[str, Any]:  # Any: what a tool wrote
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{label}: not complete JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except (RecursionError, ValueError) as error:
        raise BadInput(f"{label}: not readable JSON ({error})") from None
    return data if isinstance(data, dict) else {}


def _nvbandwidth(body: Any, label: str) -> Iterable[Stated]:  # Any: what the tool wrote
    """GB/s are 1e9. A matrix has a column per GPU; the band is the slowest and the fastest of them."""
    wanted = {
        "host_to_device_memcpy_ce": "host_to_device.bandwidth_gb_per_s",
        "device_to_host_memcpy_ce": "device_to_host.bandwidth_gb_per_s",
    }
    cases = body.get("testcases") if isinstance(body, dict) else None
    if not isinstance(cases, list):
        raise BadInput(f"{label}: nvbandwidth.testcases: missing; write the file with nvbandwidth -j")
    for case in cases:
        name = case.get("name") if isinstance(case, dict) else None
        if name not in wanted or case.get("status") != "Passed":
            continue
        cells = [cell for row in case.get("bandwidth_matrix", []) for cell in row if cell != "N/A"]
        values = [_number(cell, f"{label}: {name}") for cell in cells]
        if values:
            yield Stated(wanted[name], median(values), f"nvbandwidth {name}", min(values), max(values))


def _fio(data: dict[str, Any], label: str) -> Iterable[Stated]:  # Any: what the tool wrote
    """Random reads past the page cache: the rate of the deepest queue, the median time of a single read."""
    common = data.get("global options", {})
    rates: dict[tuple[object, object], float] = defaultdict(float)  # by group and name
    reads: dict[tuple[object, object], float] = defaultdict(float)
    single_us, block = None, None
    for job in data.get("jobs", []):
        options = {**common, **job.get("job options", {})}
        name = f"{label}: fio job {job.get('jobname', '?')!r}"
        if options.get("rw") not in ("randread", "read"):
            continue
        if str(options.get("direct", "0")) != "1":
            raise BadInput(f"{name}: read through the page cache, so memory was measured; run it with direct=1")
        read = job.get("read", {})
        # without group_reporting every process of a job has an entry; those of one group ran at once
        together = job.get("groupid"), job.get("jobname")
        rates[together] += _number(read.get("bw_bytes"), f"{name}: bw_bytes")
        if options["rw"] != "randread":
            continue
        reads[together] += _number(read.get("iops"), f"{name}: iops")
        block = min(block or 1 << 62, _size(options.get("bs", "4k"), name))
        if int(options.get("iodepth", 1)) * int(options.get("numjobs", 1)) == 1:
            middle = read.get("clat_ns", {}).get("percentile", {}).get("50.000000")
            single_us = _number(middle, f"{name}: clat_ns.percentile.50") / NS_PER_US
    best_rate, best_reads = max(rates.values(), default=0.0), max(reads.values(), default=0.0)
    if best_rate:
        yield Stated("nvme.read_bandwidth_gb_per_s", bytes_to_gb(best_rate), "fio bw_bytes, fastest job")
    if best_reads and block is not None:
        yield Stated("nvme.max_reads_per_s", best_reads, "fio iops of randread, fastest job")
        yield Stated("nvme.read_granularity_bytes", block, "fio bs of randread, smallest job")
    if single_us is not None:
        yield Stated("nvme.latency_us", single_us, "fio clat_ns 50th percentile of randread at one read in flight")


def _nvidia_smi(text: str, label: str) -> Iterable[Stated]:
    if "<!ENTITY" in text:
        raise BadInput(f"{label}: defines XML entities, which nvidia-smi does not write")
    try:
        gpus = ET.fromstring(text).findall("gpu")
    except ET.ParseError as error:
        raise BadInput(f"{label}: not complete XML ({error})") from None
    if not gpus:
        raise BadInput(f"{label}: lists no GPU")
    names = {(gpu.findtext("product_name") or "").strip() for gpu in gpus}
    if len(names) != 1:
        raise BadInput(f"{label}: lists different GPUs ({', '.join(sorted(names))}); a profile is of one product")
    yield Stated("device.product_name", names.pop(), "nvidia-smi product_name")
    yield Stated("device.num_per_host", len(gpus), "nvidia-smi number of GPUs")
    sizes = [value for gpu in gpus if (value := _with_unit(gpu.findtext("fb_memory_usage/total"), "MiB"))]
    if sizes:
        size = round(bytes_to_gb(min(sizes) * MIB), 3)
        yield Stated("device.memory_capacity_gb", size, "nvidia-smi fb_memory_usage total")
    for section in ("gpu_power_readings", "power_readings"):
        limits = [value for gpu in gpus if (value := _with_unit(gpu.findtext(f"{section}/default_power_limit"), "W"))]
        if limits:
            yield Stated("device.power_w", min(limits), "nvidia-smi default_power_limit")
            break


def _dcgmi(text: str, label: str) -> Iterable[Stated]:
    names = re.findall(r"\|\s*\d+\s*\|\s*Name:\s*(.+?)\s*\|", text)
    if not names or len(set(names)) != 1:
        raise BadInput(f"{label}: give the output of dcgmi discovery -l of a host with GPUs of one product")
    yield Stated("device.product_name", names[0], "dcgmi Name")
    yield Stated("device.num_per_host", len(names), "dcgmi number of GPUs")


def _stream(text: str, label: str) -> Iterable[Stated]:
    """MB are 1e6. The value is Triad, the band the slowest and fastest of the four kernels."""
    rates = {
        kernel: _number(rate, f"{label}: {kernel}") * MB
        for kernel, rate in re.findall(r"^(Copy|Scale|Add|Triad):\s+(\S+)", text, re.MULTILINE)
    }
    if set(rates) != {"Copy", "Scale", "Add", "Triad"}:
        raise BadInput(f"{label}: STREAM prints Copy, Scale, Add and Triad; this file has {', '.join(rates) or 'none'}")
    low, value, high = (bytes_to_gb(rate) for rate in (min(rates.values()), rates["Triad"], max(rates.values())))
    yield Stated("host.memory_bandwidth_gb_per_s", value, "STREAM Triad, best rate", low, high)


def _mlc(text: str, label: str) -> Iterable[Stated]:
    """MB are 1e6. Remote reads by the ratio of idle latencies: own node over the other."""
    reads = re.search(r"^\s*ALL Reads\s*:\s*(\S+)", text, re.MULTILINE)
    if reads is not None:
        rate = bytes_to_gb(_number(reads[1], f"{label}: ALL Reads") * MB)
        yield Stated("host.memory_bandwidth_gb_per_s", rate, "MLC peak injection bandwidth, ALL Reads")
    latencies = text.partition("Measuring idle latencies")[2].partition("Measuring Peak")[0]
    rows = [
        [_number(cell, f"{label}: idle latency") for cell in cells.split()]
        for cells in re.findall(r"^[ \t]*\d+[ \t]+(\d+\.\d+.*)$", latencies, re.MULTILINE)
    ]
    if not rows:
        return
    if any(len(row) != len(rows) for row in rows):
        raise BadInput(f"{label}: the matrix of idle latencies is cut off")
    yield Stated("host.num_numa_nodes", len(rows), "MLC idle latency matrix, number of nodes")
    ratios = [row[i] / row[j] for i, row in enumerate(rows) for j in range(len(rows)) if i != j]
    if ratios:
        low, high = (min(1.0, value) for value in (min(ratios), max(ratios)))
        value = min(1.0, median(ratios))
        yield Stated("host.remote_numa_speed_ratio", value, "MLC idle latency, own node over the other", low, high)


def _number(value: object, label: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise BadInput(f"{label}: {value!r} is no number") from None
    if not math.isfinite(number):
        raise BadInput(f"{label}: {value!r} is no finite number")
    return number


def _with_unit(text: str | None, unit: str) -> float | None:
    """A value such as ``143771 MiB``; None for ``N/A`` and what else the driver does not tell."""
    words = (text or "").split()
    return float(words[0]) if len(words) == 2 and words[1] == unit and re.fullmatch(r"[\d.]+", words[0]) else None


def _size(text: object, label: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg]?)(?:i?b)?", str(text).lower())
    if match is None:
        raise BadInput(f"{label}: bs {text!r} is no size")
    return int(match[1]) * _SIZES[match[2]]
