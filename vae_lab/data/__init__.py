"""Where data come from, how their pixels are prepared, and how they are served in batches."""
