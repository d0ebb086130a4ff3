"""What must be fp32 is fp32 when activations are bf16: read off the program.

N6.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.extend import core

from benchmarks.parity import cases
from train.objectives import lm

# Softmax, norms, rotary phases and cross-entropy are made of these; the
# activations' own logistic and tanh may be bf16.
SENSITIVE = {
  "argmax",
  "cos",
  "cumsum",
  "exp",
  "exp2",
  "log",
  "log1p",
  "reduce_max",
  "reduce_sum",
  "rsqrt",
  "scatter-add",
  "sin",
  "sqrt",
}
MODELS = {
  "llama": dataclasses.replace(
    cases.CASES["llama"], qk_normed=True, qkv_biased=True, dtype="bfloat16"
  ),
  "gpt": dataclasses.replace(cases.CASES["gpt2"], dtype="bfloat16"),
}


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Every equation, also of what is called, scanned or rematerialized."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if isinstance(inner, core.Jaxpr):
          yield from equations(inner)


def narrow(jaxpr: core.Jaxpr) -> list[str]:
  """The sensitive equations that read anything of fewer than 32 bits."""
  return [
    str(equation)
    for equation in equations(jaxpr)
    if equation.primitive.name in SENSITIVE
    for x in equation.invars
    if jnp.issubdtype(x.aval.dtype, jnp.floating) and x.aval.dtype.itemsize < 4
  ]


@pytest.mark.parametrize("name", MODELS)
def test_statistics_and_sums_are_fp32_forward_and_backward(name):
  config = MODELS[name]
  params = jax.tree.map(jnp.asarray, cases.params(config))
  batch = jax.tree.map(jnp.asarray, cases.batch(config))
  objective = lm.make(lm.Config(z_loss=1e-4), config)
  step = jax.make_jaxpr(
    jax.value_and_grad(lambda p: objective(p, batch, None)[0])
  )(params)
  found = [equation.primitive.name for equation in equations(step.jaxpr)]
  assert {"exp", "rsqrt", "log", "reduce_sum", "scatter-add"} <= set(found)
  assert not narrow(step.jaxpr)
  assert all(leaf.dtype == jnp.float32 for leaf in step.out_avals)


@pytest.mark.parametrize("name", MODELS)
def test_weights_multiply_in_bf16_and_add_in_fp32(name):
  """Scores, of keys and of tokens, stay fp32; nothing multiplies in fp32."""
  config = MODELS[name]
  params = jax.tree.map(jnp.asarray, cases.params(config))
  batch = jax.tree.map(jnp.asarray, cases.batch(config))
  objective = lm.make(lm.Config(), config)
  program = jax.make_jaxpr(lambda p: objective(p, batch, None)[0])(params).jaxpr
  dots = [e for e in equations(program) if e.primitive.name == "dot_general"]
  by_weight = [dot for dot in dots if not dot.params["dimension_numbers"][1][0]]
  n_matrices = 8 if name == "llama" else 7  # of one layer, and the head
  assert len(by_weight) == n_matrices
  for dot in by_weight:
    assert {x.aval.dtype for x in dot.invars} == {jnp.dtype("bfloat16")}
    assert dot.outvars[0].aval.dtype == jnp.float32
  of_keys, of_values = [dot for dot in dots if dot not in by_weight]
  assert of_keys.outvars[0].aval.dtype == jnp.float32
  assert of_values.outvars[0].aval.dtype == jnp.bfloat16
  assert not [
    equation
    for equation in equations(program)
    for x in equation.outvars
    if x.aval.shape[-1:] == (config.vocab_size,)
    and x.aval.dtype == jnp.bfloat16
  ]


@pytest.mark.parametrize(
  ("dtype", "remat", "tolerance"),
  [("bfloat16", "minimal", 0.03), ("float16", "full", 0.003)],
)
def test_low_precision_stays_near_the_stored_numbers(dtype, remat, tolerance):
  """The whole step runs in it; bf16 keeps 8 bits, fp16 keeps 11."""
  config = dataclasses.replace(cases.CASES["llama"], dtype=dtype, remat=remat)
  logits, gradients = cases.run(config)
  stored, real = cases.stored(), cases.batch(config).segment_ids > 0
  error = logits[real] - stored["llama/logits"][real]
  scale = np.linalg.norm(stored["llama/logits"][real])
  assert np.linalg.norm(error) < tolerance * scale
  norms = cases.sketch(gradients)[:, 0]
  np.testing.assert_allclose(
    norms, stored["llama/gradients"][:, 0], rtol=tolerance
  )
