"""Typed settings: declared once with default, unit, help; resolved from YAML files; every value knows its file."""
