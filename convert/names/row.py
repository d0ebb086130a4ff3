"""One tensor of theirs, and what it is of ours."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
  """theirs[out, in] or theirs[in, out] is ours[in..., out...], reshaped."""

  theirs: str
  ours: tuple[str, ...]
  n_in: int = 0  # leading dimensions of ours that are inputs; 0: a vector
  transposed: bool = False
  n_copies: int = 0  # dimensions ahead of those that list whole matrices
  n_common: int = (
    0  # leading outputs, as heads, in which ours are laid together
  )


def linear(theirs: str, ours: str, n_in: int = 1) -> Row:
  """A torch Linear: [out, in] there."""
  return Row(f"{theirs}.weight", (ours,), n_in, transposed=True)
