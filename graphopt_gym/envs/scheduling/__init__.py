"""Scheduling: a priority a task orders each device's ready queue; the placement is fixed."""
