"""What the benchmarks make of figures, and of a page that is there already."""

from __future__ import annotations

from benchmarks.page import merged, split
from benchmarks.rounds import CPU, Candidate, alternate

PAGE = "# Head\n\nold\n\n## Receiving\n\nten\n\n## Sending\n\ntwenty\n"


def test_sections_that_are_measured_anew_replace_the_old_ones() -> None:
    new = {"Sending": "## Sending\n\ntwo\n", "Memory": "## Memory\n\nmuch\n"}
    page = merged("# Head\n\nnew\n", split(PAGE), new, ["Memory", "Receiving", "Sending"])
    assert page == (
        "# Head\n\nnew\n\n## Memory\n\nmuch\n\n## Receiving\n\nten\n\n## Sending\n\ntwo\n"
    )
    assert merged("# Head\n\nnew\n", split(page), {}, ["Memory", "Receiving", "Sending"]) == page


def test_a_section_that_there_is_no_more_leaves_the_page() -> None:
    assert merged("# Head\n", split(PAGE), {}, ["Sending"]) == "# Head\n\n## Sending\n\ntwenty\n"


def test_the_ratio_is_the_median_of_ratios_round_by_round() -> None:
    fast, slow = Candidate("fast", dict), Candidate("slow", dict)
    # The machine is slower and slower; fast takes half in two rounds of three.
    fast.rounds = [{CPU: 1.0}, {CPU: 10.0}, {CPU: 100.0}]
    slow.rounds = [{CPU: 2.0}, {CPU: 20.0}, {CPU: 50.0}]
    assert fast.ratio(slow) == 0.5
    assert fast.ratios(slow) == [0.5, 0.5, 2.0]


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def candidate(name: str) -> Candidate:
        def run() -> dict[str, float]:
            calls.append(name)
            return {CPU: float(len(calls))}

        return Candidate(name, run)

    a, b = candidate("a"), candidate("b")
    alternate([a, b], 2, "")
    assert "".join(calls) == "ab" + "ba" + "ab"
    assert [figures[CPU] for figures in a.rounds] == [4.0, 5.0]
