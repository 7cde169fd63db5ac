"""Gangs: sharded computations over islands of cores, and the control plane that starts them (Pathways, MLSys 2022)."""

from graphopt_gym.simulator.gang.captured import CapturedPipeline, captured_pipeline, in_flight
from graphopt_gym.simulator.gang.figure import save_tenants, tenants_figure
from graphopt_gym.simulator.gang.lower_bounds import Bounds, bounds
from graphopt_gym.simulator.gang.orders import PIPELINE_ORDERS, bubble, pipeline_lists
from graphopt_gym.simulator.gang.program import Builder, Client, ShardedProgram, Slice, together
from graphopt_gym.simulator.gang.programs import Pipeline, chain, micro_batch_size, pipeline, stage_layers
from graphopt_gym.simulator.gang.simulator import POLICIES, GangSimulator, simulate_gangs
from graphopt_gym.simulator.gang.slices import Classes, classify, spread
from graphopt_gym.simulator.gang.timeline import GangTimeline, Waits
from graphopt_gym.simulator.gang.trace import gang_trace_bytes, write_gang_trace
from graphopt_gym.simulator.gang.waiting import waiting_html, waiting_lines

__all__ = [
    "PIPELINE_ORDERS",
    "POLICIES",
    "Bounds",
    "Builder",
    "CapturedPipeline",
    "Classes",
    "Client",
    "GangSimulator",
    "GangTimeline",
    "Pipeline",
    "ShardedProgram",
    "Slice",
    "Waits",
    "bounds",
    "bubble",
    "captured_pipeline",
    "chain",
    "classify",
    "gang_trace_bytes",
    "in_flight",
    "micro_batch_size",
    "pipeline",
    "pipeline_lists",
    "save_tenants",
    "simulate_gangs",
    "spread",
    "stage_layers",
    "tenants_figure",
    "together",
    "waiting_html",
    "waiting_lines",
    "write_gang_trace",
]
