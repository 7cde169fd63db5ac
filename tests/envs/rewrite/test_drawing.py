from __future__ import annotations

import re

import numpy as np
import pytest

from graphopt_gym.envs.rewrite.drawing import HEIGHT, LEAST_FOLDED, NEW, WIDTH, _spread, draw_program, svg
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.rendering import changed, comparison_page
from graphopt_gym.graphs.zoo.programs import load_program
from graphopt_gym.search.solve import solve
from tests.envs.rewrite.programs import all_programs, attention


@pytest.mark.parametrize("program", [*all_programs(), load_program("nasnet_a")], ids=lambda program: program.name)
@pytest.mark.parametrize("odd", [0, 3])
def test_draw_program__boxes_do_not_overlap_and_edges_go_down(program, odd):
    rng = np.random.default_rng(0)
    drawn = [node for node in program.order if not program.is_static(node)]
    chosen = {drawn[int(at)] for at in rng.integers(0, len(drawn), odd)}
    drawing = draw_program(program, {}, chosen, NEW)
    places = np.array([(box.x, box.y) for box in drawing.boxes])
    apart = np.abs(places[:, None] - places[None])
    assert ((apart[..., 0] >= WIDTH) | (apart[..., 1] >= HEIGHT) | np.eye(len(places), dtype=bool)).all()
    assert all(drawing.boxes[first].y < drawing.boxes[last].y for first, last in drawing.edges)
    assert (places >= 0).all()
    assert (places <= [drawing.width, drawing.height]).all()
    shown = [node for box in drawing.boxes for node in box.nodes]
    assert sorted(shown) == sorted(drawn)
    for box in drawing.boxes:
        assert len(box.nodes) == 1 or (len(box.nodes) >= LEAST_FOLDED and not chosen & set(box.nodes))


def test_spread__least_squares_with_room():
    assert _spread([0, 10, 20], 5) == [0, 10, 20]
    assert _spread([3, 3, 3], 2) == [1, 3, 5]
    assert _spread([], 1) == []


def test_changed__names_what_is_next_to_the_rewrite_and_nothing_alike_elsewhere():
    problem = RewriteProblem(attention(layers=3))
    for match in problem.original.matches:
        state = problem.original.apply(match)
        gone, new = changed(problem.program, state.program)
        assert len(state.program) - len(problem.program) == len(new) - len(gone)
        added = set(state.program.nodes) - set(problem.program.nodes)
        assert new <= {*added, *(user for node in added for user in state.program.users(node))}
    assert changed(problem.program, problem.program) == (set(), set())


def test_page__of_a_saturation_says_what_the_e_graph_was():
    problem = RewriteProblem("small_fire")
    solution = solve(problem, "saturation", options={"node_limit": 500})
    page = comparison_page(problem, solution.decision, solution.trace, solution.details)
    assert "The e-graph" in page
    assert f"{solution.details['nodes']:,} operators" in page
    assert next(iter(solution.details["rules_that_entered_the_e_graph"])) in page
    assert "No order" in page


def test_svg__escapes_names_and_has_a_title_for_each_box():
    from graphopt_gym.graphs.tensor_program import parse_program

    program = parse_program('x = input(name="<b>&", shape=(2, 2))\nreturn relu(x)')
    text = svg(draw_program(program, {}, set(), NEW))
    assert "<b>" not in text
    assert len(re.findall("<title>", text)) == 2
