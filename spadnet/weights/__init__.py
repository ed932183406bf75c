"""Saving, loading and converting weights."""
