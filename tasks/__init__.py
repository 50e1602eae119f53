"""Prefect tasks: one thin cached task per step of the library."""
