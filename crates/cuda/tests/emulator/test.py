"""Driver, cuDNN, cuBLASLt and NVRTC of this folder by ctypes, against NumPy. test.sh builds them and starts this."""
import ctypes, itertools, os, subprocess, sys, time
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p

import numpy as np

cuda, dnn, lt, rtc = (ctypes.CDLL(n) for n in ("libcuda.so.1", "libcudnn.so.9", "libcublasLt.so.13", "libnvrtc.so.13"))
rng = np.random.default_rng(0)


def ok(status, what=""):
    if status:
        text = ctypes.create_string_buffer(1000)
        dnn.cudnnGetLastErrorString(text, c_size_t(1000))
        raise AssertionError(f"{what} {status} {text.value.decode()}")


def refused(status, code):
    assert status == code, f"{status} in place of {code}"


def begin(device=0):
    context = c_void_p()
    ok(cuda.cuInit(0))
    ok(cuda.cuDevicePrimaryCtxRetain(byref(context), device))
    ok(cuda.cuCtxSetCurrent(context))


def new_stream(flags=1):
    s = c_void_p()
    ok(cuda.cuStreamCreate(byref(s), flags))
    return s


# numbers: arrays of f32 that hold what the type can say, and their bytes
def bf16(a):
    u = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


PACK = {"f32": lambda a: np.ascontiguousarray(a, np.float32), "f16": lambda a: a.astype(np.float16), "bf16": bf16}
UNPACK = {"f32": lambda a: a.view(np.float32), "f16": lambda a: a.view(np.float16).astype(np.float32), "bf16": lambda a: (a.view(np.uint16).astype(np.uint32) << 16).view(np.float32)}
SIZE, ERROR = {"f32": 4, "f16": 2, "bf16": 2}, {"f32": 2e-6, "f16": 6e-4, "bf16": 4e-3}
DNN_TYPE, LT_TYPE = {"f32": 0, "f16": 2, "bf16": 9}, {"f32": 0, "f16": 2, "bf16": 14}


class Memory:
    """An array on the device."""

    def __init__(self, values=None, kind="f32", count=0):
        self.kind, self.shape = kind, values.shape if values is not None else (count,)
        self.bytes = int(np.prod(self.shape)) * SIZE[kind]
        self.p = c_void_p()
        ok(cuda.cuMemAlloc_v2(byref(self.p), c_size_t(self.bytes)))
        if values is not None:
            data = np.ascontiguousarray(PACK[kind](values))
            ok(cuda.cuMemcpyHtoD_v2(self.p, data.ctypes.data_as(c_void_p), c_size_t(self.bytes)))

    def read(self):
        out = np.zeros(self.bytes, np.uint8)
        ok(cuda.cuMemcpyDtoH_v2(out.ctypes.data_as(c_void_p), self.p, c_size_t(self.bytes)))
        return UNPACK[self.kind](out).reshape(self.shape)

    def __del__(self):
        cuda.cuMemFree_v2(self.p)


def normal(shape, kind):
    values = rng.standard_normal(shape).astype(np.float32)
    return UNPACK[kind](PACK[kind](values).reshape(-1)).reshape(shape)


def close(got, want, kind, what):
    assert np.isfinite(got).all(), f"{what}: not finite"
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-9)
    assert error < ERROR[kind], f"{what}: {error}"


# cuDNN
TENSOR, CONV, ENGINE, CFG, HEUR, PLAN, POINTWISE, FWD, WGRAD, DGRAD, OP_PW, GRAPH, PACKED = 17, 1, 2, 3, 4, 5, 0, 10, 11, 12, 13, 15, 16
T_HANDLE, T_TYPE, T_BOOL, T_I64, T_F32, T_PTR, T_CONV, T_HEUR, T_NOTE, T_PW, T_DESC, T_RED, T_BEHAVIOUR = 0, 1, 2, 3, 4, 6, 7, 8, 11, 14, 15, 18, 19
C_TYPE = {T_I64: c_int64, T_F32: c_float, T_BOOL: ctypes.c_bool, T_DESC: c_void_p, T_PTR: c_void_p, T_HANDLE: c_void_p}
uids = itertools.count(1)


class Descriptor:
    def __init__(self, kind):
        self.p = c_void_p()
        ok(dnn.cudnnBackendCreateDescriptor(kind, byref(self.p)))

    def __del__(self):
        dnn.cudnnBackendDestroyDescriptor(self.p)

    def try_set(self, name, kind, values):
        plain = [v.p.value for v in values] if kind == T_DESC else values
        return dnn.cudnnBackendSetAttribute(self.p, name, kind, c_int64(len(plain)), (C_TYPE.get(kind, c_int) * len(plain))(*plain))

    def set(self, name, kind, values):
        ok(self.try_set(name, kind, values), f"attribute {name}")
        return self

    def try_done(self):
        return dnn.cudnnBackendFinalize(self.p)

    def done(self):
        ok(self.try_done(), "finalize")
        return self

    def get(self, name, kind, room=16):
        out, n = (C_TYPE.get(kind, c_int) * room)(), c_int64()
        ok(dnn.cudnnBackendGetAttribute(self.p, name, kind, c_int64(room), byref(n), out))
        return list(out[: n.value])

    def descriptors(self, name, kind, room=16):
        n = c_int64()
        ok(dnn.cudnnBackendGetAttribute(self.p, name, T_DESC, c_int64(0), byref(n), None))
        found = [Descriptor(kind) for _ in range(n.value)]
        out = (c_void_p * n.value)(*[d.p.value for d in found])
        ok(dnn.cudnnBackendGetAttribute(self.p, name, T_DESC, c_int64(n.value), byref(n), out))
        return found


