"""Files of other tools become a profile: each number with its file, nothing invented, every malformed file one line.

The samples are written by hand after the published formats; their figures are made up for the test.
"""

import datetime
import json
import os

import pytest

from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.machine_import import build_profile, read_reports
from tiercast_profiles.machine_reports import read_report
from tiercast_profiles.store import load_hardware, to_yaml, write_text

DAY = datetime.date(2026, 11, 25)
NVBANDWIDTH = {
    "nvbandwidth": {
        "CUDA Runtime Version": 12080,
        "Driver Version": "570.124",
        "git_version": "v0.8",
        "testcases": [
            {
                "name": "host_to_device_memcpy_ce",
                "bandwidth_description": "memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)",
                "bandwidth_matrix": [["55.10", "55.62", "54.90", "55.48"]],
                "status": "Passed",
                "sum": 221.1,
            },
            {"name": "device_to_host_memcpy_ce", "bandwidth_matrix": [["57.2", "N/A"]], "status": "Passed"},
            {"name": "host_device_latency_sm", "bandwidth_matrix": [["772.6"]], "status": "Passed"},
            {"name": "device_to_device_memcpy_read_ce", "status": "Waived"},
        ],
    }
}
FIO = {
    "fio version": "fio-3.36",
    "timestamp": 1764000000,
    "global options": {"direct": "1", "ioengine": "io_uring", "bs": "4k"},
    "jobs": [
        {
            "jobname": "one",
            "job options": {"rw": "randread", "iodepth": "1"},
            "read": {"bw_bytes": 51_200_000, "iops": 12_500.5, "clat_ns": {"percentile": {"50.000000": 74_240}}},
        },
        {
            "jobname": "deep",
            "job options": {"rw": "randread", "iodepth": "64", "numjobs": "16"},
            "read": {"bw_bytes": 11_468_800_000, "iops": 2_800_000, "clat_ns": {}},
        },
        {
            "jobname": "stream",
            "job options": {"rw": "read", "bs": "1m"},
            "read": {"bw_bytes": 13_700_000_000, "iops": 13_065},
        },
    ],
}
GPU = """  <gpu id="00000000:{bus}:00.0">
    <product_name>NVIDIA H100 80GB HBM3</product_name>
    <fb_memory_usage><total>81559 MiB</total><reserved>616 MiB</reserved></fb_memory_usage>
    <gpu_power_readings><default_power_limit>700.00 W</default_power_limit></gpu_power_readings>
  </gpu>
"""
SMI = (
    '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
    + GPU.format(bus="1B")
    + GPU.format(bus="43")
    + "</nvidia_smi_log>\n"
)
DCGMI = """2 GPUs found.
+--------+----------------------------------------------------------------------+
| GPU ID | Device Information                                                   |
+--------+----------------------------------------------------------------------+
| 0      | Name: NVIDIA H100 80GB HBM3                                          |
|        | PCI Bus ID: 00000000:1B:00.0                                         |
| 1      | Name: NVIDIA H100 80GB HBM3                                          |
|        | PCI Bus ID: 00000000:43:00.0                                         |
+--------+----------------------------------------------------------------------+
0 NvSwitches found.
"""
STREAM = """-------------------------------------------------------------
STREAM version $Revision: 5.10 $
Number of Threads counted = 112
Function    Best Rate MB/s  Avg time     Min time     Max time
Copy:          480012.5     0.035790     0.035791     0.035793
Scale:         471900.0     0.036405     0.036406     0.036410
Add:           498100.1     0.051735     0.051736     0.051739
Triad:         497330.7     0.051815     0.051816     0.051820
-------------------------------------------------------------
Solution Validates: avg error less than 1.000000e-13 on all three arrays
"""
MLC = """Intel(R) Memory Latency Checker - v3.11
Measuring idle latencies for random access (in ns)...
                Numa node
Numa node            0       1
       0         112.5   201.0
       1         200.4   113.1

Measuring Peak Injection Memory Bandwidths for the system
Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)
ALL Reads        :      498112.3
3:1 Reads-Writes :      451023.8
"""
SAMPLES = {
    "nvbandwidth.json": json.dumps(NVBANDWIDTH),
    "fio.json": json.dumps(FIO),
    "smi.xml": SMI,
    "dcgmi.txt": DCGMI,
    "stream.txt": STREAM,
    "mlc.txt": MLC,
}


