"""Annotation files as users have them, read into captions, moments, splits and released features."""
