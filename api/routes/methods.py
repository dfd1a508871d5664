"""Which methods there are, and what their job specs take."""

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
    """Every method with its facts, a sample job, and each field of its job spec: types, bounds, default, label and help."""
    return _described()
