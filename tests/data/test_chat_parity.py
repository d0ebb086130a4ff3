"""Conversations beside `apply_chat_template` of the transformers of today."""

import json

import pytest

pytest.importorskip("transformers")
from benchmarks.parity import chat  # noqa: E402

pytestmark = pytest.mark.parity


def test_the_golden_cases_are_those_of_transformers():
  made = chat.make()
  golden = json.loads(chat.STORED.read_text())
  assert made["conversations"] == golden["conversations"]
  assert made["cases"] == golden["cases"]
