"""The README's table of families says what is measured."""

import pytest

from benchmarks.parity import table


def test_the_table_has_every_case_and_states_what_the_tests_allow():
  stated = table.stated()
  assert stated.keys() == table.lines().keys(), "run benchmarks.parity.table"
  for line, figures in stated.items():
    assert len(figures) == len(table.LIMITS), line
    for found, most in zip(figures, table.LIMITS, strict=True):
      assert found is None or 0 <= found <= most, line


@pytest.mark.slow
@pytest.mark.parametrize("theirs", ["LlamaForCausalLM", "BertForMaskedLM"])
def test_the_figures_are_the_stated_ones(theirs):
  (line,) = (line for line in table.lines() if line.theirs == theirs)
  found = table.figures(table.lines()[line])
  for now, then in zip(found, table.stated()[line], strict=True):
    # Another processor rounds otherwise, by as much again.
    assert now == then or now <= 3 * then