def tensor(dims, kind, pitch=None, virtual=False):
    n, c, h, w = dims
    p = pitch or c
    t = Descriptor(TENSOR).set(900, T_I64, [16 if pitch is None else SIZE[kind]]).set(901, T_TYPE, [DNN_TYPE[kind]]).set(902, T_I64, dims)
    t.set(903, T_I64, [h * w * p, 1, w * p, p]).set(906, T_I64, [next(uids)]).set(907, T_BOOL, [virtual])
    return t.done()


def uid(t):
    return t.get(906, T_I64)[0]


def convolution(stride, pre, post):
    d = Descriptor(CONV).set(106, T_I64, [2]).set(100, T_TYPE, [0]).set(101, T_CONV, [1]).set(102, T_I64, [1, 1])
    return d.set(103, T_I64, stride).set(104, T_I64, post).set(105, T_I64, pre).done()


def operation(kind, conv, x, w, y, beta=0.0):
    base = {FWD: 700, DGRAD: 706, WGRAD: 712}[kind]
    a, b = (716, 717) if kind == WGRAD else (base + 4, base + 5)
    o = Descriptor(kind).set(base, T_F32, [1.0]).set(base + 1, T_F32, [beta]).set(base + 2, T_DESC, [conv])
    return o.set(base + 3, T_DESC, [w]).set(a, T_DESC, [x]).set(b, T_DESC, [y]).done()


def pointwise(mode, x, y, b=None):
    o = Descriptor(OP_PW).set(750, T_DESC, [Descriptor(POINTWISE).set(0, T_PW, [mode]).set(1, T_TYPE, [0]).done()]).set(751, T_DESC, [x]).set(753, T_DESC, [y])
    return (o if b is None else o.set(752, T_DESC, [b])).done()


def configs(ops, mode):
    graph = Descriptor(GRAPH).set(801, T_DESC, ops).set(800, T_HANDLE, [handle.value]).done()
    return Descriptor(HEUR).set(201, T_DESC, [graph]).set(200, T_HEUR, [mode]).done().descriptors(202, CFG)


def notes(config, which=1303):
    return config.descriptors(300, ENGINE)[0].get(which, T_NOTE if which == 1303 else T_BEHAVIOUR)


def plan(ops, mode=3, want=lambda notes: 4 not in notes):
    chosen = next(c for c in configs(ops, mode) if want(notes(c)))
    return Descriptor(PLAN).set(401, T_DESC, [chosen]).set(400, T_HANDLE, [handle.value]).done()


def pack(memory, workspace=None):
    d = Descriptor(PACKED).set(1000, T_I64, list(memory)).set(1001, T_PTR, [m.p.value if isinstance(m, Memory) else m for m in memory.values()])
    return (d if workspace is None else d.set(1003, T_PTR, [workspace.p.value])).done()


def start(made, packed):
    return dnn.cudnnBackendExecute(handle, made.p, packed.p)


def execute(made, memory, wait=True):
    room = made.get(402, T_I64)[0]
    workspace = Memory(count=room // 4) if room else None
    ok(start(made, pack(memory, workspace)), "execute")
    if wait:
        ok(cuda.cuStreamSynchronize(stream))


def reference(x, w, stride, pre, post):
    """Channels-last convolution in f64, and its gradients for g."""
    (n, h, v, c), (k, r, s, _) = x.shape, w.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (pre[0], post[0]), (pre[1], post[1]), (0, 0)))
    p, q = (padded.shape[1] - r) // stride[0] + 1, (padded.shape[2] - s) // stride[1] + 1
    cut = lambda a, i, j: a[:, i : i + p * stride[0] : stride[0], j : j + q * stride[1] : stride[1]][:, :p, :q]
    y = sum(cut(padded, i, j) @ w[:, i, j].T.astype(np.float64) for i in range(r) for j in range(s))

    def gradients(g):
        back, dw = np.zeros_like(padded), np.zeros(w.shape)
        for i in range(r):
            for j in range(s):
                cut(back, i, j)[...] += g @ w[:, i, j]
                dw[:, i, j] = np.einsum("npqk,npqc->kc", g, cut(padded, i, j))
        return back[:, pre[0] : pre[0] + h, pre[1] : pre[1] + v], dw

    return y, gradients


def nchw(a):
    return [a.shape[0], a.shape[3], a.shape[1], a.shape[2]]


