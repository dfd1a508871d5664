"""The methods, and the fields of their job specs."""

from functools import cache

from fastapi import APIRouter

from api.method_schemas import MethodDescription, MethodList
from trainer_core.config import SETTINGS

router = APIRouter(prefix="/methods", tags=["methods"])


@cache
def _described() -> MethodList:
    return MethodList(methods=[MethodDescription.of(each) for each in SETTINGS])


@router.get("")
def list_methods() -> MethodList:
    """Lists every method, with its facts, a sample job and each field of its job spec: types, bounds, default, help."""
    return _described()
