"""Bridges to other frameworks; nothing else in spadnet imports them."""