def put(folder, *names, **texts):
    """Files of the samples, or of other texts under their names."""
    paths = []
    for name in names:
        path = folder / name
        path.write_text(texts.get(name.partition(".")[0], SAMPLES.get(name, "")), encoding="utf-8")
        paths.append(str(path))
    return paths


def build(folder, *names, base="h100-sxm"):
    reports = read_reports(put(folder, *names), DAY)
    return build_profile(reports, None if base is None else load_hardware(base), "my-box")


def test_a_profile_of_five_tools_says_of_each_number_where_it_is_from(tmp_path):
    profile = build(tmp_path, "nvbandwidth.json", "fio.json", "smi.xml", "dcgmi.txt", "stream.txt")
    link = profile.host_to_device.bandwidth_gb_per_s
    assert (link.low, link.value, link.high) == (54.9, 55.29, 55.62)
    assert profile.device_to_host.bandwidth_gb_per_s.value == 57.2  # a cell that is N/A is no zero
    assert profile.nvme.max_reads_per_s.value == 2_800_000
    assert profile.nvme.read_bandwidth_gb_per_s.value == 13.7
    assert profile.nvme.latency_us.value == 74.24
    assert profile.nvme.read_granularity_bytes == 4096
    assert profile.device.num_per_host == 2
    assert profile.device.memory_capacity_gb.value == 85.521  # 81,559 MiB
    assert profile.device.power_w.value == 700
    memory = profile.host.memory_bandwidth_gb_per_s
    assert (memory.low, memory.value, memory.high) == (471.9, 497.331, 498.1)
    source = profile.source_of("nvme.latency_us")
    assert (source.kind, source.mark, source.date) == ("measured", "M", DAY)
    assert source.source.endswith("in fio.json")
    # what no file says is the base's, with the base's evidence; no latency of 2 MiB has become that of a lookup
    base = load_hardware("h100-sxm")
    assert profile.host_to_device.latency_us == base.host_to_device.latency_us
    assert profile.source_of("device.dense_tflops.bf16") == base.source_of("device.dense_tflops.bf16")
    assert profile.lookups == base.lookups
    assert set(profile.sources) == set(profile.evidence.values())


def test_processes_of_one_fio_job_read_at_once_and_jobs_one_after_another(tmp_path):
    """Without group_reporting every process has an entry of its own."""
    entry = {"jobname": "deep", "groupid": 0, "job options": {"rw": "randread", "iodepth": "64", "numjobs": "4"}}
    jobs = [entry | {"read": {"bw_bytes": 10**9, "iops": 200_000}}] * 4
    jobs.append(entry | {"groupid": 1, "read": {"bw_bytes": 3 * 10**9, "iops": 700_000}})
    report = json.dumps({**FIO, "jobs": jobs})
    paths = put(tmp_path, "fio.json", fio=report)
    profile = build_profile(read_reports(paths, DAY), load_hardware("h100-sxm"), "my-box")
    assert profile.nvme.max_reads_per_s.value == 800_000
    assert profile.nvme.read_bandwidth_gb_per_s.value == 4.0


def test_mlc_gives_memory_and_the_other_socket(tmp_path):
    host = build(tmp_path, "mlc.txt").host
    assert host.memory_bandwidth_gb_per_s.value == 498.112
    assert host.num_numa_nodes == 2
    ratio = host.remote_numa_speed_ratio
    assert (ratio.low, ratio.high) == pytest.approx((112.5 / 201.0, 113.1 / 200.4), rel=1e-5)


def test_the_profile_reads_back_as_it_was_written(tmp_path):
    profile = build(tmp_path, "nvbandwidth.json", "mlc.txt")
    write_text(tmp_path / "box.yaml", to_yaml(profile))
    assert load_hardware(str(tmp_path / "box.yaml")) == profile


def test_a_file_is_dated_by_its_own_day(tmp_path):
    (path,) = put(tmp_path, "stream.txt")
    os.utime(path, (1_760_000_000, 1_760_000_000))
    assert read_reports([path])[0].date == datetime.date(2025, 10, 9)


def test_without_a_base_what_is_missing_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"the files do not say device.kind, .* and \d+ more; give --base NAME"):
        build(tmp_path, "smi.xml", base=None)


def test_another_product_than_the_base_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"smi.xml: is of 'NVIDIA H100 80GB HBM3', base 'l40s' of 'NVIDIA L40S'"):
        build(tmp_path, "smi.xml", base="l40s")


