"""Grades of layers: the rules, the step that applies them, and two sides compared by them."""
