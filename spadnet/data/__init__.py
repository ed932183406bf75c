"""From image files of any kind to batches of one degree each."""
