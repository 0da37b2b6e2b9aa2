//! The kernels on the CPU backend.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod attention;
mod buffer;
mod conv;
mod dropout;
pub(crate) mod element;
mod half;
mod math;
mod norm;
mod optim;
mod pool;
mod product;
mod resample;
pub(crate) mod simd;
mod transpose;
mod winograd;

use crate::profile::timed;
use crate::{AdamW, Conv2d, GradKernels, GroupNorm, HeadOrder, Kernels, PlainKernels, Pool2d, Resample};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, Shape, bf16};
use burn_flex::{FlexTensor, Layout};
use bytemuck::Pod;
use element::Element;
use half::{narrow, widen};

fn tensor<E: Element>(values: Vec<E>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into().into()), E::DTYPE)
}

/// The values of a tensor made contiguous, as the type that [`by_type!`] found.
fn values<E: Element>(x: &FlexTensor) -> &[E] {
    assert_eq!(x.dtype(), E::DTYPE, "the type of an operand");
    raw_values(x)
}

/// The values of a tensor made contiguous, whose type is known.
fn raw_values<T: Pod>(x: &FlexTensor) -> &[T] {
    let bytes: &[u8] = &x.bytes()[x.layout().start_offset() * size_of::<T>()..];
    &bytemuck::cast_slice(bytes)[..x.shape().num_elements()]
}

/// Runs the body with `E` as the type of the activations `x`, which are [`widen`]ed if they were f16.
macro_rules! by_type {
    ($x:expr, $E:ident => $body:expr) => {
        match $x.dtype() {
            DType::F32 => {
                type $E = f32;
                $body
            }
            DType::BF16 => {
                type $E = bf16;
                $body
            }
            other => panic!("activations are f32, bf16 or f16, not {other:?}"),
        }
    };
}

/// A kernel's name with the type of its activations.
fn named(kernel: &str, x: &FlexTensor) -> String {
    format!("{kernel}, {}", if x.dtype() == DType::BF16 { "bf16" } else { "f32" })
}

/// Name and operations of one of a convolution's three products.
fn conv_work(pass: &str, g: conv::Geometry, x: &FlexTensor) -> (String, f64) {
    let [k, l] = g.kernel;
    (named(&format!("convolution {k}x{l} {pass} ({})", g.method()), x), g.flop())
}

/// Of images `[N, H, W, C]` or rows `[N, C]`.
fn geometry(conv: Conv2d, x: &Shape, o: usize) -> conv::Geometry {
    let (c, [h, w]) = if let &[_, h, w, c] = x.as_slice() { (c, [h, w]) } else { (x[1], [1, 1]) };
    let Conv2d { kernel, stride, .. } = conv;
    conv::Geometry { n: x[0], h, w, c, o, kernel, padding: kernel.map(|k| conv.padding.pixels(k)), stride }
}

/// The shape of a convolution's output, for an input of that shape.
fn output_shape(x: &Shape, g: conv::Geometry) -> Vec<usize> {
    if x.num_dims() == 4 { vec![g.n, g.out_h(), g.out_w(), g.o] } else { vec![g.n, g.o] }
}

/// The last dimension.
fn channels(x: &FlexTensor) -> usize {
    x.shape().as_slice().last().copied().unwrap_or(1)
}

/// Sizes of a normalisation over `[N, …, C]`.
fn extent(norm: GroupNorm, x: &FlexTensor) -> norm::Extent {
    let shape = x.shape();
    let last = shape.num_dims() - 1;
    norm::Extent { n: shape[0], pixels: shape[1..last].iter().product(), c: shape[last], norm }
}

fn attention_extent(qkv: &FlexTensor, heads: usize, order: HeadOrder) -> attention::Extent {
    let shape = qkv.shape();
    let positions = &shape.as_slice()[1..shape.num_dims() - 1];
    attention::Extent { n: shape[0], t: positions.iter().product(), heads, ch: channels(qkv) / (3 * heads), order }
}

fn convolve(
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    residual: Option<FlexTensor>,
    relu: bool,
    conv: Conv2d,
) -> FlexTensor {
    let dtype = x.dtype();
    let (x, weight, bias) = (widen(x), weight.to_contiguous(), bias.to_contiguous());
    let residual = residual.map(widen);
    let g = geometry(conv, &x.shape(), channels(&bias));
    let run = || {
        by_type!(x, E => {
            let epilogue = conv::Epilogue { bias: Some(values(&bias)), residual: residual.as_ref().map(values), relu };
            tensor(conv::forward::<E>(g, values(&x), values(&weight), epilogue), output_shape(&x.shape(), g))
        })
    };
    narrow(timed(|| conv_work("forward", g, &x), run), dtype)
}

