"""From what a person typed to what the libraries take: scenario names, profiles and the runtime extra."""

from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_profiles.errors import BadInput, FileProblem, MissingCapability

if TYPE_CHECKING:
    from tiercast_profiles.scenario import ResolvedScenario, Scenario


def load_scenario(name_or_path: str) -> "Scenario":
    """A shipped scenario by name, or one from a file.

    Raises:
        BadInput: neither a shipped name nor a file, or the file does not follow the schema.
        FileProblem: the file cannot be read.
    """
    from tiercast_profiles import store

    names = store.shipped_names("workloads")
    if name_or_path in names:
        folder = resources.files("tiercast_profiles") / "data" / "workloads"
        with resources.as_file(folder / f"{name_or_path}.yaml") as path:
            return store.load_scenario(path)
    if not ("/" in name_or_path or name_or_path.endswith((".yaml", ".yml", ".json")) or Path(name_or_path).exists()):
        raise BadInput(
            f"unknown scenario {name_or_path!r}; known: {', '.join(names)}; or give the path of a scenario file"
        )
    return store.load_scenario(name_or_path)


def resolve(name_or_path: str, profile: str | None = None, prices: str | None = None) -> "ResolvedScenario":
    """A scenario with its documents loaded; ``profile`` and ``prices`` take the place of what it names.

    Raises:
        FileProblem: a file is missing; for a profile the message says how to make one.
    """
    scenario = load_scenario(name_or_path)
    if profile is not None:
        scenario = scenario.model_copy(update={"hardware": profile})
    if prices is not None:
        scenario = scenario.model_copy(update={"prices": prices})
    return resolve_scenario(scenario, name_or_path)


def resolve_scenario(scenario: "Scenario", label: str) -> "ResolvedScenario":
    """A scenario with its documents loaded; ``label`` names it in an error.

    Raises:
        FileProblem: a file is missing; for a profile the message says how to make one.
    """
    from tiercast_profiles import store

    check_hardware(scenario, label)
    return store.resolve(scenario)


def check_hardware(scenario: "Scenario", label: str) -> None:
    """That the profile a scenario names is there; ``label`` names the scenario in an error.

    Raises:
        FileProblem: the file is missing; the message says how to make one.
    """
    from tiercast_profiles import store

    wanted = Path(scenario.hardware)
    if scenario.hardware not in store.shipped_names("hardware") and wanted.suffix and not wanted.exists():
        raise FileProblem(
            f"scenario {label}: hardware {scenario.hardware}: no such file; "
            f"write one with: tiercast profile --quick -o profile.yaml, and give it as --profile profile.yaml"
        )


def hardware_names(text: str) -> list[str]:
    """Machines of a comma-separated list; a bare device name such as ``H200`` finds its one shipped machine.

    Raises:
        BadInput: an empty name, or one that fits several machines; a name that fits none is left to the loader.
    """
    from tiercast_profiles import store

    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        known = ", ".join(store.shipped_names("hardware"))
        raise BadInput(f"--hardware {text!r}: an empty name between commas; known: {known}")
    found = [hardware_name(part) for part in parts]
    if len(set(found)) < len(found):
        raise BadInput(f"--hardware {text!r}: a machine is named twice; name each once")
    return found


def hardware_name(text: str) -> str:
    """One machine by its shipped name, a path, or a bare device name such as ``H200`` that fits one shipped machine.

    Raises:
        BadInput: a name that fits several machines; one that fits none is left to the loader.
    """
    from tiercast_profiles import store

    known = store.shipped_names("hardware")
    short = text.lower()
    if text in known or "/" in text or short.endswith((".yaml", ".yml", ".json")):
        return text
    if short in known:
        return short
    fitting = [name for name in known if name.startswith(f"{short}-")]
    in_socket = [name for name in fitting if name == f"{short}-sxm"]
    if len(fitting) > 1 and not in_socket:
        raise BadInput(f"hardware {text!r} fits several machines: {', '.join(fitting)}; give one of them")
    return (in_socket or fitting or [text])[0]


def require_runtime(command: str) -> None:
    """Check that the packages of the runtime extra are installed, without importing them.

    Raises:
        MissingCapability: naming what is missing and how to install it.
    """
    missing = [name for name in ("torch", "safetensors") if util.find_spec(name) is None]
    if missing:
        raise MissingCapability(
            f"{command} runs the real Engram runtime, which needs {' and '.join(missing)}; "
            "install it with: pip install 'tiercast[runtime]'"
        )
