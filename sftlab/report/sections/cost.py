"""What a study cost, and which of its runs failed."""

from __future__ import annotations

from sftlab.report.evidence import Evidence
from sftlab.report.exhibit import Cell, Table
from sftlab.report.section import Figure, Section, panel_title
from sftlab.report.text import duration, some_of


class Cost(Figure):
    """Tokens trained and reused, and seconds, by config."""

    def section(self, evidence: Evidence) -> Section:
        """Show a row for each config and one for all."""
        section = Section("cost", "Cost")
        rows, numbers = [], []
        for config in [*dict.fromkeys(c.config for c in evidence.costs), None]:
            runs = [c for c in evidence.costs if config is None or c.config == config]
            stages = [stage for run in runs for stage in run.stages]
            reused = sum(s.tokens for s in stages if s.reused)
            trained = sum(s.tokens for s in stages) - reused
            seconds = sum(s.seconds or 0 for s in stages if not s.reused)
            saved = reused / (trained + reused) if trained + reused else 0.0
            done = sum(run.status == "done" for run in runs)
            name = config or "total"
            count = f"{done}" if done == len(runs) else f"{done} of {len(runs)}"
            rows.append([name, count, f"{trained:,}", f"{reused:,}", f"{saved:.0%}", duration(seconds)])
            about: dict[str, Cell] = {"config": name, "runs": len(runs), "done": done, "tokens_trained": trained}
            numbers.append(about | {"tokens_reused": reused, "saved_share": saved, "seconds": seconds})
        total = numbers[-1]
        if evidence.costs:
            shared = f", {rows[-1][3]} reused from stages that other runs had trained (**{rows[-1][4]} saved**)"
            told = f"{total['done']} of {total['runs']} runs done; {rows[-1][2]} tokens trained, "
            told += f"{rows[-1][5]} of training and scoring"
            section.findings.append(f"{told}{shared if total['tokens_reused'] else ''}.")
        notes = [
            "Reused: tokens of stages that another run of the study trained. Saved: reused / (trained + reused).",
            "Time: of the stages, by the clock. The first run of a machine or process may take longer, and so do runs "
            "that share the machine.",
        ]
        header = ["config", "runs done", "tokens trained", "tokens reused", "saved", "training and scoring"]
        section.parts.append(Table("cost", "What was trained", header, rows, notes, numbers))
        return section


class Failures(Figure):
    """Failed runs with the last lines that they wrote, and scores that could not be measured."""

    def section(self, evidence: Evidence) -> Section:
        """Show nothing if no run failed."""
        failed = [c for c in evidence.costs if c.status == "failed"]
        section = Section("failed", "Failed runs")
        ends = [r for r in evidence.results if r.last_stage and r.headline and not r.inside and r.value is None]
        for panel in dict.fromkeys(r.panel for r in ends):
            runs = [r.run for r in ends if r.panel == panel]
            section.warnings.append(
                f"No answer could be graded for {panel_title(panel)} in {len(runs)} of {len(evidence.runs)} runs, "
                f"which is not a score of 0: they are in no mean, interval or choice of it ({some_of(runs)})."
            )
        if not failed:
            return section
        section.lead = "The same study command runs them again."
        rows = [[c.run, c.error or "no message"] for c in failed]
        section.parts.append(Table("failed", "Failed runs", ["run", "last lines"], rows))
        return section
