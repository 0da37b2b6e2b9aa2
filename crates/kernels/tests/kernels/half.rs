//! Activations in bf16 and f16: each kernel against its f32 self, which the other tests hold against plain loops.

use crate::support::*;
use burn::tensor::{DType, Tensor};
use ddpm_kernels::{Conv2d, GroupNorm, HeadOrder, attention, concat, conv2d, downsample, group_norm, upsample};

/// Values that bf16 holds exactly.
fn rounded(seed: u64, count: usize) -> Vec<f32> {
    read(tensor(&Random(seed).values(count), [count]).cast(DType::BF16).cast(DType::F32))
}

/// A layer on inputs of these sizes; the first is an activation, the others parameters.
struct Case<const D: usize> {
    name: &'static str,
    shape: [usize; D],
    parameters: Vec<Vec<usize>>,
    layer: fn(Tensor<D>, &[Tensor<1>]) -> Tensor<D>,
}

impl<const D: usize> Case<D> {
    /// Output and gradients, of the input first, with activations of a type.
    fn run(&self, dtype: DType) -> Vec<Vec<f32>> {
        let x = tracked(&rounded(1, self.shape.iter().product()), self.shape);
        let parameters: Vec<Tensor<1>> = (2..)
            .zip(&self.parameters)
            .map(|(seed, shape)| {
                let count = shape.iter().product();
                tracked(&rounded(seed, count), [count])
            })
            .collect();
        let y = (self.layer)(x.clone().cast(dtype), &parameters);
        assert_eq!(y.dtype(), dtype, "{}", self.name);
        let y = y.cast(DType::F32);
        let w = rounded(99, y.dims().iter().product());
        let grads = backward(y.clone(), &w);
        let mut all = vec![read(y), grad(&x, &grads)];
        all.extend(parameters.iter().map(|p| grad(p, &grads)));
        all
    }

    fn check(&self) {
        self.check_type(DType::BF16, 1.2e-2);
        self.check_type(DType::F16, 1e-3);
    }

    /// Every result is as near to f32's as the bits of the type allow: the root of the squares' sum.
    fn check_type(&self, dtype: DType, bound: f64) {
        let (exact, found) = (self.run(DType::F32), self.run(dtype));
        for (i, (exact, found)) in exact.iter().zip(&found).enumerate() {
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let off = norm(&mut exact.iter().zip(found).map(|(e, f)| f64::from(e - f)));
            let all = norm(&mut exact.iter().map(|&e| f64::from(e)));
            assert!(off <= bound * all, "{}, {dtype:?}: result {i} is off by {} of its norm", self.name, off / all);
            // Rounding is there: the result is not that of another path.
            assert!(i > 0 || off > 0.0, "{}, {dtype:?}: the same as in f32", self.name);
        }
        assert_same_on_any_threads(|| self.run(dtype));
    }
}

#[test]
fn convolutions() {
    // Odd sizes everywhere: the last cell of two values, tile, panel and block are not full.
    Case {
        name: "3x3",
        shape: [3, 7, 9, 37],
        parameters: vec![vec![41, 37, 3, 3], vec![41]],
        layer: |x, p| conv2d(x, p[0].clone(), p[1].clone(), None, Conv2d::same([3, 3], 1)),
    }
    .check();
    Case {
        name: "3x3 of one pixel and channel",
        shape: [1, 1, 1, 1],
        parameters: vec![vec![1, 1, 3, 3], vec![1]],
        layer: |x, p| conv2d(x, p[0].clone(), p[1].clone(), None, Conv2d::same([3, 3], 1)),
    }
    .check();
    Case {
        name: "1x1",
        shape: [3, 7, 9, 37],
        parameters: vec![vec![41, 37], vec![41]],
        layer: |x, p| conv2d(x, p[0].clone(), p[1].clone(), None, Conv2d::same([1, 1], 1)),
    }
    .check();
    Case {
        name: "strided",
        shape: [3, 7, 9, 37],
        parameters: vec![vec![41, 37, 3, 3], vec![41]],
        layer: |x, p| conv2d(x, p[0].clone(), p[1].clone(), None, Conv2d::same([3, 3], 2)),
    }
    .check();
    Case {
        name: "5x5 onto a residual",
        shape: [2, 6, 5, 12],
        parameters: vec![vec![12, 12, 5, 5], vec![12]],
        layer: |x, p| conv2d(x.clone(), p[0].clone(), p[1].clone(), Some(x), Conv2d::same([5, 5], 1)),
    }
    .check();
}

#[test]
fn group_norms() {
    for silu in [false, true] {
        let case = Case {
            name: "group norm",
            shape: [3, 5, 7, 36],
            parameters: vec![vec![36], vec![36], vec![3, 72]],
            layer: if silu { |x, p| normalise(x, p, true) } else { |x, p| normalise(x, p, false) },
        };
        case.check();
    }
}

