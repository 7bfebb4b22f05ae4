"""A fitter that leaves marks and can die; nodes of a cluster import it, so it imports little."""

import os
import signal
from pathlib import Path

from sftlab.data.fitter import Fitter


class Marked(Fitter):
    """Leaves a file for each node that fits; the first process that meets a word dies there, or every one does."""

    def fitted(self, talks):
        import ray

        place = Path(self.encoder.marks)
        (place / ray.get_runtime_context().get_node_id()).touch()
        if any("deadly" in turn.text for one in talks for turn in one.turns):
            is_first = not (place / "died").exists()
            (place / "died").touch()
            if is_first or any("always" in turn.text for one in talks for turn in one.turns):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().fitted(talks)
