"""Fill the table of docs/model.md that says what each assumption is worth (half a minute).

``python docs/ablations.py`` predicts the ledger and the committed measured arms once for each assumption left out.
"""

from generate import RECORD, ROOT, filled

from tiercast_cli.ablation_table import table


def main() -> None:
    """Rewrite the table."""
    page = ROOT / "docs" / "model.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), {"ablations": table(RECORD)}), encoding="utf-8")


if __name__ == "__main__":
    main()
