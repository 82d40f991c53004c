"""A made-up accelerator, "fake": its memory is the CPU's, and it refuses tensors on the CPU where CUDA refuses them.

It tells nothing of an accelerator's kernels, precision, autocast or speed. Complex numbers are not supported.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

DEVICE = "fake:0"
SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_TAKES_NO_NUMBER_OF_THE_CPU = ("cat", "equal", "gather", "scatter", "index_add", "index_select", "index_copy")
_RENAMED = {"convolution_overrideable": "convolution", "convolution_backward_overrideable": "convolution_backward"}
_LIBRARIES: list[torch.library.Library] = []


class _Module(getattr(backend_registration, "_DummyBackendModule", object)):
    """`torch.fake`, with random numbers of its own."""

    def manual_seed_all(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.state.clone()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.state = state.clone()


_MODULE = _Module()


def install() -> None:
    """Registers the device, for the rest of the process: call it in a process of its own."""
    _MODULE.manual_seed_all(0)
    backend_registration._setup_privateuseone_for_python_backend("fake", backend_module=_MODULE)
    _LIBRARIES.extend(torch.library.Library(name, "IMPL", "PrivateUse1") for name in ("_", "aten"))
    _LIBRARIES[0].fallback(_on_the_cpu)
    for name in _RENAMED:  # torch has kernels of its own for these, which raise
        op = getattr(torch.ops.aten, name).default
        _LIBRARIES[1].impl(name, lambda *args, op=op: _on_the_cpu(op, *args))
    for name in ("data_ptr", "cpu"):  # torch.save and safetensors ask a storage for them
        setattr(torch.UntypedStorage, name, _of_memory(getattr(torch.UntypedStorage, name)))
    copied = Tensor.__deepcopy__
    Tensor.__deepcopy__ = lambda one, memo: (
        memo.setdefault(id(one), one.clone()) if _is_fake(one) and type(one) is Tensor else copied(one, memo)
    )


def _of_memory(method: Any) -> Any:
    return lambda storage, *args: method(getattr(storage, "memory", storage), *args)


def to_fake(model: torch.nn.Module) -> torch.nn.Module:
    """Moves a model there, whose tied weights torch takes apart on the way."""
    model.to(DEVICE).tie_weights()
    return model


def _is_fake(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "fake"


def _unwrapped(fake: Tensor) -> Tensor:
    memory = fake.untyped_storage().memory
    return torch.empty(0, dtype=fake.dtype).set_(memory, fake.storage_offset(), fake.size(), fake.stride())


def _wrapped(real: Tensor) -> Tensor:
    """A fake tensor; views of one memory share the fake memory, too."""
    fake, memory = torch._C._acc.create_empty_tensor(list(real.size()), real.dtype), real.untyped_storage()
    storage = getattr(memory, "fake", lambda: None)()
    if storage is None:
        storage = fake.untyped_storage()
        storage.memory, memory.fake = memory, weakref.ref(storage)
    return _put(fake, storage, real)


def _put(fake: Tensor, storage: Any, real: Tensor) -> Tensor:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
    place = real.storage_offset(), real.size(), real.stride()
    return torch.ops.aten.set_.source_Storage_storage_offset.redispatch(keys, fake, storage, *place)


def _on_the_cpu(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What an operation gives on the CPU, on the fake device. Raises RuntimeError where CUDA does."""
    name, is_random, _ = _traits(op)
    if name == "_copy_from":  # from any device to any other
        source, target = (_unwrapped(value) if _is_fake(value) else value for value in args[:2])
        target.copy_(source)
        return args[1]
    if name == "_fused_sdp_choice":
        return 0
    pairs: list[tuple[Tensor, Tensor]] = []
    given = (args[0], *args[2:3]) if name in _INDEXING else (args, kwargs)  # indices may be on the CPU
    args, kwargs = _each((args, kwargs), lambda value: _argument(value, pairs))
    _check(name, given, bool(pairs))
    args = _with_tensors(op, args)
    if name in _RENAMED:
        op = getattr(torch.ops.aten, _RENAMED[name]).default
        args = args if name == "convolution_overrideable" else (*args[:3], None, *args[3:])
    if is_random:
        kept = torch.get_rng_state()
        torch.set_rng_state(_MODULE.state)
    found = op(*args, **kwargs)
    if is_random:
        _MODULE.state = torch.get_rng_state()
        torch.set_rng_state(kept)
    for real, fake in pairs:
        if (real.size(), real.stride()) != (fake.size(), fake.stride()):
            _put(fake, fake.untyped_storage(), real)
    return _each(found, lambda value: _result(value, pairs))


@functools.cache
def _traits(op: Any) -> tuple[str, bool, list[bool]]:
    """An operation's name, whether it draws random numbers, and which arguments are tensors."""
    tensors = [argument.type.kind() == "TensorType" for argument in op._schema.arguments]
    return op._schema.name.split("::")[1], torch.Tag.nondeterministic_seeded in op.tags, tensors


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same for each leaf of a tree."""
    if isinstance(value, list | tuple):
        return type(value)([_each(part, function) for part in value])
    return {key: _each(part, function) for key, part in value.items()} if isinstance(value, dict) else function(value)


def _argument(value: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    """An argument on the CPU. Adds a fake tensor to `pairs`, behind its stand-in on the CPU."""
    if _is_fake(value):
        pairs.append((_unwrapped(value), value))
        return pairs[-1][0]
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "fake" else value


def _check(name: str, arguments: Any, is_mixed: bool) -> None:
    given: list[Any] = []
    _each(arguments, given.append)
    least = 0 if name.rstrip("_") in _TAKES_NO_NUMBER_OF_THE_CPU else 1
    on_cpu = [value for value in given if isinstance(value, Tensor) and not _is_fake(value) and value.dim() >= least]
    if on_cpu and is_mixed:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu, in {name}!")
    if any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError("Expected a 'fake' device type for generator but found 'cpu'")


def _with_tensors(op: Any, args: tuple) -> tuple:
    """The arguments, with tensors again where torch has taken numbers out of them."""

    def tensor(value: Any) -> Tensor:
        # A number among many of its kind must not decide the result's dtype, and keeps its digits.
        is_float = isinstance(value, float) and like.is_floating_point()
        return torch.tensor(value, dtype=(torch.float64 if like.dim() else like.dtype) if is_float else None)

    takes = _traits(op)[2]
    numbers = [isinstance(arg, int | float) and takes[place] for place, arg in enumerate(args)]
    if not any(numbers):
        return args
    like = next((value for value in args if isinstance(value, Tensor)), torch.tensor(0))
    return tuple(tensor(arg) if is_number else arg for is_number, arg in zip(numbers, args, strict=True))


def _result(value: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    """A result on the fake device: the argument itself, if it was changed in place."""
    if not isinstance(value, Tensor):
        return value
    known = [fake for real, fake in pairs if real is value]
    return known[0] if known else _wrapped(value)
