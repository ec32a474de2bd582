"""Reports of runs as one HTML file, which needs nothing beside it; see `trainers.report`."""
