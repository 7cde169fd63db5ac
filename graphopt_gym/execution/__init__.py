"""Decisions that really run: a step of a captured model, op by op, on worker processes of this machine."""
