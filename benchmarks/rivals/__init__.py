"""Laws of others, as they were published, fitted to the same runs as ours."""
