"""Hydra configuration files, installed as ``spadnet.conf``."""
