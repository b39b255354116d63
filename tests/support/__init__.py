"""What several test files share: oracles, run folders, real processes, a browser."""
