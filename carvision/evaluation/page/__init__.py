"""The parts of an evaluation that a page shows and its script draws, and the page of an evaluation."""
