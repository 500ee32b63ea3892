"""JSON files of a run folder that have a model: somebody else may have written them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import RunFolderError
from .store import read_json


class Part(BaseModel):
    """What is read of a JSON file that holds more."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


_Model = TypeVar("_Model", bound=BaseModel)


def read_model(path: Path, model: type[_Model], again: str) -> _Model:
    """Read a JSON file.

    Args:
        path: the file.
        model: what it holds.
        again: the command that writes it.

    Raises:
        RunFolderError: it is missing or damaged, or holds something else.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise RunFolderError(
            f"{path} was not written by aitia ({where}: {first['msg']}). Delete it and run `{again}` again"
        ) from error
