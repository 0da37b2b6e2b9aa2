//! The kernels on activations of a type, with values and results as f32.

use crate::plain::{Attention, Conv, Norm};
use crate::support::*;
use ddpm_kernels::{Dropout, Element, GroupNorm, attention, conv, norm};

pub(crate) fn conv<E: Element>(
    s: Conv,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    relu: bool,
) -> Vec<f32> {
    let (g, residual) = (s.geometry(), residual.map(rounded::<E>));
    let epilogue = conv::Epilogue { bias: Some(bias), residual: residual.as_deref(), relu };
    assert_eq!([g.n, g.out_h(), g.out_w(), g.o], s.output());
    written(g.output_len(), |out: &mut [E]| conv::forward(g, &rounded::<E>(x), weight, epilogue, out))
}

/// Gradients of input, weight and bias.
pub(crate) fn conv_grads<E: Element>(
    s: Conv,
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    add: Option<&[f32]>,
) -> [Vec<f32>; 3] {
    let (g, x, grad, add) = (s.geometry(), rounded::<E>(x), rounded::<E>(grad), add.map(rounded::<E>));
    let dx = written(x.len(), |out: &mut [E]| conv::input_grad(g, &grad, weight, add.as_deref(), out));
    let mut dbias = vec![-7e33; g.o];
    let dweight = written(weight.len(), |out: &mut [f32]| conv::weight_grad(g, &x, &grad, out, &mut dbias));
    [dx, dweight, dbias]
}

fn extent(s: Norm, dropout: Option<Dropout>) -> norm::Extent {
    let norm = GroupNorm { groups: s.groups, eps: s.eps, silu: s.silu, dropout };
    norm::Extent { n: s.n, pixels: s.pixels, c: s.c, norm }
}

/// Of the inputs x, weight, bias and perhaps scale and shift.
fn affine(i: &[Vec<f32>]) -> norm::Affine<'_> {
    norm::Affine { weight: &i[1], bias: &i[2], film: i.get(3).map(Vec::as_slice) }
}

fn normalised<E: Element>(s: Norm, dropout: Option<Dropout>, i: &[Vec<f32>]) -> [Vec<f32>; 2] {
    let mut statistics = vec![-7e33; s.n * 2 * s.c];
    let forward = |out: &mut [E]| {
        norm::forward(extent(s, dropout), &rounded::<E>(&i[0]), affine(i), out, &mut statistics);
    };
    [written(i[0].len(), forward), statistics]
}

pub(crate) fn norm<E: Element>(s: Norm, dropout: Option<Dropout>, i: &[Vec<f32>]) -> Vec<f32> {
    let [y, _] = normalised::<E>(s, dropout, i);
    y
}

pub(crate) fn norm_statistics<E: Element>(s: Norm, i: &[Vec<f32>]) -> Vec<f32> {
    let [_, statistics] = normalised::<E>(s, None, i);
    statistics
}

/// Gradients of the inputs.
pub(crate) fn norm_grads<E: Element>(
    s: Norm,
    dropout: Option<Dropout>,
    i: &[Vec<f32>],
    grad: &[f32],
    add: Option<&[f32]>,
) -> Vec<Vec<f32>> {
    let (x, grad, add) = (rounded::<E>(&i[0]), rounded::<E>(grad), add.map(rounded::<E>));
    let statistics = norm_statistics::<E>(s, i);
    let mut params: Vec<Vec<f32>> = i[1..].iter().map(|values| vec![-7e33; values.len()]).collect();
    let dx = written(x.len(), |dx: &mut [E]| {
        let mut params = params.iter_mut().map(Vec::as_mut_slice);
        let mut next = || params.next();
        let (weight, bias) = (next().expect("a weight"), next().expect("a bias"));
        let grads = norm::Grads { x: dx, weight, bias, film: next() };
        norm::backward(extent(s, dropout), &grad, &x, &statistics, affine(i), add.as_deref(), grads);
    });
    params.insert(0, dx);
    params
}

fn attention_extent(s: Attention) -> attention::Extent {
    attention::Extent { n: s.n, t: s.t, heads: s.heads, ch: s.ch, order: s.order }
}

pub(crate) fn attention<E: Element>(s: Attention, qkv: &[f32]) -> Vec<f32> {
    let e = attention_extent(s);
    assert_eq!(e.c(), s.c());
    written(s.n * s.t * s.c(), |out: &mut [E]| attention::forward(e, &rounded::<E>(qkv), out))
}

pub(crate) fn attention_grad<E: Element>(s: Attention, grad: &[f32], qkv: &[f32]) -> Vec<f32> {
    written(qkv.len(), |out: &mut [E]| {
        attention::backward(attention_extent(s), &rounded::<E>(grad), &rounded::<E>(qkv), out);
    })
}
