"""Running the jobs of experiments: tasks, folders, workers, clusters, and what is collected."""
