"""The effect of each ability's data on the others."""

from __future__ import annotations

from sftlab.report.against import add_rows
from sftlab.report.evidence import Evidence
from sftlab.report.section import Figure, Section


class LeaveOneOut(Figure):
    """Training with all abilities against training without each one.

    Args:
        everything: The config with all of them.
        without: The config without one, ``{ability}`` standing for its name.
    """

    config_arguments = ("everything", "without")

    def __init__(self, everything: str = "all", without: str = "without_{ability}") -> None:
        self.everything, self.without = everything, without

    def section(self, evidence: Evidence) -> Section:
        """Show rows with paired tests against training on everything."""
        section = Section("leave_one_out", "One ability left out")
        lacking = [self.without.replace("{ability}", ability) for ability in evidence.abilities]
        wanted = list(dict.fromkeys([self.everything, *lacking]))
        section.missing = evidence.missing(wanted)
        section.missing += [f"config {name}" for name in wanted if name not in evidence.configs]
        groups = [g for g in evidence.groups if g.config in wanted]
        reference = next((g for g in groups if g.config == self.everything), None)
        add_rows(section, evidence, groups, reference)
        return section
