"""What kernels in Gluon have in common: the layout of tensor cores, numbered places, instructions of PTX."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

wait_for_all = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # as Triton 3.6 calls it


@gluon.constexpr_function
def mma_layout(warps):
    """Lay out [warps, lines, columns] as tensor cores leave their products, each warp its own."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps, 1, 1], instr_shape=[1, 16, 8])


@gluon.jit
def axes(A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, layout: gl.constexpr):
    """Number the places of [A, B, C]: [A, 1, 1], [1, B, 1] and [1, 1, C]."""
    a = gl.arange(0, A, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None][:, :, None]
    b = gl.arange(0, B, layout=gl.SliceLayout(0, gl.SliceLayout(2, layout)))[None, :][:, :, None]
    c = gl.arange(0, C, layout=gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, :][:, None, :]
    return a, b, c


@gluon.jit
def ptx(code: gl.constexpr):
    """Place instructions between the loads and stores before them and those after; they set $0, which is dropped."""
    gl.inline_asm_elementwise(code, "=r", [], gl.int32, is_pure=False, pack=1)


@gluon.jit
def let_next_begin():
    """Let the kernel after this one begin: see chain.py."""
    ptx("griddepcontrol.launch_dependents; mov.b32 $0, 0;")


@gluon.jit
def wait_for_last():
    """Wait until all that the kernel before this one wrote is there."""
    ptx("griddepcontrol.wait; mov.b32 $0, 0;")


@gluon.jit
def narrow(values, KIND: gl.constexpr):
    """Do what `kernels.narrow` does."""
    if gl.float16 == KIND:
        values = gl.minimum(gl.maximum(values, -65504.0), 65504.0)
    return values.to(KIND)
