"""What a checkpoint of an earlier version is taken to have trained."""

from pathlib import Path

import pytest

from trainer_core.config import CONFIG_OF, METHODS
from trainer_core.run_identity import complete


@pytest.mark.parametrize("method", METHODS)
def test_a_newer_field_of_the_loss_had_its_default(method: str, tmp_path: Path) -> None:
    """No earlier version could train with another value, so a resumed run must not take the config's."""
    kind = CONFIG_OF[method]
    config = kind(model_name="m", dataset_path=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "out"))
    for name in kind.newer_fields:
        # Not an assignment, which would validate: the value itself is no matter.
        object.__setattr__(config, name, "another")
    found = complete({"beta": 0.3}, config)
    assert {name: found[name] for name in kind.newer_fields} == {
        name: kind.model_fields[name].default for name in kind.newer_fields
    }
    assert found["beta"] == 0.3
    assert set(kind.loss_fields) <= set(found)
