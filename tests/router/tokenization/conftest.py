import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from small_tokenizers import byte_level, save


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model's folder with its tokenizer and template."""
    return save(tmp_path_factory.mktemp("model"), byte_level())
