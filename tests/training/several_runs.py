"""python -m tests.training.several_runs RUNS.json: small runs one after another, alone or as one process of several.

RUNS.json: {folder: overrides}. Beside each folder, <folder>.losses.json has the loss of every training step, the mean
over the processes.
"""

import json
import sys
from pathlib import Path

import numpy as np

from carvision.errors import one_line_errors
from carvision.training.launch import is_first_process
from carvision.training.lit_classifier import LitClassifier
from carvision.training.many_processes import of_all
from tests.small_runs import train


def main() -> None:
    losses = []
    step = LitClassifier.training_step

    def recording(self, *args):
        loss = step(self, *args)
        losses.append(loss.item())
        return loss

    LitClassifier.training_step = recording
    for folder, overrides in json.loads(Path(sys.argv[1]).read_text()).items():
        losses.clear()
        train(folder, *overrides)
        means = np.mean(of_all(losses), axis=0).tolist()
        if is_first_process():
            Path(f"{folder}.losses.json").write_text(json.dumps(means))


if __name__ == "__main__":
    with one_line_errors():
        main()