impl Kernels for Flex {
    fn conv2d_nhwc(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, conv: Conv2d) -> FlexTensor {
        convolve(x, weight, bias, None, false, conv)
    }

    fn conv2d_add_nhwc(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        residual: FlexTensor,
        conv: Conv2d,
    ) -> FlexTensor {
        convolve(x, weight, bias, Some(residual), false, conv)
    }

    fn group_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, norm: GroupNorm) -> FlexTensor {
        Self::group_norm_forward(x, weight, bias, None, norm).0
    }

    fn group_norm_film(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        film: FlexTensor,
        norm: GroupNorm,
    ) -> FlexTensor {
        Self::group_norm_forward(x, weight, bias, Some(film), norm).0
    }

    fn resample(x: FlexTensor, to: Resample, scale: f32) -> FlexTensor {
        let dtype = x.dtype();
        let x = widen(x);
        let [n, h, w, c] = x.shape().dims();
        let run = || {
            by_type!(x, E => match to {
                Resample::Up => tensor(resample::repeat::<E>(values(&x), [w, c], scale), [n, 2 * h, 2 * w, c]),
                Resample::Down => tensor(resample::sum::<E>(values(&x), [w / 2, c], scale), [n, h / 2, w / 2, c]),
            })
        };
        narrow(timed(|| (named("resampling", &x), 0.0), run), dtype)
    }

    fn concat_channels(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        let dtype = a.dtype();
        let (a, b) = (widen(a), widen(b));
        let ([n, h, w, ca], [.., cb]) = (a.shape().dims(), b.shape().dims::<4>());
        let run =
            || by_type!(a, E => tensor(resample::concat::<E>(values(&a), values(&b), [ca, cb]), [n, h, w, ca + cb]));
        narrow(timed(|| (named("concatenation forward", &a), 0.0), run), dtype)
    }

    fn self_attention(qkv: FlexTensor, heads: usize, order: HeadOrder) -> FlexTensor {
        let dtype = qkv.dtype();
        let qkv = widen(qkv);
        let e = attention_extent(&qkv, heads, order);
        let mut output = qkv.shape().to_vec();
        if let Some(width) = output.last_mut() {
            *width = e.c();
        }
        let run = || by_type!(qkv, E => tensor(attention::forward::<E>(e, values(&qkv)), output));
        narrow(timed(|| (named("attention forward", &qkv), 2.0 * e.product_flop()), run), dtype)
    }
}

impl GradKernels for Flex {
    fn conv2d_input_grad(grad: FlexTensor, weight: FlexTensor, input: Shape, conv: Conv2d) -> FlexTensor {
        let dtype = grad.dtype();
        let (grad, weight) = (widen(grad), weight.to_contiguous());
        let g = geometry(conv, &input, channels(&grad));
        let run =
            || by_type!(grad, E => tensor(conv::input_grad::<E>(g, values(&grad), values(&weight)), input.to_vec()));
        narrow(timed(|| conv_work("input gradient", g, &grad), run), dtype)
    }

    fn conv2d_weight_grad(
        x: FlexTensor,
        grad: FlexTensor,
        weight: FlexTensor,
        conv: Conv2d,
    ) -> (FlexTensor, FlexTensor) {
        let (x, grad) = (widen(x), widen(grad));
        let g = geometry(conv, &x.shape(), channels(&grad));
        let run = || by_type!(x, E => conv::weight_grad::<E>(g, values(&x), values(&grad)));
        let (dweight, dbias) = timed(|| conv_work("weight gradient", g, &x), run);
        (tensor(dweight, weight.shape().to_vec()), tensor(dbias, [g.o]))
    }

    fn group_norm_forward(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        film: Option<FlexTensor>,
        norm: GroupNorm,
    ) -> (FlexTensor, FlexTensor) {
        let dtype = x.dtype();
        let ([x, weight, bias], film) = ([x, weight, bias].map(widen), film.map(widen));
        let e = extent(norm, &x);
        let film = film.as_ref().map(values);
        let affine = norm::Affine { weight: values(&weight), bias: values(&bias), film };
        let run = || {
            by_type!(x, E => {
                let (y, statistics) = norm::forward::<E>(e, values(&x), affine);
                (tensor(y, x.shape().to_vec()), tensor(statistics, [e.n, 2, e.c]))
            })
        };
        let (y, statistics) = timed(|| (named("group norm forward", &x), 0.0), run);
        (narrow(y, dtype), statistics)
    }