fn normalise(x: Tensor<4>, p: &[Tensor<1>], silu: bool) -> Tensor<4> {
    let norm = GroupNorm { groups: 6, eps: 1e-5, silu, dropout: None };
    group_norm(x, p[0].clone(), p[1].clone(), Some(p[2].clone().reshape([3, 72])), norm)
}

#[test]
fn attentions() {
    Case {
        name: "attention with an odd number of channels and positions",
        shape: [2, 65, 3 * 2 * 13],
        parameters: vec![],
        layer: |x, _| {
            let y = attention(x.clone() * 2.0, 2, HeadOrder::QkvFirst);
            Tensor::cat(vec![y.clone(), y.clone(), y], 2)
        },
    }
    .check();
    Case {
        name: "attention",
        shape: [2, 34, 3 * 2 * 16],
        parameters: vec![],
        layer: |x, _| {
            let y = attention(x.clone() * 2.0, 2, HeadOrder::HeadsFirst);
            Tensor::cat(vec![y.clone(), y.clone(), y], 2)
        },
    }
    .check();
}

#[test]
fn changes_of_size_and_concatenation() {
    for (dtype, bound) in [(DType::BF16, 4e-3), (DType::F16, 5e-4)] {
        let x = read(tensor(&rounded(3, 2 * 4 * 6 * 5), [240]).cast(dtype).cast(DType::F32));
        let half = || tensor(&x, [2, 4, 6, 5]).cast(dtype);
        assert_eq!(read(upsample(half()).cast(DType::F32)), read(upsample(tensor(&x, [2, 4, 6, 5]))));
        assert_close(
            &read(downsample(half()).cast(DType::F32)),
            &doubles(&read(downsample(tensor(&x, [2, 4, 6, 5])))),
            bound,
        );
        let joined = concat(half(), half()).cast(DType::F32);
        assert_eq!(read(joined), read(concat(tensor(&x, [2, 4, 6, 5]), tensor(&x, [2, 4, 6, 5]))));
    }
}

/// Rounding must not turn what is not a number, or too large, into a number.
#[test]
fn nan_and_infinity_survive() {
    let ones = || tensor(&[1.0; 4], [2, 2, 1, 1]);
    for dtype in [DType::BF16, DType::F16] {
        for bad in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_8001), f32::INFINITY] {
            let x = tensor(&[1.0, bad], [1, 1, 1, 2]).cast(dtype);
            let y = read(conv2d(x, ones(), tensor(&[0.0; 2], [2]), None, Conv2d::same([1, 1], 1)).cast(DType::F32));
            assert!(y.iter().all(|v| !v.is_finite()), "{bad}: {y:?}");
            let x = tensor(&[1.0, 1.0], [1, 1, 1, 2]).cast(dtype);
            let y = read(conv2d(x, ones(), tensor(&[bad; 2], [2]), None, Conv2d::same([1, 1], 1)).cast(DType::F32));
            assert!(y.iter().all(|v| v.is_nan() == bad.is_nan() && !v.is_finite()), "bias {bad}: {y:?}");
        }
    }
    // What is too large for f16 becomes infinity, not its largest value.
    let x = tensor(&[300.0, 300.0], [1, 1, 1, 2]).cast(DType::F16);
    let weight = tensor(&[300.0; 4], [2, 2, 1, 1]);
    let y = read(conv2d(x, weight, tensor(&[0.0; 2], [2]), None, Conv2d::same([1, 1], 1)).cast(DType::F32));
    assert!(y.iter().all(|v| v.is_infinite()), "{y:?}");
}

/// Threads keep memory for their next task, which must not see what is in it.
#[test]
fn nothing_left_by_an_earlier_call_enters() {
    let run = |dtype: DType, channels: usize, value: f32| {
        let shape = [2, 7, 7, channels];
        let x = tracked(&vec![value; 98 * channels], shape);
        let weight = tracked(&vec![0.5; channels * channels * 9], [channels, channels, 3, 3]);
        let bias = tracked(&vec![0.0; channels], [channels]);
        let y = conv2d(x.clone().cast(dtype), weight.clone(), bias, None, Conv2d::same([3, 3], 1)).cast(DType::F32);
        let grads = backward(y.clone(), &vec![value; 98 * channels]);
        [read(y), grad(&x, &grads), grad(&weight, &grads)]
    };
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread pool").install(|| {
        for dtype in [DType::BF16, DType::F32] {
            assert!(run(dtype, 64, f32::NAN).iter().flatten().all(|v| v.is_nan()));
            assert!(run(dtype, 5, 1.0).iter().flatten().all(|v| v.is_finite()));
        }
    });
}
