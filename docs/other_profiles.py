"""Score a suite's records from profiles that are not its own: spoilt on purpose, and other machines' (half a minute).

``python docs/other_profiles.py FOLDER`` is a part of ``make validation``. It writes ``other-profiles.json`` into the
folder: the scores over all cases by what each profile is, as docs/validation.md calls it. Where the machine was probed
in every round, the profile made before anything was run is tried alone. Other machines are those with a
profile in validation/, that of their suite where there is one; each is tried as it is and with its efficiencies carried
over to this machine.
"""

import json
import sys
import tempfile
from pathlib import Path

from tiercast_cli import suite
from tiercast_cli.changed_profiles import WORDS
from tiercast_cli.suite_result import SuiteResult
from tiercast_profiles import store
from tiercast_profiles.transfer import transfer

ROOT = Path(__file__).resolve().parents[1]
FILE = "other-profiles.json"
OWN = "its own profile"
BEFORE = "one profile made before any run"


def results(folder: Path, machine: str) -> dict[str, SuiteResult]:
    """The suite in ``folder`` of ``machine`` scored from every other profile."""
    own = folder / "profile.yaml"
    first = folder / "rounds" / "before.yaml"
    found = {BEFORE: suite.rescore(folder, str(first))} if first.exists() else {}
    found |= {f"{OWN}, wrong: {words}": suite.rescore(folder, str(own), how) for how, words in WORDS.items()}
    for place in sorted(ROOT.glob("validation/*/profile.yaml")):
        name = place.parent.name
        if name == machine:
            continue
        of_suite = place.parent / "suite" / "profile.yaml"  # holds the layers of every model of the suite
        other = of_suite if of_suite.exists() else place
        found[name] = suite.rescore(folder, str(other))
        with tempfile.TemporaryDirectory() as folder_of_it:
            carried = Path(folder_of_it) / "profile.yaml"
            profile = transfer(store.load_hardware(str(other)), store.load_hardware(str(own)))
            store.write_text(carried, store.to_yaml(profile))
            found[f"{name}, transferred"] = suite.rescore(folder, str(carried))
    return found


def main() -> None:
    """Write the scores."""
    folder = Path(sys.argv[1])
    machine = folder.parent.name if folder.name == "suite" else folder.name
    scores = {
        title: [score.model_dump(mode="json") for score in result.scores["all"]]
        for title, result in results(folder, machine).items()
    }
    store.write_text(folder / FILE, json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
