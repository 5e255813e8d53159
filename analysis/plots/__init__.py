"""Pictures of runs: `draw(kind, PlotData(runs))`. One file of `kinds` is one kind; a new one touches nothing else."""
