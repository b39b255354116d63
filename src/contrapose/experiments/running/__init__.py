"""Running the jobs of experiments: tasks, folders, workers, clusters and collected results."""
