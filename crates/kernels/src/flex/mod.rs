//! The kernels on the CPU backend.

mod attention;
mod conv;
mod gemm;
mod math;
mod norm;
mod optim;
mod resample;

use crate::{AdamW, Conv2d, GradKernels, GroupNorm, HeadOrder, Kernels, Resample};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Bytes;
use burn_flex::{FlexTensor, Layout};

fn tensor(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into().into()), burn::tensor::DType::F32)
}

/// The values of a tensor made contiguous. Only f32 reaches the kernels: the library makes no other float tensors.
fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("an f32 tensor made contiguous")
}

fn geometry(conv: Conv2d, x: &[usize], weight: &FlexTensor) -> conv::Geometry {
    let w = weight.shape();
    conv::Geometry { n: x[0], h: x[1], w: x[2], c: x[3], o: w[0], k: w[2], stride: conv.stride }
}

/// Sizes of a normalisation over `[N, …, C]`.
fn extent(norm: GroupNorm, x: &FlexTensor) -> norm::Extent {
    let shape = x.shape();
    let last = shape.num_dims() - 1;
    norm::Extent { n: shape[0], pixels: shape[1..last].iter().product(), c: shape[last], groups: norm.groups }
}

fn attention_extent(qkv: &FlexTensor, heads: usize, order: HeadOrder) -> attention::Extent {
    let shape = qkv.shape();
    attention::Extent { n: shape[0], t: shape[1], heads, ch: shape[2] / (3 * heads), order }
}

impl Kernels for Flex {
    fn conv2d_nhwc(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, conv: Conv2d) -> FlexTensor {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let g = geometry(conv, &x.shape().to_vec(), &weight);
        let [h, w] = conv.output_size([g.h, g.w]);
        tensor(conv::forward(g, values(&x), values(&weight), values(&bias)), [g.n, h, w, g.o])
    }

    fn group_norm(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        film: FlexTensor,
        norm: GroupNorm,
    ) -> FlexTensor {
        let statistics = Self::group_norm_statistics(x.clone(), norm);
        Self::group_norm_apply(x, statistics, weight, bias, film, norm)
    }

    fn resample(x: FlexTensor, to: Resample, scale: f32) -> FlexTensor {
        let x = x.to_contiguous();
        let [n, h, w, c] = x.shape().dims();
        match to {
            Resample::Up => tensor(resample::repeat(values(&x), [w, c], scale), [n, 2 * h, 2 * w, c]),
            Resample::Down => tensor(resample::sum(values(&x), [w / 2, c], scale), [n, h / 2, w / 2, c]),
        }
    }

    fn self_attention(qkv: FlexTensor, heads: usize, order: HeadOrder) -> FlexTensor {
        let qkv = qkv.to_contiguous();
        let e = attention_extent(&qkv, heads, order);
        tensor(attention::forward(e, values(&qkv)), [e.n, e.t, e.heads * e.ch])
    }
}

impl GradKernels for Flex {
    fn conv2d_input_grad(grad: FlexTensor, weight: FlexTensor, input: [usize; 4], conv: Conv2d) -> FlexTensor {
        let (grad, weight) = (grad.to_contiguous(), weight.to_contiguous());
        let g = geometry(conv, &input, &weight);
        tensor(conv::input_grad(g, values(&grad), values(&weight)), input)
    }

    fn conv2d_weight_grad(
        x: FlexTensor,
        grad: FlexTensor,
        weight: FlexTensor,
        conv: Conv2d,
    ) -> (FlexTensor, FlexTensor) {
        let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
        let g = geometry(conv, &x.shape().to_vec(), &weight);
        let (weight, bias) = conv::weight_grad(g, values(&x), values(&grad));
        (tensor(weight, [g.o, g.c, g.k, g.k]), tensor(bias, [g.o]))
    }

    fn group_norm_statistics(x: FlexTensor, norm: GroupNorm) -> FlexTensor {
        let x = x.to_contiguous();
        let e = extent(norm, &x);
        tensor(norm::statistics(e, values(&x), norm.eps), [e.n, 2, e.c])
    }

    fn group_norm_apply(
        x: FlexTensor,
        statistics: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        film: FlexTensor,
        norm: GroupNorm,
    ) -> FlexTensor {
        let [x, statistics, weight, bias, film] = [x, statistics, weight, bias, film].map(|t| t.to_contiguous());
        let e = extent(norm, &x);
        let y =
            norm::apply(e, values(&x), values(&statistics), values(&weight), values(&bias), values(&film), norm.silu);
        tensor(y, x.shape().to_vec())
    }

    fn group_norm_grads(
        grad: FlexTensor,
        x: FlexTensor,
        statistics: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        film: FlexTensor,
        norm: GroupNorm,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        let [grad, x, statistics, weight, bias, film] =
            [grad, x, statistics, weight, bias, film].map(|t| t.to_contiguous());
        let e = extent(norm, &x);
        let g = norm::backward(
            e,
            values(&grad),
            values(&x),
            values(&statistics),
            values(&weight),
            values(&bias),
            values(&film),
            norm.silu,
        );
        (
            tensor(g.x, x.shape().to_vec()),
            tensor(g.weight, [e.c]),
            tensor(g.bias, [e.c]),
            tensor(g.film, [e.n, 2 * e.c]),
        )
    }

    fn attention_grad(grad: FlexTensor, qkv: FlexTensor, heads: usize, order: HeadOrder) -> FlexTensor {
        let (grad, qkv) = (grad.to_contiguous(), qkv.to_contiguous());
        let e = attention_extent(&qkv, heads, order);
        tensor(attention::backward(e, values(&grad), values(&qkv)), [e.n, e.t, 3 * e.heads * e.ch])
    }

    fn adamw(
        param: FlexTensor,
        grad: FlexTensor,
        m: FlexTensor,
        v: FlexTensor,
        adamw: AdamW,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        // Mapping drops the arguments: a second owner would make `storage_mut` copy.
        let [mut param, grad, mut m, mut v] = [param, grad, m, v].map(|t| t.to_contiguous());
        optim::adamw(&adamw, param.storage_mut(), values(&grad), m.storage_mut(), v.storage_mut());
        (param, m, v)
    }

    fn ema(target: FlexTensor, source: FlexTensor, rate: f64) -> FlexTensor {
        // Mapping drops the arguments: a second owner would make `storage_mut` copy.
        let [mut target, source] = [target, source].map(|t| t.to_contiguous());
        optim::ema(target.storage_mut(), values(&source), rate);
        target
    }

    fn sum_squares(x: FlexTensor) -> FlexTensor {
        let x = x.to_contiguous();
        tensor(vec![optim::sum_squares(values(&x)) as f32], [1])
    }
}
