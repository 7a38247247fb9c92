"""A pretended GPU: runs a script on a CUDA device that does not exist.

    python tests/support/pretended/gpu.py SCRIPT [ARGUMENTS]      or: -m MODULE [ARGUMENTS]

torch's own CUDA build does its work (allocators, streams, events, pinned memory, autograd's
device threads, autocast, loss scaling), on the runtime of cudart.c. Each operation on a CUDA
tensor runs on the CPU over the same memory. This finds tensors on two devices, waits of the host
with their places (`WAITS`), pinned memory that is written during a copy, results that are read too
early, layouts that fused SGD does not take, and what a CUDA graph does not repeat. It does not find
races between streams, nor errors of cuDNN, NCCL or compiled code.
"""

import atexit
import collections
import contextlib
import ctypes
import os
import runpy
import shutil
import subprocess
import sys
import tempfile

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

HERE = os.path.dirname(os.path.abspath(__file__))
WAITS = collections.Counter()  # of the host for the device: (kind, place in the program) -> count
OPERATIONS = collections.Counter()  # those that launch a kernel, by name
aten = torch.ops.aten

# what torch can do itself with a CUDA tensor, since no kernel runs
NATIVE = {
    *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "set_", "resize_"),
    *("record_stream", "is_pinned", "_pin_memory", "_local_scalar_dense", "detach", "alias"),
    *("lift_fresh", "_has_compatible_shallow_copy_type", "_unsafe_view"),
}
# the size of whose result the host has to know
WAITING = {
    *("nonzero", "masked_select", "equal", "allclose", "_unique2", "unique_dim", "bincount", "nms"),
    *("unique_consecutive", "repeat_interleave", "histc"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


def why_not():
    """Why there can be no pretended GPU here; None if there can."""
    if sys.platform != "linux" or not (torch.version.cuda or "").startswith("13"):
        return "the pretended GPU needs Linux and PyTorch for CUDA 13"
    if not shutil.which("gcc"):
        return "the pretended GPU needs gcc"
    return None if os.path.isdir(_headers()) else "the pretended GPU needs triton's CUDA headers"


def _headers():
    try:
        import triton
    except ImportError:
        return ""
    return os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "include")


def environment(folder, gpus=1):
    """The environment of a process on pretended GPUs; builds the libraries in a folder."""
    library, driver = (os.path.join(folder, name) for name in ("libpretended.so", "libcuda.so.1"))
    if not os.path.exists(driver):
        # torch's own headers first: those of an older triton are CUDA 12's, with other structures
        own = os.path.join(os.path.dirname(torch.__path__[0]), "nvidia", "cu13", "include")
        gcc = ("gcc", "-O1", "-shared", "-fPIC", "-w", f"-I{own}", f"-I{_headers()}")
        subprocess.run([*gcc, f"{HERE}/cudart.c", "-o", library, "-lpthread"], check=True)
        subprocess.run(
            [*gcc, f"{HERE}/driver.c", "-Wl,-soname,libcuda.so.1", "-o", driver], check=True
        )
    return {
        **os.environ,
        "LD_PRELOAD": library,
        "LD_LIBRARY_PATH": folder,
        "PRETENDED_GPUS": str(gpus),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
        "OMP_NUM_THREADS": "1",
    }


def runtime():
    """The runtime that this process was started with."""
    found = ctypes.CDLL(os.environ["LD_PRELOAD"])
    found.pretended_overwritten.restype = ctypes.c_uint64
    found.pretended_total.argtypes = [ctypes.c_size_t]
    return found


class Graph:
    """A CUDA graph: the operations of a capture, run over the same memory by each replay."""

    capturing = None  # the graph that is being captured

    def __init__(self):
        self.operations, self.before, self.refused = [], {}, []

    @contextlib.contextmanager
    def capture(self, **_):
        """Add what runs inside; at the end undo what it wrote, because a capture runs nothing."""
        Graph.capturing = self
        try:
            yield
        finally:
            Graph.capturing = None
            for memory, before in self.before.values():
                memory.copy_(before)
        if self.refused:
            raise RuntimeError(f"not permitted in a capture: {self.refused}")

    def add(self, run, tensors):
        """Run an operation on these tensors; a replay writes its results to the same memory."""
        for tensor in tensors:
            if not tensor.is_cuda:
                self.refused.append("a tensor of the CPU")
                continue
            storage = on_cpu(tensor).untyped_storage()
            memory = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.before.setdefault(storage.data_ptr(), (memory, memory.clone()))
        result = run()
        kept = [(i, t) for i, t in enumerate(tree_leaves(result)) if isinstance(t, torch.Tensor)]
        kept = [(i, t) for i, t in kept if all(t is not argument for argument in tensors)]

        def again():
            found = tree_leaves(run())
            for i, tensor in kept:
                on_cpu(tensor).copy_(on_cpu(found[i]))

        self.operations.append(again)
        return result

    def replay(self):
        with _disable_current_modes(), torch.no_grad():
            for operation in self.operations:
                operation()


def count_wait(kind):
    """Count a wait of the host, under the innermost line of the program."""
    if Graph.capturing:
        Graph.capturing.refused.append(f"a wait ({kind})")
    frame, place = sys._getframe(1), "none of its lines"  # in a thread of autograd
    while frame is not None:
        name = frame.f_code.co_filename
        if not (name.startswith("<") or name == __file__ or "/lib/python" in name):
            place = f"{os.path.basename(name)}:{frame.f_lineno} {frame.f_code.co_name}"
            break
        frame = frame.f_back
    WAITS[kind, place] += 1


_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda kind: count_wait(kind.decode()))


