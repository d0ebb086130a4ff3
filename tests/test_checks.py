"""Which test holds which promise: ids stand in the docstrings of tests.

A promise without a test, or a test of a promise that is none, fails here.
"""

import ast
import pathlib
import re

TESTS = pathlib.Path(__file__).parent
PROMISES = {
  "C1": "killed during a save: every checkpoint is whole or none",
  "C2": "a full, broken or read-only disk: the run goes on and says so",
  "C3": "every flipped bit, cut and missing file of a checkpoint is found",
  "C4": "a checkpoint that does not verify is passed over, with the reason",
  "C5": "resumed equals never interrupted, to the bit",
  "C6": "also five times in a row",
  "C7": "SIGTERM, SIGINT, SIGUSR1 save; a second SIGINT ends at once",
  "C8": "memory: of a restore 1.3, of a save beside a step 2.2 times the state",
  "C9": "saving takes place behind the steps",
  "C10": "settings are kept; what does not fit is listed with a way out",
  "C11": "a leaf that is not restored is never left as it began, unsaid",
  "C12": "what stays: the last, every n-th, the best; torn ones are swept",
  "C13": "a second job is kept out of a workdir",
  "C14": "the last step is saved",
  "C15": "checkpoints of older formats load",
  "C16": "checkpoints are listed, verified and compared from the terminal",
  "D1": "one stream of tokens for any number of hosts",
  "D2": "and after resuming anywhere, on any number of hosts",
  "D3": "a place in the data is refused by other data or settings",
  "D4": "mixtures converge to their shares",
  "D5": "each epoch is another permutation",
  "D6": "packing: independent, nothing lost, full, positions right",
  "D8": "one BOS and one EOS a document",
  "D9": "what cannot be read is counted and put aside, up to a share",
  "D10": "a cut or damaged file is named; no epoch is short in silence",
  "D11": "another tokenizer is refused",
  "D12": "ids beyond the vocabulary are refused",
  "D14": "every planted leak of a benchmark is found",
  "D15": "tokenizers equal their libraries; decode(encode(x)) == x",
  "D16": "preparing that is killed goes on to the same bytes",
  "E1": "prompts are lm-eval's, byte for byte",
  "E2": "context and continuation are read together; one BOS; cuts are said",
  "E3": "multiple choice: acc, acc_norm by bytes; letters and texts apart",
  "E4": "likelihoods: the same for any batch, mesh, padding; windows, strides",
  "E5": "BLEU, chrF and ROUGE are their tools', with the signature",
  "E6": "examples are fixed, and never the item",
  "E7": "the bootstrap's standard error covers 95 %",
  "E8": "killed and started again: the same final JSON",
  "N1": "attention, in every variant, is its definition in float64",
  "N2": "gradients of every layer are differences",
  "N3": "rows that see nothing are zero and move nothing",
  "N4": "masks and huge logits stay finite in bf16",
  "N5": "rotary phases are exact; scalings are those of transformers",
  "N6": "what is summed up is fp32 where activations are bf16",
  "N7": "the loss in chunks is the plain loss, and so is its gradient",
  "N8": "rematerialization changes no bit",
  "N9": "a scan is its layers in sequence",
  "N10": "z-loss, label smoothing and balance are their closed forms",
  "N11": "norms: epsilon, scale and place",
  "N12": "weights begin as the papers say; muP keeps the width out",
  "N13": "no two dropout masks are alike",
  "N14": "logits and gradients are those of transformers",
  "N15": "attention kernels are the reference",
  "N16": "bf16 learns as fp32 does",
  "S1": "every mesh gives the numbers of one device",
  "S2": "nothing large is replicated unless the rules say so",
  "S3": "what does not divide is an error",
  "S4": "every name has a rule, and others are told the nearest",
  "S5": "parameters begin alike on every mesh",
  "S6": "what travels is what was committed",
  "S7": "the state is donated",
  "S8": "a checkpoint is the same bits on every mesh",
  "S9": "gradients are clipped by their norm over all shards",
  "S10": "a last batch that is not full weighs what it has",
  "S11": "every schedule of stages gives the numbers of one device",
  "S12": "split rows, packed too, give the numbers of whole ones",
  "S13": "dropped tokens are counted; with room for all none is",
  "S14": "two processes are one",
  "T1": "what is not finite is caught at its step, not applied, and named",
  "T2": "bad steps are skipped; after several the run goes back",
  "T3": "spikes are found; false alarms are rare",
  "T4": "micro-batches equal the whole batch",
  "T5": "schedules: first, warm-up's end, last step exact",
  "T6": "weight decay: which parameters, and a listing",
  "T7": "one compile a life",
  "T8": "the same run twice: the same bits",
  "T9": "a hang becomes stacks and an exit",
  "T10": "rates and goodput are what they say",
  "T11": "data that comes late is told",
  "T12": "evaluating changes nothing",
  "T13": "memory stays flat",
  "T14": "exit codes",
}
# D7 (chat templates) and D13 (deduplication) come with their rooms.


def named() -> set[str]:
  """Ids in the docstrings of test modules and of their functions."""
  found = set()
  for path in TESTS.rglob("test_*.py"):
    if path.name == pathlib.Path(__file__).name:
      continue
    tree = ast.parse(path.read_text())
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for node in (tree, *nodes):
      doc = ast.get_docstring(node) or ""
      found |= set(re.findall(r"\b[CDENST]\d{1,2}\b", doc))
  return found


def test_every_promise_has_a_test():
  assert set(PROMISES) - named() == set()


def test_every_id_is_a_promise():
  assert named() - set(PROMISES) == set()
