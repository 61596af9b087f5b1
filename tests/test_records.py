"""Dataclasses made quickly behave as those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from functools import cached_property
from typing import ClassVar

import pytest

from fusegraph import records


def pair(module):
    """The same two classes, made by `module`."""

    @module.dataclass(frozen=True)
    class Point:
        x: int
        y: float = 2.0
        tags: list[str] = module.field(default_factory=list, compare=False)
        made: ClassVar[int] = 7

        def __post_init__(self):
            if self.x < 0:
                raise ValueError("x")

        @cached_property
        def double(self):
            return 2 * self.x

    @module.dataclass
    class Box(Point.__base__):
        name: str
        inside: dict[str, int] = module.field(default_factory=dict)
        hidden: int = module.field(default=3, repr=False, init=False)
        later: int = module.field(init=False, repr=False, compare=False)

        def __post_init__(self):
            self.later = len(self.name)

    return Point, Box


STANDARD, OURS = pair(dataclasses), pair(records)


@pytest.mark.parametrize("classes", [STANDARD, OURS], ids=["standard", "ours"])
def test_instances(classes):
    point_class, box_class = classes
    one, same, other = point_class(1), point_class(x=1, y=2.0, tags=["t"]), point_class(1, 3.0)
    assert (one.x, one.y, one.tags, one.made, one.double) == (1, 2.0, [], 7, 2)
    assert one == same and hash(one) == hash(same) and one != other and one != (1, 2.0) and len({one, same, other}) == 2
    assert repr(one).endswith("Point(x=1, y=2.0, tags=[])")
    assert point_class(1).tags is not one.tags
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.x = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.x
    with pytest.raises(ValueError, match="x"):
        point_class(-1)
    for wrong in ((), (1, 2, [], 4)):
        with pytest.raises(TypeError):
            point_class(*wrong)
    with pytest.raises(TypeError):
        point_class(1, z=3)
    box = box_class("b")
    box.name = "c"
    box.inside["k"] = 1
    assert (
        repr(box).endswith("Box(name='c', inside={'k': 1})")
        and box.hidden == 3
        and box.later == 1
        and box_class("c").inside == {}
    )
    assert box == copy.deepcopy(box) != box_class("c")
    with pytest.raises(TypeError):
        hash(box)


@pytest.mark.parametrize("replace", [dataclasses.replace, records.replace])
@pytest.mark.parametrize("classes", [STANDARD, OURS], ids=["standard", "ours"])
def test_copies_and_fields(classes, replace):
    point_class, _ = classes
    one = point_class(1, tags=["t"])
    assert one.double == 2
    changed = replace(one, x=5)
    assert (changed.x, changed.y, changed.tags, changed.double) == (5, 2.0, ["t"], 10) and changed.tags is one.tags
    with pytest.raises(TypeError):
        replace(one, z=1)
    with pytest.raises(ValueError, match="x"):
        replace(one, x=-1)
    assert [one.name for one in dataclasses.fields(point_class)] == ["x", "y", "tags"]
    assert dataclasses.asdict(one) == {"x": 1, "y": 2.0, "tags": ["t"]} and dataclasses.is_dataclass(point_class)


@records.dataclass(frozen=True)
class Base:
    first: int


@records.dataclass(frozen=True)
class Derived(Base):
    second: float = float("nan")

    def __repr__(self) -> str:
        return "mine"


@records.dataclass(frozen=True, eq=False)
class Identity:
    only: int


@records.dataclass(frozen=True)
class Alone:
    value: float


def test_base_classes_and_own_methods():
    derived = Derived(1)
    assert derived.first == 1 and repr(derived) == "mine" and Base(1) != derived and Base(1) == Base(1)
    assert Derived(1, 2.0) == Derived(second=2.0, first=1)
    assert pickle.loads(pickle.dumps(Derived(1, 2.0))) == Derived(1, 2.0)
    assert Identity(1) != Identity(1) and len({Identity(1), Identity(1)}) == 2
    nan = float("nan")
    assert Alone(nan) == Alone(nan)  # the same object, as in a tuple
    assert hash(Alone(0.5)) == hash(Alone(0.5))