def on_cpu(tensor):
    """The memory of a CUDA tensor as a tensor of the CPU."""
    storage = tensor.untyped_storage()
    cpu = torch.device("cpu")
    own = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), cpu, storage.nbytes())
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(own, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_gpu(tensor):
    """A new CUDA tensor with the numbers of one of the CPU."""
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
    on_cpu(made).copy_(tensor)
    return made


class PretendedGPU(TorchDispatchMode):
    """Runs operations on CUDA tensors on the CPU."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        device = torch.device(kwargs.get("device") or "cpu").type
        if device != "cuda" and not any(t.is_cuda for t in tensors):
            return operation(*args, **kwargs)
        if operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # inference mode does not take these apart before
                return operation.decompose(*args, **kwargs)
        name = operation._schema.name.partition("::")[2]
        returns = operation._schema.returns
        is_view = returns and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if is_view or name in NATIVE:
            return operation(*args, **kwargs)
        OPERATIONS[name] += 1

        def run():
            if name == "copy_":
                return self._copy(*args, **kwargs)
            if name == "_to_copy":
                return self._to_copy(*args, **kwargs)
            self._check(name, tensors, args)
            return self._run(operation, name, args, kwargs, device == "cuda")

        return Graph.capturing.add(run, tensors) if Graph.capturing else run()

    def _check(self, name, tensors, args):
        """RuntimeError for what CUDA's kernels refuse; counts what waits."""
        for tensor in tensors:
            if not tensor.is_cuda and tensor.dim():
                if name not in INDEXING or tensor.dtype not in (torch.int64, torch.bool):
                    shape = tuple(tensor.shape)
                    raise RuntimeError(f"{name}: one tensor, of shape {shape}, is on the CPU")
                count_wait(f"{name} by an index on the CPU")
        indexing = name in INDEXING
        by_mask = indexing and any(t is not None and t.dtype == torch.bool for t in args[1])
        # a number of the host fills a mask without a wait, but is copied for places
        number = indexing and name != "index" and not args[2].is_cuda
        if name in WAITING or by_mask != number:
            count_wait(name)
        if name.startswith("_fused"):
            lists = [a for a in args if isinstance(a, (list, tuple)) and a][:3]
            for tensors in zip(*lists):
                layouts = {(t.dtype, t.device, t.size(), _strides(t)) for t in tensors}
                if len(layouts) > 1:
                    raise RuntimeError(f"{name}: one parameter has several layouts: {layouts}")

    def _run(self, operation, name, args, kwargs, makes):
        originals = {}

        def lower(value):
            if isinstance(value, torch.Tensor) and value.is_cuda:
                lowered = on_cpu(value)
                originals[id(lowered)] = lowered, value
                return lowered
            return value

        def lift(value):
            if not isinstance(value, torch.Tensor):
                return value
            return originals[id(value)][1] if id(value) in originals else on_gpu(value)

        args, kwargs = tree_map(lower, (args, kwargs))
        if makes:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        operation = {"cudnn_batch_norm": _norm, "cudnn_batch_norm_backward": _norm_back}.get(
            name, operation
        )
        try:
            return tree_map(lift, operation(*args, **kwargs))
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented for" not in str(error) and "mkldnn" not in str(error):
                raise
        # what the CPU lacks in half precision, by way of float32
        dtype = next(t.dtype for t in tree_leaves(args) if isinstance(t, torch.Tensor))
        args, kwargs = tree_map(lambda value: _cast(value, dtype, torch.float32), (args, kwargs))
        result = operation(*args, **kwargs)
        return tree_map(lambda value: lift(_cast(value, torch.float32, dtype)), result)

    def _to_copy(self, source, *, dtype=None, device=None, memory_format=None, **more):
        """A new tensor: dtype and layout are changed on the side where the source lies."""
        device, dtype = torch.device(device or source.device), dtype or source.dtype
        layout = {} if memory_format is None else {"memory_format": memory_format}
        own = on_cpu(source) if source.is_cuda else source
        made = aten._to_copy(own, dtype=dtype, **layout)
        if source.is_cuda and device.type == "cuda":
            return on_gpu(made)
        plain = dtype == source.dtype and made.stride() == source.stride()
        if not plain:  # else torch's own copy, asynchronous if the memory is pinned
            source = on_gpu(made) if source.is_cuda else made
        blank = torch.empty_strided(made.size(), made.stride(), dtype=dtype, device=device)
        return blank.copy_(source, more.get("non_blocking", False))

    def _copy(self, target, source, non_blocking=False):
        if target.is_cuda and source.is_cuda:
            on_cpu(target).copy_(on_cpu(source))
            return target
        same = target.dtype == source.dtype and target.size() == source.size()
        if same and target.stride() == source.stride() and _is_dense(target):
            return target.copy_(source, non_blocking)
        if target.is_cuda:
            whole = torch.empty(target.size(), dtype=target.dtype).copy_(source)
            arrived = torch.empty(target.size(), dtype=target.dtype, device="cuda")
            on_cpu(target).copy_(on_cpu(arrived.copy_(whole, non_blocking)))
            return target
        whole = on_gpu(on_cpu(source).to(target.dtype).contiguous())
        return target.copy_(torch.empty(source.size(), dtype=target.dtype).copy_(whole))


def _strides(tensor):
    return tuple(s for s, n in zip(tensor.stride(), tensor.size()) if n > 1)


def _is_dense(tensor):
    return torch.empty_like(tensor.detach(), device="cpu").stride() == tensor.stride()


def _cast(value, before, after):
    is_one = isinstance(value, torch.Tensor) and value.dtype == before
    return value.to(after) if is_one else value


def _norm(x, weight, bias, mean, var, training, momentum, eps):
    """cudnn_batch_norm, which the CPU lacks."""
    found = aten.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
    return *found, torch.empty(0, dtype=torch.uint8)


def _norm_back(x, gradient, weight, mean, var, saved_mean, saved_var, eps, reserve):
    settings = (True, eps, [True] * 3)
    return aten.native_batch_norm_backward(
        gradient, x, weight, mean, var, saved_mean, saved_var, *settings
    )


def report():
    """Print every wait with its place."""
    for (kind, place), count in WAITS.most_common(40):
        print(f"{count:6d} waits ({kind}) at {place}", file=sys.stderr)
    written = runtime().pretended_overwritten()
    print(f"{written} times pinned memory was written during a copy", file=sys.stderr)


def run(words):
    """Run a script, or -m and a module, with its arguments."""
    runtime().pretended_on_wait(_callback)
    torch.cuda.init()
    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, Graph.capture
    script, *sys.argv[1:] = words
    with PretendedGPU():
        if script == "-m":
            sys.argv = sys.argv[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[0], sys.path[0] = script, os.path.dirname(os.path.abspath(script))
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    if "libpretended" not in os.environ.get("LD_PRELOAD", ""):
        reason = why_not()
        if reason:
            sys.exit(reason)
        age = int(os.path.getmtime(os.path.join(HERE, "cudart.c")))
        folder = os.path.join(tempfile.gettempdir(), f"pretended-gpu-{os.getuid()}-{age}")
        os.makedirs(folder, exist_ok=True)
        count = int(os.environ.get("PRETENDED_GPUS", 1))
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        os.execve(sys.executable, command, environment(folder, count))
    sys.modules["gpu"] = sys.modules["__main__"]  # for scripts that read WAITS
    atexit.register(report)
    end = os._exit  # which skips atexit
    os._exit = lambda status: (report(), sys.stderr.flush(), end(status))
    run(sys.argv[1:])