def test_convolutions():
    cases = [((2, 6, 6, 8), (16, 3, 3), (1, 1), (1, 1), (1, 1)), ((2, 6, 6, 8), (16, 3, 3), (2, 2), (0, 0), (1, 1)), ((3, 5, 7, 3), (5, 1, 1), (1, 1), (0, 0), (0, 0)),
             ((1, 7, 6, 4), (6, 5, 3), (2, 1), (2, 0), (1, 1)), ((2, 8, 8, 40), (33, 3, 3), (1, 1), (1, 1), (1, 1)), ((2, 4, 4, 8), (8, 4, 4), (4, 4), (0, 0), (0, 0)), ((1, 6, 6, 5), (7, 1, 1), (2, 2), (0, 0), (0, 0))]
    for kind in ("f32", "f16", "bf16"):
        for shape, (k, r, s), stride, pre, post in cases:
            what = f"{kind} {shape} {k}x{r}x{s}"
            x, w = normal(shape, kind), normal((k, r, s, shape[3]), kind)
            y, gradients = reference(x, w, stride, pre, post)
            g = normal(y.shape, kind)
            dx, dw = gradients(g)
            X, W, Y = tensor(nchw(x), kind), tensor(nchw(w), kind), tensor(nchw(y), kind)
            mx, mw, mg = Memory(x, kind), Memory(w, kind), Memory(g, kind)
            conv = convolution(stride, pre, post)
            for op, to, want in ((FWD, Y, y), (DGRAD, X, dx), (WGRAD, W, dw)):
                mine = Memory(kind=kind, count=want.size)
                memory = {uid(X): mx, uid(W): mw, uid(Y): mg}
                memory[uid(to)] = mine
                execute(plan([operation(op, conv, X, W, Y)], 2 if kind == "f32" else 3), memory)
                close(mine.read().reshape(want.shape), want, kind, f"{what} {op}")
    # a slice of a wider tensor, in and out, and a sum onto what is there
    wide_x, w = normal((2, 6, 6, 24), "bf16"), normal((16, 3, 3, 8), "bf16")
    y, _ = reference(wide_x[..., 8:16], w, (1, 1), (1, 1), (1, 1))
    before = normal((2, 6, 6, 48), "bf16")
    X, W, Y = tensor([2, 8, 6, 6], "bf16", 24), tensor([16, 8, 3, 3], "bf16"), tensor([2, 16, 6, 6], "bf16", 48)
    mx, mw, my = Memory(wide_x, "bf16"), Memory(w, "bf16"), Memory(before, "bf16")
    made = plan([operation(FWD, convolution([1, 1], [1, 1], [1, 1]), X, W, Y, beta=-0.5)])
    assert made.get(402, T_I64)[0] > 0, "a strided tensor takes workspace"
    execute(made, {uid(X): mx.p.value + 16, uid(W): mw, uid(Y): my.p.value + 32})
    want = before.copy()
    want[..., 16:32] = y - 0.5 * before[..., 16:32]
    close(my.read(), want, "bf16", "slices")


def fused(kind, bias_kind, residual, order="residual first", virtual="f32", swish=False):
    x, w, z, b = normal((2, 5, 5, 16), kind), normal((32, 3, 3, 16), kind), normal((2, 5, 5, 32), kind), normal((32,), bias_kind)
    y, _ = reference(x, w, (1, 1), (1, 1), (1, 1))
    X, W, Y, Z, B = tensor([2, 16, 5, 5], kind), tensor([32, 16, 3, 3], kind), tensor([2, 32, 5, 5], kind), tensor([2, 32, 5, 5], kind), tensor([1, 32, 1, 1], bias_kind)
    steps = [(0, B)] + ([(0, Z)] if residual else [])
    steps = (steps[::-1] if order == "residual first" else steps) + ([(106, None)] if swish else [])
    at = tensor([2, 32, 5, 5], virtual, virtual=True)
    ops = [operation(FWD, convolution([1, 1], [1, 1], [1, 1]), X, W, at)]
    for i, (mode, other) in enumerate(steps):
        to = Y if i == len(steps) - 1 else tensor([2, 32, 5, 5], virtual, virtual=True)
        ops.append(pointwise(mode, at, to, other))
        at = to
    memory = {uid(X): Memory(x, kind), uid(W): Memory(w, kind), uid(B): Memory(b, bias_kind), uid(Y): Memory(kind=kind, count=z.size)}
    if residual:
        memory[uid(Z)] = Memory(z, kind)
    mode = 2 if kind == "f32" else 3
    run_time = 0 in notes(configs(ops, mode)[0], 1305)
    want = y + b + (z if residual else 0)
    want = want / (1 + np.exp(-want)) if swish else want
    made = plan(ops, mode)
    del ops, at, to
    execute(made, memory)
    close(memory[uid(Y)].read().reshape(z.shape), want, kind, f"fused {kind} {bias_kind} {order}")
    return run_time


def test_fusions():
    for kind in ("f32", "f16", "bf16"):
        for bias in {"f32", kind}:
            assert not fused(kind, bias, True) and not fused(kind, bias, False)
    assert fused("bf16", "f32", True, "bias first"), "bias, then residual is compiled at run time"
    assert fused("bf16", "bf16", False, swish=True)
    x = normal((2, 4, 4, 8), "bf16")  # sums of each image and channel
    X, S = tensor([2, 8, 4, 4], "bf16"), tensor([2, 8, 1, 1], "f32")
    red = Descriptor(21).set(1600, T_RED, [0]).set(1601, T_TYPE, [0]).done()
    sums = Memory(count=16)
    execute(plan([Descriptor(22).set(1610, T_DESC, [X]).set(1611, T_DESC, [S]).set(1612, T_DESC, [red]).done()]), {uid(X): Memory(x, "bf16"), uid(S): sums})
    close(sums.read().reshape(2, 8), x.sum((1, 2)), "f32", "sums")


