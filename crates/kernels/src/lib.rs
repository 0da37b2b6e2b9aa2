//! The loops of diffusion networks: functions over slices that write into slices they are given.
//!
//! Activations are channels-last, `[N, H, W, C]`, in f32 or bf16 ([`Element`]); weights keep PyTorch's `[O, C, k, l]` and are
//! f32, and so are all sums and statistics. f16 is kept and moved only: [`convert`] widens it for the kernels and rounds
//! their results. Every output is written whole, whatever it held before, unless a function says otherwise. A result depends
//! neither on the number of threads nor, image by image, on the batch size; from one [`Isa`] to another it differs by
//! rounding. Batches may be empty.
//!
//! ```
//! use ddpm_kernels::Conv2d;
//! use ddpm_kernels::conv::{self, Epilogue, Geometry};
//!
//! // One image of one row with two pixels of two channels, to the difference of the channels plus a half.
//! let geometry = Geometry::new(Conv2d::same([1, 1], 1), [1, 1, 2, 2], 1);
//! let image: [f32; 4] = [3.0, 1.0, 0.25, 2.0];
//! let (weight, bias): ([f32; 2], [f32; 1]) = ([1.0, -1.0], [0.5]);
//! let mut out = [0.0f32; 2];
//! let epilogue = Epilogue { bias: Some(&bias), residual: None, relu: false };
//! conv::forward(geometry, &image, &weight, epilogue, &mut out);
//! assert_eq!(out, [2.5, -1.25]);
//! ```
//!
//! # Panics
//! All functions panic if a slice has another length than the sizes say.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
mod buffer;
pub mod conv;
pub mod convert;
mod dropout;
mod element;
pub mod elementwise;
mod isa;
mod math;
pub mod norm;
pub mod optim;
mod pair;
pub mod pool;
mod product;
pub mod profile;
pub mod resample;
mod simd;
mod transpose;
mod winograd;

pub use buffer::CacheLine;
pub use element::Element;
pub use half::{bf16, f16};
pub use isa::{ISA_VARIABLE, Isa, UnknownIsa};

/// What a sliding window sees beyond the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// `k / 2` pixels on each side: with an odd window and stride 1 the size stays.
    Same,
    /// Nothing: the window stays inside.
    Valid,
    /// `k / 2` pixels after the last alone: ermongroup/ddim's downsampling.
    After,
}

impl Padding {
    /// Pixels before and after those of an axis for a window of `k`.
    fn pixels(self, k: usize) -> [usize; 2] {
        match self {
            Self::Same => [k / 2, k / 2],
            Self::Valid => [0, 0],
            Self::After => [0, k / 2],
        }
    }

    /// Places of a window of `k` along an axis.
    fn places(self, size: usize, k: usize, stride: usize) -> usize {
        let [before, after] = self.pixels(k);
        (before + size + after + stride).saturating_sub(k) / stride
    }
}

/// A convolution with odd kernel sides.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between output pixels, in input pixels.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
}

impl Conv2d {
    /// A convolution whose output has the input's size divided by the stride, rounded up.
    pub const fn same(kernel: [usize; 2], stride: usize) -> Self {
        Self { kernel, stride, padding: Padding::Same }
    }

    /// Height and width of the output for an input's.
    pub fn output_size(&self, input: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| self.padding.places(input[axis], self.kernel[axis], self.stride))
    }
}

/// What is made of the pixels of a pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The largest; NaN if one is.
    Max,
    /// The mean of those inside the image.
    Average,
}

/// Pooling over 3x3 windows.
#[derive(Clone, Copy, Debug)]
pub struct Pool2d {
    /// What is made of a window.
    pub kind: PoolKind,
    /// Step between windows.
    pub stride: usize,
    /// Whether windows hang over the border; what lies outside counts for nothing.
    pub padding: Padding,
}

/// Dropout (Srivastava et al. 2014) whose masks follow from a seed: those of the batch's image i from
/// (seed, position + i, layer) alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability of a zero.
    pub probability: f64,
    /// The run's seed.
    pub seed: u64,
    /// Place of the batch's first image in the run.
    pub position: u64,
    /// Which of the network's dropout layers this is.
    pub layer: u32,
}

/// Group normalisation over the trailing channels.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Number of groups; it divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Dropout after all that.
    pub dropout: Option<Dropout>,
}

/// How the channels of queries, keys and values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// `[head][q, k, v][channel]`: the reference's legacy order.
    HeadsFirst,
    /// `[q, k, v][head][channel]`: the reference's new order.
    QkvFirst,
}

/// Direction of a change of size by two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// Nearest-neighbour doubling.
    Up,
    /// Sums of 2x2 squares.
    Down,
}

/// One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101) with PyTorch's parametrisation.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Decay rates of the first and second moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The number of this step, from 1.
    pub step: u64,
    /// The gradient is multiplied by this first: 1, or less to clip its norm.
    pub grad_scale: f64,
}

/// What [`AdamW`] comes to in the arithmetic of the parameters.
#[derive(Clone, Copy, Debug)]
pub struct AdamWCoefficients {
    /// The gradient is multiplied by it.
    pub grad_scale: f32,
    /// 1 − β₁.
    pub one_minus_beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// 1 − β₂.
    pub one_minus_beta2: f32,
    /// What parameters are multiplied by.
    pub decay: f32,
    /// The learning rate over 1 − β₁ᵗ.
    pub step_size: f32,
    /// √(1 − β₂ᵗ).
    pub sqrt_correction2: f32,
    /// Added to the root.
    pub eps: f32,
}

impl AdamW {
    /// Its factors as f32.
    pub fn coefficients(&self) -> AdamWCoefficients {
        let [beta1, beta2] = self.betas;
        AdamWCoefficients {
            grad_scale: self.grad_scale as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            decay: (1.0 - self.lr * self.weight_decay) as f32,
            step_size: (self.lr / (1.0 - beta1.powf(self.step as f64))) as f32,
            sqrt_correction2: (1.0 - beta2.powf(self.step as f64)).sqrt() as f32,
            eps: self.eps as f32,
        }
    }
}
