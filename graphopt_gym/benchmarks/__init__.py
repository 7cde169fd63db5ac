"""What ``graphopt bench`` measures beside the benchmarks of the tasks, and what all benchmarks share."""

from graphopt_gym.task import Benchmark

BENCHMARKS = {
    "graphs": Benchmark("graphopt_gym.benchmarks.graphs:graphs_report", "milliseconds to read and to build graphs"),
    "start": Benchmark(
        "graphopt_gym.benchmarks.start:start_report",
        "seconds from nothing to a first outcome and a first step, with nothing compiled yet and later",
    ),
    "simulator": Benchmark(
        "graphopt_gym.benchmarks.simulator:simulator_report",
        "seconds an evaluation, against a plain Python twin and other simulators",
    ),
    "gang": Benchmark(
        "graphopt_gym.benchmarks.gang:gang_report",
        "milliseconds to simulate 10 to 100,000 gangs on 8 to 100,000 cores, and choices a second",
    ),
    "calibration": Benchmark(
        "graphopt_gym.benchmarks.calibration:calibration_report",
        "steps of small models really run on this processor, beside what the calibrated device my_cpu says",
        ("torch",),
    ),
    "cost-model": Benchmark(
        "graphopt_gym.hardware.validation:cost_model_report",
        "the cost model's error on kernels it was not fitted on, and on whole models",
    ),
}
