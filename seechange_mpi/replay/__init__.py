"""Rerun sections from what their bundles say of them, and compare with what is stored."""
