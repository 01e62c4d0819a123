"""``tiercast hardware parts|compare|import|pool|transfer``: beside list, show and diff, for hardware profiles alone."""

import datetime
from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, examples


def register(group: typer.Typer) -> None:
    """Add the commands to the group ``hardware``."""
    group.command(
        "parts",
        help="List the GPUs, links, hosts and lower tiers that machines are put together from.",
        epilog=examples("tiercast hardware parts", "tiercast hardware parts --json"),
    )(parts)
    group.command(
        "compare",
        help="Show how much of its datasheet a measured machine reaches.",
        epilog=examples(
            "tiercast hardware compare profile.yaml", "tiercast hardware compare profile.yaml --with h200-sxm"
        ),
    )(compare)
    group.command(
        "import",
        help="Make a profile from files of nvbandwidth, fio, nvidia-smi, dcgmi, STREAM and Intel MLC.",
        epilog=examples(
            "tiercast hardware import nvbandwidth.json fio.json --base h100-sxm -o my-box.yaml",
            "tiercast hardware import smi.xml stream.txt --base l40s --name my-box -o my-box.yaml",
        ),
    )(import_files)
    group.command(
        "pool",
        help="Make one profile of a machine out of several taken at different times.",
        epilog=examples("tiercast hardware pool morning.yaml noon.yaml evening.yaml -o profile.yaml"),
    )(pool_profiles)
    group.command(
        "transfer",
        help="Make a profile of a machine nobody measured, with the efficiencies of one that was.",
        epilog=examples(
            "tiercast hardware transfer profile.yaml --to h100-sxm -o h100-as-mine.yaml",
            "tiercast hardware transfer profile.yaml --to b200-sxm --of h200-sxm -o b200-as-mine.yaml",
        ),
    )(transfer_efficiencies)


def parts(as_json: JsonFlag = False) -> None:
    """Print the shipped parts."""
    from tiercast_cli import hardware_views
    from tiercast_cli.output import emit

    rows = hardware_views.part_rows()
    emit(rows, lambda: hardware_views.show_parts(rows), as_json=as_json)


def compare(
    measured: Annotated[str, typer.Argument(metavar="MEASURED", help="A profile that probes or an import wrote.")],
    preset: Annotated[
        str | None, typer.Option("--with", metavar="PRESET", help="By default the shipped machine of the same product.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print each measured quantity in percent of the preset's."""
    from tiercast_cli import hardware_views, inputs
    from tiercast_cli.output import emit
    from tiercast_profiles import store
    from tiercast_profiles.anchors import compare_with_preset, matching_preset

    profile = store.load_hardware(inputs.hardware_name(measured))
    if preset is None:
        presets = [store.load_hardware(name) for name in store.shipped_names("hardware")]
        anchor = matching_preset(profile, [one for one in presets if one.calibration == "datasheet"])
    else:
        anchor = store.load_hardware(inputs.hardware_name(preset))
    rows = compare_with_preset(profile, anchor)
    emit(rows, lambda: hardware_views.show_anchors(profile, anchor, rows), as_json=as_json)


def import_files(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files that the tools wrote.")],
    *,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where the profile goes.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME", help="The machine that states what the files do not.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the profile; that of the output by default.")
    ] = None,
    date: Annotated[
        str | None, typer.Option("--date", metavar="YYYY-MM-DD", help="Day measured; by default each file's own.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a profile of what other tools measured."""
    from pathlib import Path

    from tiercast_cli import hardware_views, inputs
    from tiercast_cli.output import check_writable, emit, save
    from tiercast_profiles.machine_import import build_profile, read_reports
    from tiercast_profiles.store import load_hardware, to_yaml

    check_writable(output, reads=(*files, base))
    reports = read_reports(files, None if date is None else _day(date))
    profile = build_profile(
        reports, None if base is None else load_hardware(inputs.hardware_name(base)), name or Path(output).stem
    )
    save(output, to_yaml(profile))
    emit(profile, lambda: hardware_views.show_import(profile, reports), as_json=as_json)


def pool_profiles(
    profiles: Annotated[list[str], typer.Argument(metavar="PROFILE...", help="Profiles that probes wrote.")],
    *,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where the profile goes.")],
    as_json: JsonFlag = False,
) -> None:
    """Write the profile of a machine over all the times it was probed: medians, and bands that hold the drift."""
    from tiercast_cli import catalogue_views, inputs
    from tiercast_cli.output import check_writable, emit, save
    from tiercast_profiles.pooling import pool
    from tiercast_profiles.store import load_hardware, to_yaml

    check_writable(output, reads=profiles)
    profile = pool([load_hardware(inputs.hardware_name(name)) for name in profiles])
    save(output, to_yaml(profile))
    emit(profile, lambda: catalogue_views.profile_summary(profile), as_json=as_json)


def transfer_efficiencies(
    measured: Annotated[str, typer.Argument(metavar="MEASURED", help="A profile that probes wrote.")],
    *,
    preset: Annotated[str, typer.Option("--to", metavar="PRESET", help="The machine that is asked about.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where the profile goes.")],
    anchor: Annotated[
        str | None,
        typer.Option(
            "--of", metavar="PRESET", help="Datasheet of MEASURED; by default the shipped one of its product."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the preset with what the measured machine reaches of its own datasheet."""
    from tiercast_cli import hardware_views, inputs
    from tiercast_cli.output import check_writable, emit, save
    from tiercast_profiles import store
    from tiercast_profiles.anchors import matching_preset
    from tiercast_profiles.transfer import transfer

    check_writable(output, reads=(measured, preset, anchor))
    machine, wanted = (store.load_hardware(inputs.hardware_name(name)) for name in (measured, preset))
    datasheet = None if anchor is None else store.load_hardware(inputs.hardware_name(anchor))
    is_needed = wanted.calibration == "datasheet" and machine.calibration == "measured" and machine.device.kind != "cpu"
    if datasheet is None and is_needed:
        presets = [store.load_hardware(name) for name in store.shipped_names("hardware")]
        datasheet = matching_preset(machine, [one for one in presets if one.calibration == "datasheet"], option="--of")
    profile = transfer(machine, wanted, datasheet)
    save(output, store.to_yaml(profile))
    emit(profile, lambda: hardware_views.show_transfer(profile, wanted), as_json=as_json)


def _day(text: str) -> datetime.date:
    from tiercast_profiles.errors import BadInput

    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"--date {text!r}: give a day as in 2026-11-25") from None
