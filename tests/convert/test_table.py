"""The README's table of families says what is measured."""

import pytest

from benchmarks.parity import table


def test_the_table_has_every_case_and_states_what_the_tests_allow():
  stated = table.stated()
  assert stated.keys() == table.lines().keys(), "run benchmarks.parity.table"
  for logits, gradients in stated.values():
    assert 0 < logits <= 5e-6 and 0 < gradients <= 1e-5


@pytest.mark.slow
def test_the_differences_are_the_stated_ones():
  stated = table.stated()
  for line, names in table.lines().items():
    for name in names:
      found = table.differences(name)
      # Another processor rounds otherwise, by as much again.
      assert all(x <= 3 * y for x, y in zip(found, stated[line], strict=True))
