"""Losses of both stages; plain functions where no state is needed."""