def test_two_files_that_state_the_same_are_refused_unless_they_agree(tmp_path):
    assert build(tmp_path, "smi.xml", "dcgmi.txt").device.num_per_host == 2
    with pytest.raises(BadInput, match=r"states host.memory_bandwidth_gb_per_s, and so does .*stream.txt"):
        build(tmp_path, "stream.txt", "mlc.txt")


def test_a_tier_the_base_lacks_is_refused(tmp_path):
    base = load_hardware("h100-sxm").model_copy(update={"nvme": None})
    with pytest.raises(BadInput, match=r"states nvme.read_bandwidth_gb_per_s, but base 'h100-sxm' has no nvme"):
        build_profile(read_reports(put(tmp_path, "fio.json"), DAY), base, "my-box")


def changed(sample, **top):
    return json.dumps({**sample, **top})


MALFORMED = {
    "nothing": ("", "not the output of a known tool; known: nvbandwidth JSON, fio JSON"),
    "other json": ('{"a": 1}', "not the output of a known tool"),
    "cut json": (SAMPLES["fio.json"][:200], r"not complete JSON \(line 1"),
    "cut xml": (SMI[:300], "not complete XML"),
    "entities": (SMI.replace("<nvidia_smi_log>", "<!ENTITY a 'b'><nvidia_smi_log>"), "XML entities"),
    "no gpu": ("<nvidia_smi_log></nvidia_smi_log>", "lists no GPU"),
    "mixed gpus": (SMI.replace("H100 80GB HBM3", "L4", 1), "lists different GPUs"),
    "buffered fio": (changed(FIO, **{"global options": {}}), "fio job 'one': read through the page cache"),
    "fio of writes": (changed(FIO, jobs=[{"job options": {"rw": "randwrite"}}]), "holds no number"),
    "fio without a rate": (
        changed(FIO, jobs=[{"jobname": "x", "job options": {"rw": "randread"}}]),
        "fio job 'x': bw_bytes: None is no number",
    ),
    "fio with odd jobs": (changed(FIO, jobs=[7]), "not laid out as the tool writes it"),
    "fio with an odd size": (changed(FIO, **{"global options": {"direct": 1, "bs": "4x"}}), "bs '4x' is no size"),
    "nvbandwidth text": ('{"nvbandwidth": "x"}', "nvbandwidth.testcases: missing"),
    "nvbandwidth with words": (
        SAMPLES["nvbandwidth.json"].replace("55.62", "fast"),
        "host_to_device_memcpy_ce: 'fast' is no number",
    ),
    "nvbandwidth with nan": (SAMPLES["nvbandwidth.json"].replace("55.62", "nan"), "'nan' is no finite number"),
    "nvbandwidth with nothing passed": (SAMPLES["nvbandwidth.json"].replace("Passed", "Error"), "holds no number"),
    "a zero": (SAMPLES["nvbandwidth.json"].replace("57.2", "0.0"), "0.0 is no positive number"),
    "cut stream": (STREAM[: STREAM.index("Add:")], "this file has Copy, Scale"),
    "cut mlc": (MLC.replace("   201.0", ""), "the matrix of idle latencies is cut off"),
    "dcgmi of another command": (DCGMI.replace("Name:", "Nome:"), "give the output of dcgmi discovery -l"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_one_line(case):
    text, message = MALFORMED[case]
    with pytest.raises(BadInput, match=message) as caught:
        read_report(text, "a file")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a file: ")


def test_notes_that_fio_prints_before_its_json_are_skipped():
    note = "note: both iodepth >= 1 and synchronous I/O engine are selected, queue depth will be capped at 1\n"
    for text in (json.dumps(FIO, indent=2), json.dumps(FIO)):
        assert read_report(note + text, "fio.json") == read_report(text, "fio.json")
    with pytest.raises(BadInput, match="not complete JSON"):
        read_report(note + json.dumps(FIO, indent=2)[:400], "fio.json")


def test_values_the_driver_does_not_tell_are_absent():
    stated = read_report(SMI.replace("81559 MiB", "N/A").replace("700.00 W", "[N/A]"), "smi.xml")
    assert {item.path for item in stated} == {"device.product_name", "device.num_per_host"}


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, message in (("absent", "no such file"), ("binary", "not a UTF-8"), (".", "cannot be read")):
        with pytest.raises(FileProblem, match=message):
            read_reports([str(tmp_path / name)])
