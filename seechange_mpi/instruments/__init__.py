"""Cameras: one YAML file each, checked by `camera.Camera`. A new camera needs no Python."""
