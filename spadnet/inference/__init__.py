"""Trained models at work: an image file goes in, features come out."""