def test_rounding():
    odd = np.concatenate([np.array([0.0, -0.0, np.inf, -np.inf, 65504, 65519.9, 65520, 1e30, 6e-8, 3e-8, 1e-41, 3.4e38], np.float32), (1 + np.arange(1024, dtype=np.float32) / 1024 / 64).astype(np.float32)])
    odd = np.concatenate([odd, np.full(8 - len(odd) % 8, np.nan, np.float32)])
    for kind in ("f16", "bf16"):
        X, Y = tensor([1, 8, 1, len(odd) // 8], "f32"), tensor([1, 8, 1, len(odd) // 8], kind)
        x, y = Memory(odd), Memory(kind=kind, count=len(odd))
        execute(plan([pointwise(21, X, Y)]), {uid(X): x, uid(Y): y})
        with np.errstate(over="ignore"):
            want = UNPACK[kind](PACK[kind](odd))
        got, number = y.read(), ~np.isnan(odd)
        assert (got[number] == want[number]).all() and np.isnan(got[~number]).all(), kind


def test_engines():
    x, w = normal((2, 6, 6, 32), "f32"), normal((32, 3, 3, 32), "f32")
    y, _ = reference(x, w, (1, 1), (1, 1), (1, 1))
    X, W, Y = tensor(nchw(x), "f32"), tensor(nchw(w), "f32"), tensor(nchw(y), "f32")
    my = Memory(count=y.size)
    memory = {uid(X): Memory(x), uid(W): Memory(w), uid(Y): my}
    ops = lambda: [operation(FWD, convolution([1, 1], [1, 1], [1, 1]), X, W, Y)]
    assert [notes(c) for c in configs(ops(), 3)] == [[0], [0], [0, 4]]
    assert [notes(c) for c in configs(ops(), 2)] == [[], [4], []]
    execute(plan(ops(), 3), memory)
    error = np.abs(my.read().reshape(y.shape) - y).max() / np.abs(y).max()
    assert 2e-5 < error < 1e-3, f"mode A has TF32's precision: {error}"
    loose = plan(ops(), 2, lambda n: 4 in n)
    execute(loose, memory)
    first = my.read()
    execute(loose, memory)
    assert (first != my.read()).any(), "the nondeterministic engine differs"
    spacious = plan(ops(), 2)
    assert spacious.get(402, T_I64)[0] >= 4 * y.size * 4
    refused(start(spacious, pack(memory)), 2000)
    # an engine kept as a number
    graph = Descriptor(GRAPH).set(801, T_DESC, ops()).done()
    engine = Descriptor(ENGINE).set(1300, T_DESC, [graph]).set(1301, T_I64, [5]).done()
    config = Descriptor(CFG).set(300, T_DESC, [engine]).done()
    assert config.get(303, T_I64) == [0] and graph.get(802, T_I64) == [6]
    made = Descriptor(PLAN).set(401, T_DESC, [config]).set(400, T_HANDLE, [handle.value]).done()
    assert uid(X) in memory
    execute(made, memory)
    close(my.read().reshape(y.shape), y, "f32", "an engine by its number")
    refused(Descriptor(ENGINE).set(1300, T_DESC, [graph]).set(1301, T_I64, [6]).try_done(), 3000)
    os.environ["CUDNN_ON_CPU_REFUSE"] = "5,7"
    refused(Descriptor(PLAN).set(401, T_DESC, [config]).set(400, T_HANDLE, [handle.value]).try_done(), 3000)
    del os.environ["CUDNN_ON_CPU_REFUSE"]
    # mistakes
    refused(Descriptor(TENSOR).try_set(902, 23, [1, 2, 3, 4]), 2010)
    refused(Descriptor(TENSOR).try_set(700, T_F32, [1]), 2000)
    refused(Descriptor(TENSOR).set(900, T_I64, [16]).try_done(), 2000)
    refused(Descriptor(GRAPH).try_set(801, T_DESC, [Descriptor(FWD)]), 2004)
    bad = Descriptor(FWD).set(702, T_DESC, [convolution([2, 2], [1, 1], [1, 1])]).set(703, T_DESC, [W]).set(704, T_DESC, [X]).set(705, T_DESC, [Y])
    refused(bad.try_done(), 2008)
    run = lambda change: start(made, pack({**memory, **change}))
    refused(run({uid(X): memory[uid(X)].p.value + 4}), 2003)
    refused(run({uid(X): memory[uid(X)].p.value + 16}), 2005)
    refused(start(made, pack({uid(X): memory[uid(X)]})), 2000)


# cuBLASLt
def layout(kind, rows, cols, ld=None, batch=1, stride=0):
    made = c_void_p()
    ok(lt.cublasLtMatrixLayoutCreate(byref(made), LT_TYPE[kind], ctypes.c_uint64(rows), ctypes.c_uint64(cols), c_int64(ld or rows)))
    for name, v in ((5, c_int(batch)), (6, c_int64(stride))):
        ok(lt.cublasLtMatrixLayoutSetAttribute(made, name, byref(v), c_size_t(ctypes.sizeof(v))))
    return made


def product(kind, out, m, n, k, ta, tb, batch=1, epilogue=1, bias_kind=None, beta=0.0, pad=0, compute=68):
    """d = a b by its definition in column-major arrays; NumPy's arrays are row-major, so each is held transposed: [batch, cols, ld]."""
    a, b = normal((batch, m if ta else k, (k if ta else m) + pad), kind), normal((batch, k if tb else n, (n if tb else k) + pad), kind)
    d, bias = normal((batch, n, m + pad), out), normal((n if epilogue == 512 else m,), bias_kind or out)
    ma, mb, md, mbias = Memory(a, kind), Memory(b, kind), Memory(d, out), Memory(bias, bias_kind or out)
    shape = lambda a, rows: (rows, a.shape[1], a.shape[2], batch, a.shape[1] * a.shape[2])
    la, lb, ld = layout(kind, *shape(a, k if ta else m)), layout(kind, *shape(b, n if tb else k)), layout(out, *shape(d, m))
    desc, preference, found = c_void_p(), c_void_p(), c_int()
    ok(lt.cublasLtMatmulDescCreate(byref(desc), compute, 0))
    attributes = [(3, c_int(ta)), (4, c_int(tb)), (7, c_int(epilogue)), (8, mbias.p)] + ([(26, c_int(LT_TYPE[bias_kind]))] if bias_kind else [])
    for name, v in attributes[: 3 if epilogue == 1 else None]:
        ok(lt.cublasLtMatmulDescSetAttribute(desc, name, byref(v), c_size_t(ctypes.sizeof(v))))
    ok(lt.cublasLtMatmulPreferenceCreate(byref(preference)))
    result = (ctypes.c_uint64 * 12)(*[1] * 12)
    ok(lt.cublasLtMatmulAlgoGetHeuristic(blas, desc, la, lb, ld, ld, preference, 1, result, byref(found)), "heuristics")
    assert found.value == 1 and result[8] == 0
    one, beta_ = c_float(0.5), c_float(beta)
    ok(lt.cublasLtMatmul(blas, desc, byref(one), ma.p, la, mb.p, lb, byref(beta_), md.p, ld, md.p, ld, result, None, c_size_t(0), stream), "matmul")
    ok(cuda.cuStreamSynchronize(stream))
    ra, rb = k if ta else m, n if tb else k
    A, B = a[..., :ra].astype(np.float64), b[..., :rb].astype(np.float64)
    A, B = A if ta else A.transpose(0, 2, 1), B if tb else B.transpose(0, 2, 1)
    if tb:
        B = b[..., :rb].astype(np.float64)
    want = d.copy().astype(np.float64)
    want[..., :m] = (0.5 * (A @ B)).transpose(0, 2, 1) + beta * d[..., :m] + (bias if epilogue == 4 else 0)
    what = f"product {kind} {out} {m}x{n}x{k} {ta}{tb} {epilogue}"
    if compute == 77:
        error = np.abs(md.read() - want).max() / np.abs(want).max()
        assert 1e-5 < error < 1e-3, f"{what}: TF32 {error}"
    else:
        close(md.read(), want, out, what)
    if epilogue == 512:
        close(mbias.read(), B[0].sum(0), bias_kind or out, what + " gradient of the bias")
    if epilogue == 256:
        close(mbias.read(), A[0].sum(1), bias_kind or out, what + " gradient of the bias")
    for l in (la, lb, ld):
        lt.cublasLtMatrixLayoutDestroy(l)
    lt.cublasLtMatmulDescDestroy(desc), lt.cublasLtMatmulPreferenceDestroy(preference)


def test_products():
    for kind, out in (("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("f16", "f32"), ("bf16", "f32")):
        for ta, tb in itertools.product((0, 1), (0, 1)):
            product(kind, out, 7, 5, 24, ta, tb)
            product(kind, out, 70, 33, 300, ta, tb, beta=1.0, pad=2)
            product(kind, out, 9, 4, 16, ta, tb, batch=3, beta=-2.0, pad=1)
            for bias in {out, "f32"}:
                product(kind, out, 13, 40, 8, ta, tb, epilogue=4, bias_kind=bias)
                product(kind, out, 12, 17, 33, ta, tb, epilogue=512, bias_kind=bias)
                product(kind, out, 12, 17, 33, ta, tb, epilogue=256, bias_kind=bias)
    product("bf16", "bf16", 6, 10, 3, 0, 1, epilogue=4)
    product("f32", "f32", 64, 64, 64, 0, 0, compute=77)
    desc = c_void_p()
    ok(lt.cublasLtMatmulDescCreate(byref(desc), 68, 0))
    one, m, f = c_float(1), Memory(count=64), layout("f32", 8, 8)
    call = lambda a, b, d, algo=None, at=0: lt.cublasLtMatmul(blas, desc, byref(one), c_void_p(m.p.value + at), a, m.p, b, byref(one), m.p, d, m.p, d, algo, None, c_size_t(0), stream)
    refused(call(f, layout("f32", 7, 8), f), 7)
    refused(call(f, layout("bf16", 8, 8), f), 15)
    refused(call(f, f, f, at=4), 7)
    refused(call(f, f, f, (ctypes.c_uint64 * 8)()), 7)


# the driver
def capture(work, mode=1, wanted=0):
    graph, ready = c_void_p(), c_void_p()
    ok(cuda.cuStreamBeginCapture_v2(stream, mode))
    work()
    refused(cuda.cuStreamEndCapture(stream, byref(graph)), wanted)
    if wanted:
        return None
    ok(cuda.cuGraphInstantiateWithFlags(byref(ready), graph, ctypes.c_ulonglong(0)))
    ok(cuda.cuGraphDestroy(graph))
    return ready


def launch(f, y, x, a, n, s=None, block=32, shared=0, by=1):
    args = [y.p, x.p, c_float(a)]
    params = (c_void_p * 3)(*[ctypes.addressof(v) for v in args])
    return cuda.cuLaunchKernel(f, n // 32, 1, 1, block, by, 1, shared, s or stream, params, None)


def pinned(n):
    p = c_void_p()
    ok(cuda.cuMemHostAlloc(byref(p), c_size_t(4 * n), 0))
    return p, np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(c_float)), (n,))


def kernel():
    module, f = c_void_p(), c_void_p()
    ok(cuda.cuModuleLoadData(byref(module), cubin()))
    refused(cuda.cuModuleGetFunction(byref(f), module, b"nothing"), 500)
    ok(cuda.cuModuleGetFunction(byref(f), module, b"axpy"))
    return f


def cubin():
    program, n = c_void_p(), c_size_t()
    ok(rtc.nvrtcCreateProgram(byref(program), b"__global__ void axpy() {}", b"k.cu", 0, None, None))
    options = (ctypes.c_char_p * 2)(b"-arch=sm_90", b"--fmad=false")
    ok(rtc.nvrtcCompileProgram(program, 2, options))
    ok(rtc.nvrtcGetCUBINSize(program, byref(n)))
    out = ctypes.create_string_buffer(n.value)
    ok(rtc.nvrtcGetCUBIN(program, out))
    ok(rtc.nvrtcGetProgramLogSize(program, byref(n)))
    assert n.value == 1
    refused(rtc.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(b"-arch=sm_20")), 5)
    ok(rtc.nvrtcDestroyProgram(byref(program)))
    ok(rtc.nvrtcCreateProgram(byref(program), b"\n#error no\n", b"k.cu", 0, None, None))
    refused(rtc.nvrtcCompileProgram(program, 2, options), 6)
    return out


def test_driver():
    f, x, y = kernel(), Memory(np.arange(64, dtype=np.float32)), Memory(count=64)
    assert np.isnan(y.read()).all(), "memory begins as NaN"
    p, host = pinned(64)
    ok(cuda.cuMemsetD32Async(y.p, 0x3F800000, c_size_t(64), stream))
    ok(launch(f, y, x, 2.0, 64))
    ok(cuda.cuMemcpyDtoHAsync_v2(p, y.p, c_size_t(256), stream))
    assert np.isnan(host).all(), "nothing runs before somebody waits"
    assert np.isnan(y.read()).all(), "a call without a stream does not wait for one that does not block"
    ok(cuda.cuStreamSynchronize(stream))
    assert (host == 1 + 2 * np.arange(64)).all()
    ordinary = np.zeros(64, np.float32)  # memory that is not pinned is there when the call returns
    ok(launch(f, y, x, 1.0, 64))
    ok(cuda.cuMemcpyDtoHAsync_v2(ordinary.ctypes.data_as(c_void_p), y.p, c_size_t(256), stream))
    assert (ordinary == 1 + 3 * np.arange(64)).all()
    # shapes that no device takes
    for wrong in (dict(block=0), dict(block=1025), dict(shared=50000), dict(block=1024, by=2)):
        refused(launch(f, y, x, 1.0, 64, **wrong), 1)
    refused(launch(f, y, x, 1.0, 0), 1)
    refused(cuda.cuFuncSetAttribute(f, 8, 300000), 1)
    ok(cuda.cuFuncSetAttribute(f, 8, 100000))
    ok(launch(f, y, x, 0.0, 64, shared=100000))
    refused(launch(f, y, x, 0.0, 64, shared=100001), 1)
    refused(cuda.cuMemcpyHtoD_v2(c_void_p(y.p.value + 4), host.ctypes.data_as(c_void_p), c_size_t(256)), 1)
    refused(cuda.cuMemFree_v2(c_void_p(y.p.value + 256)), 1)
    refused(cuda.cuStreamSynchronize(c_void_p(12345)), 400)
    # events order streams, and tell when
    other, begin_, end, ms = new_stream(), c_void_p(), c_void_p(), c_float()
    for e in (begin_, end):
        ok(cuda.cuEventCreate(byref(e), 0))
    ok(cuda.cuEventRecord(begin_, stream))
    ok(cuda.cuMemsetD8Async(y.p, 0, c_size_t(256), stream))
    ok(launch(f, y, x, 1.0, 64))
    ok(cuda.cuEventRecord(end, stream))
    refused(cuda.cuEventQuery(end), 600)
    refused(cuda.cuEventElapsedTime_v2(byref(ms), begin_, end), 600)
    ok(cuda.cuStreamWaitEvent(other, end, 0))
    ok(launch(f, y, x, 1.0, 64, other))
    ok(cuda.cuStreamDestroy_v2(other))
    assert (y.read() == 2 * np.arange(64)).all() and cuda.cuEventQuery(end) == 0
    ok(cuda.cuEventElapsedTime_v2(byref(ms), begin_, end))
    assert ms.value >= 0

    # graphs: nothing runs in a capture, and a launch repeats it
    def work():
        ok(cuda.cuMemcpyHtoDAsync_v2(y.p, p, c_size_t(256), stream))
        ok(launch(f, y, x, 1.0, 64))

    graph = capture(work)
    before = y.read()
    for value in (5, 6):
        host[:] = value
        ok(cuda.cuGraphLaunch(graph, stream))
        assert (y.read() == before).all()
        ok(cuda.cuStreamSynchronize(stream))
        before = value + np.arange(64)
        assert (y.read() == before).all()
    ok(cuda.cuGraphExecDestroy(graph))
    refused(cuda.cuGraphLaunch(graph, stream), 400)
    # a stream that an event draws into the capture, and joins again, or not
    second, event = new_stream(), c_void_p()
    ok(cuda.cuEventCreate(byref(event), 2))

    def forked(join):
        ok(cuda.cuEventRecord(event, stream))
        ok(cuda.cuStreamWaitEvent(second, event, 0))
        ok(launch(f, y, x, 1.0, 64, second))
        if join:
            ok(cuda.cuEventRecord(event, second))
            ok(cuda.cuStreamWaitEvent(stream, event, 0))

    capture(lambda: forked(True))
    capture(lambda: forked(False), wanted=904)
    refused(cuda.cuEventSynchronize(event), 907)
    # what captures forbid
    q = c_void_p()
    for forbidden in (lambda: cuda.cuStreamSynchronize(stream), cuda.cuCtxSynchronize, lambda: cuda.cuMemAlloc_v2(byref(q), c_size_t(4)), lambda: cuda.cuMemHostAlloc(byref(q), c_size_t(4), 0),
                      lambda: cuda.cuModuleLoadData(byref(q), b"x"), lambda: cuda.cuEventQuery(end), lambda: cuda.cuMemcpyDtoHAsync_v2(np.zeros(64, np.float32).ctypes.data_as(c_void_p), y.p, c_size_t(256), stream)):
        capture(lambda: refused(forbidden(), 900), wanted=901)
    capture(lambda: refused(lt.cublasLtCreate(byref(q)), 1), wanted=901)
    capture(lambda: ok(cuda.cuMemHostAlloc(byref(q), c_size_t(4), 0)), mode=2)
    refused(cuda.cuStreamBeginCapture_v2(None, 1), 900)
    # blocking streams and the null stream wait for each other
    blocking = new_stream(0)
    ok(cuda.cuMemsetD8Async(y.p, 0, c_size_t(256), blocking))
    assert (y.read() == 0).all()
    ok(cuda.cuCtxSynchronize())


def test_captured_libraries():
    x, w = normal((2, 4, 4, 8), "f32"), normal((8, 3, 3, 8), "f32")
    y, _ = reference(x, w, (1, 1), (1, 1), (1, 1))
    X, W, Y = tensor(nchw(x), "f32"), tensor(nchw(w), "f32"), tensor(nchw(y), "f32")
    mx, mw, my = Memory(x), Memory(w), Memory(count=y.size)
    made = plan([operation(FWD, convolution([1, 1], [1, 1], [1, 1]), X, W, Y)], 2, lambda n: 4 not in n)
    room = Memory(count=made.get(402, T_I64)[0] // 4)
    memory = pack({uid(X): mx, uid(W): mw, uid(Y): my}, room)
    graph = capture(lambda: ok(start(made, memory)))
    del made, memory  # the graph needs neither plan nor pack
    assert np.isnan(my.read()).all()
    for _ in range(2):
        ok(cuda.cuMemsetD8Async(my.p, 0xFF, c_size_t(my.bytes), stream))
        ok(cuda.cuGraphLaunch(graph, stream))
        ok(cuda.cuStreamSynchronize(stream))
        close(my.read().reshape(y.shape), y, "f32", "a captured convolution")
    ok(cuda.cuGraphExecDestroy(graph))


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


def test_speed_and_leaks():
    for kind in ("bf16", "f32"):
        x, w = normal((4, 8, 8, 64), kind), normal((64, 3, 3, 64), kind)
        X, W, Y = tensor(nchw(x), kind), tensor(nchw(w), kind), tensor(nchw(x), kind)
        memory = {uid(X): Memory(x, kind), uid(W): Memory(w, kind), uid(Y): Memory(x, kind)}
        for op in (FWD, DGRAD, WGRAD):
            made, packed = plan([operation(op, convolution([1, 1], [1, 1], [1, 1]), X, W, Y)]), pack(memory)

            def run(times):
                for _ in range(times):
                    ok(start(made, packed))
                    ok(cuda.cuStreamSynchronize(stream))

            run(20)
            began = time.time()
            run(200)
            print(f"  {kind} operation {op}: {(time.time() - began) / 200 * 1000:.2f} ms")
    assert cuda.cuda_on_cpu_calls(b"cudnnBackendExecute") > 1000
    X, Y, x, y = tensor([1, 8, 1, 1], "f32"), tensor([1, 8, 1, 1], "f32"), Memory(np.ones(8)), Memory(count=8)
    made, packed = plan([pointwise(21, X, Y)]), pack({uid(X): x, uid(Y): y})
    for times in (1000, 8000):
        size = resident()
        for _ in range(times):
            ok(start(made, packed))
            ok(cuda.cuStreamSynchronize(stream))
    assert resident() - size < 512 << 10, f"memory grows with each execution: {resident() - size}"


# in processes of their own, as the environment is read at the start or the context breaks
def lone_two_devices():
    n, name, f = c_int(), ctypes.create_string_buffer(64), c_size_t()
    ok(cuda.cuDeviceGetCount(byref(n)))
    assert n.value == 2
    here, s = Memory(np.ones(4, np.float32)), stream
    begin(1)
    there = Memory(count=4)
    free, total = c_size_t(), c_size_t()
    ok(cuda.cuMemGetInfo_v2(byref(free), byref(total)))
    assert total.value - free.value == 16, "memory is counted for each device"
    refused(cuda.cuMemsetD8Async(there.p, 0, c_size_t(16), s), 400)  # a stream of the other device
    t = new_stream()
    ok(cuda.cuMemcpyDtoDAsync_v2(there.p, here.p, c_size_t(16), t))
    ok(cuda.cuStreamSynchronize(t))
    assert (there.read() == 1).all()
    refused(cuda.cuDeviceGet(byref(n), 2), 101)


def lone_small():
    p = c_void_p()
    refused(cuda.cuMemAlloc_v2(byref(p), c_size_t(200001)), 2)
    ok(cuda.cuMemAlloc_v2(byref(p), c_size_t(200000)))
    refused(cuda.cuMemAlloc_v2(byref(p), c_size_t(4)), 2)


def lone_lost():
    f, x, y = kernel(), Memory(np.ones(32, np.float32)), Memory(np.ones(32, np.float32))
    ok(launch(f, y, x, 1.0, 32))
    refused(launch(f, y, x, 1.0, 32), 719)
    refused(cuda.cuStreamSynchronize(stream), 719)
    q = c_void_p()
    refused(dnn.cudnnCreate(byref(q)), 5000)
    refused(lt.cublasLtCreate(byref(q)), 13)
    cubin()


def lone_hiccup():
    refused(cuda.cuStreamBeginCapture_v2(stream, 1), 900)
    ok(cuda.cuStreamSynchronize(stream))


def lone_library():
    x, y = Memory(np.ones((1, 2, 2, 8), np.float32)), Memory(count=32)
    X, Y = tensor([1, 8, 2, 2], "f32"), tensor([1, 8, 2, 2], "f32")
    made = plan([pointwise(21, X, Y)])
    memory = pack({uid(X): x, uid(Y): y})
    run = lambda: start(made, memory)
    assert [run(), run(), run()] == [0, 5000, 0]


def lone_outside():
    f, x, y = kernel(), Memory(np.ones(64, np.float32)), Memory(np.ones(48, np.float32))
    ok(launch(f, y, x, 1.0, 64))
    refused(cuda.cuStreamSynchronize(stream), 700)


LONE = {lone_two_devices: {"CUDA_ON_CPU_DEVICES": "2"}, lone_small: {"CUDA_ON_CPU_MEMORY": "200000"}, lone_lost: {"CUDA_ON_CPU_FAIL": "cuLaunchKernel:2:719"},
        lone_hiccup: {"CUDA_ON_CPU_FAIL": "cuStreamBeginCapture_v2:1:900"}, lone_library: {"CUDA_ON_CPU_FAIL": "cudnnBackendExecute:2:5000"}, lone_outside: {}}

refused(cuda.cuCtxGetCurrent(byref(c_void_p())), 3)
begin()
stream, handle, blas = new_stream(), c_void_p(), c_void_p()
ok(dnn.cudnnCreate(byref(handle)))
ok(dnn.cudnnSetStream(handle, stream))
ok(lt.cublasLtCreate(byref(blas)))
if len(sys.argv) > 1:
    next(f for f in LONE if f.__name__ == sys.argv[1])()
else:
    for test in (test_driver, test_convolutions, test_fusions, test_rounding, test_engines, test_captured_libraries, test_products, test_speed_and_leaks):
        began = time.time()
        test()
        print(f"{test.__name__} {time.time() - began:.2f} s", flush=True)
    for f, environment in LONE.items():
        subprocess.run([sys.executable, __file__, f.__name__], env={**os.environ, **environment}, check=True)
        print(f.__name__, flush=True)