    fn group_norm_grads(
        grad: FlexTensor,
        x: FlexTensor,
        statistics: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        film: Option<FlexTensor>,
        norm: GroupNorm,
    ) -> (FlexTensor, FlexTensor, FlexTensor, Option<FlexTensor>) {
        let dtype = x.dtype();
        let ([grad, x, statistics, weight, bias], film) =
            ([grad, x, statistics, weight, bias].map(widen), film.map(widen));
        let e = extent(norm, &x);
        let film = film.as_ref().map(values);
        let affine = norm::Affine { weight: values(&weight), bias: values(&bias), film };
        let run = || {
            by_type!(x, E => {
                let g = norm::backward::<E>(e, values(&grad), values(&x), values(&statistics), affine);
                (
                    tensor(g.x, x.shape().to_vec()),
                    tensor(g.weight, [e.c]),
                    tensor(g.bias, [e.c]),
                    film.map(|_| tensor(g.film, [e.n, 2 * e.c])),
                )
            })
        };
        let (dx, dweight, dbias, dfilm) = timed(|| (named("group norm backward", &x), 0.0), run);
        (narrow(dx, dtype), dweight, dbias, dfilm)
    }

    fn take_channels(x: FlexTensor, from: usize, count: usize) -> FlexTensor {
        let dtype = x.dtype();
        let x = widen(x);
        let [n, h, w, c] = x.shape().dims();
        let run = || by_type!(x, E => tensor(resample::channels::<E>(values(&x), c, from, count), [n, h, w, count]));
        narrow(timed(|| (named("concatenation backward", &x), 0.0), run), dtype)
    }

    fn attention_grad(grad: FlexTensor, qkv: FlexTensor, heads: usize, order: HeadOrder) -> FlexTensor {
        let dtype = qkv.dtype();
        let (grad, qkv) = (widen(grad), widen(qkv));
        let e = attention_extent(&qkv, heads, order);
        let run = || by_type!(qkv, E => tensor(attention::backward::<E>(e, values(&grad), values(&qkv)), qkv.shape().to_vec()));
        narrow(timed(|| (named("attention backward", &qkv), 5.0 * e.product_flop()), run), dtype)
    }
}

impl PlainKernels for Flex {
    fn adamw(
        param: FlexTensor,
        grad: FlexTensor,
        m: FlexTensor,
        v: FlexTensor,
        adamw: AdamW,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        // Mapping drops the arguments: a second owner would make `storage_mut` copy.
        let [mut param, grad, mut m, mut v] = [param, grad, m, v].map(|t| t.to_contiguous());
        let run = || optim::adamw(&adamw, param.storage_mut(), values(&grad), m.storage_mut(), v.storage_mut());
        timed(|| ("AdamW".into(), 0.0), run);
        (param, m, v)
    }

    fn ema(target: FlexTensor, source: FlexTensor, rate: f64) -> FlexTensor {
        // Mapping drops the arguments: a second owner would make `storage_mut` copy.
        let [mut target, source] = [target, source].map(|t| t.to_contiguous());
        timed(|| ("weight average".into(), 0.0), || optim::ema(target.storage_mut(), values(&source), rate));
        target
    }

    fn sum_squares(x: FlexTensor) -> FlexTensor {
        let x = x.to_contiguous();
        let sum = timed(|| ("gradient norm".into(), 0.0), || optim::sum_squares(values(&x)));
        tensor(vec![sum as f32], [1])
    }

    fn conv2d_relu(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, conv: Conv2d) -> FlexTensor {
        convolve(x, weight, bias, None, true, conv)
    }

    fn pool(x: FlexTensor, pool: Pool2d) -> FlexTensor {
        let dtype = x.dtype();
        let x = widen(x);
        let [n, h, w, c] = x.shape().dims();
        let [oh, ow] = [h, w].map(|size| pool.padding.places(size, pool::SIDE, pool.stride));
        let run =
            || by_type!(x, E => tensor(pool::forward::<E>(pool, values(&x), [n, h, w, c], [oh, ow]), [n, oh, ow, c]));
        narrow(timed(|| (named("pooling", &x), 0.0), run), dtype)
    }
}
