//! Tensor operations of the diffusion networks that Burn does not have, or not fast enough.
//!
//! Activations are channels-last, `[N, H, W, C]`, in f32 or bf16; weights keep PyTorch's `[O, C, k, l]` and are f32, and so
//! are all sums and statistics. Every differentiable operation is a function on Burn tensors with a hand-written backward
//! pass. On the CPU a result depends neither on the number of threads nor, image by image, on the batch size; from one
//! [`Isa`] to another it differs by rounding.

mod autodiff;
mod flex;
mod isa;
mod memory;
pub mod profile;

pub use isa::{ISA_VARIABLE, Isa, UnknownIsa};
pub use memory::keep_freed_memory;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Shape, Tensor};

/// What a sliding window sees beyond the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// `k / 2` pixels on each side: with an odd window and stride 1 the size stays.
    Same,
    /// Nothing: the window stays inside.
    Valid,
}

impl Padding {
    /// Pixels on each side of an axis for a window of `k`.
    fn pixels(self, k: usize) -> usize {
        if self == Self::Same { k / 2 } else { 0 }
    }

    /// Places of a window of `k` along an axis.
    fn places(self, size: usize, k: usize, stride: usize) -> usize {
        (size + 2 * self.pixels(k) + stride).saturating_sub(k) / stride
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
pub(crate) struct AdamWCoefficients {
    pub(crate) grad_scale: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) decay: f32,
    pub(crate) step_size: f32,
    pub(crate) sqrt_correction2: f32,
    pub(crate) eps: f32,
}

impl AdamW {
    pub(crate) fn coefficients(&self) -> AdamWCoefficients {
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

/// The differentiable operations, per backend.
#[backend_extension(Flex, Autodiff)]
pub trait Kernels: Backend {
    /// See [`conv2d`].
    fn conv2d_nhwc(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        conv: Conv2d,
    ) -> FloatTensor<Self>;

    /// See [`conv2d`].
    fn conv2d_add_nhwc(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        conv: Conv2d,
    ) -> FloatTensor<Self>;

    /// See [`group_norm`].
    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: GroupNorm,
    ) -> FloatTensor<Self>;

    /// See [`group_norm`].
    fn group_norm_film(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        film: FloatTensor<Self>,
        norm: GroupNorm,
    ) -> FloatTensor<Self>;

    /// Doubles or halves height and width, times `scale`.
    fn resample(x: FloatTensor<Self>, to: Resample, scale: f32) -> FloatTensor<Self>;

    /// See [`concat`].
    fn concat_channels(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`attention`].
    fn self_attention(qkv: FloatTensor<Self>, heads: usize, order: HeadOrder) -> FloatTensor<Self>;
}

/// The parts of the differentiable operations' passes, on the backend beneath autodiff.
pub trait GradKernels: Backend {
    /// Gradient of a convolution's input of that shape, from that of its output.
    fn conv2d_input_grad(
        grad: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        input: Shape,
        conv: Conv2d,
    ) -> FloatTensor<Self>;

    /// Gradients of a convolution's weight and bias. Of `weight` only the shape is used.
    fn conv2d_weight_grad(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        conv: Conv2d,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The layer's output, and the mean and 1/√(variance + eps) of each image and channel's group, `[N, 2, C]`.
    fn group_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        film: Option<FloatTensor<Self>>,
        norm: GroupNorm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of `x`, `weight`, `bias` and, where there is one, `film`.
    fn group_norm_grads(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        film: Option<FloatTensor<Self>>,
        norm: GroupNorm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// The channels `from .. from + count` of `[N, H, W, C]`.
    fn take_channels(x: FloatTensor<Self>, from: usize, count: usize) -> FloatTensor<Self>;

    /// Gradient of the queries, keys and values.
    fn attention_grad(
        grad: FloatTensor<Self>,
        qkv: FloatTensor<Self>,
        heads: usize,
        order: HeadOrder,
    ) -> FloatTensor<Self>;
}

/// The operations without a derivative, per backend: the optimizer's updates, and what only networks that measure do.
#[backend_extension(Flex)]
pub trait PlainKernels: Backend {
    /// See [`adamw`].
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        adamw: AdamW,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`ema`].
    fn ema(target: FloatTensor<Self>, source: FloatTensor<Self>, rate: f64) -> FloatTensor<Self>;

    /// See [`sum_squares`].
    fn sum_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`conv2d_relu`].
    fn conv2d_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        conv: Conv2d,
    ) -> FloatTensor<Self>;

    /// See [`pool`].
    fn pool(x: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self>;
}

/// Convolution of `x` `[N, H, W, C]` with `weight` `[O, C, k, l]` and `bias` `[O]`, plus `residual` if there is one:
/// `[N, H', W', O]`. Rows `x` `[N, C]` are images of one pixel and give rows. The weight may have any shape, such as that of
/// a flat parameter: its values count.
///
/// # Panics
/// Panics if the shapes do not fit, or if k or l is even.
pub fn conv2d<const D: usize, const W: usize>(
    x: Tensor<D>,
    weight: Tensor<W>,
    bias: Tensor<1>,
    residual: Option<Tensor<D>>,
    conv: Conv2d,
) -> Tensor<D> {
    let output = check_conv(&x, &weight, &bias, conv);
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(match residual {
        None => <Dispatch as Kernels>::conv2d_nhwc(x, weight, bias, conv),
        Some(residual) => {
            assert_eq!(residual.dims(), output, "shape of the residual");
            <Dispatch as Kernels>::conv2d_add_nhwc(x, weight, bias, residual.into_dispatch(), conv)
        }
    })
}

/// The shape of a convolution's output.
fn check_conv<const D: usize, const W: usize>(
    x: &Tensor<D>,
    weight: &Tensor<W>,
    bias: &Tensor<1>,
    conv: Conv2d,
) -> [usize; D] {
    let (mut dims, [k, l], [o]) = (x.dims(), conv.kernel, bias.dims());
    assert!(D == 2 || D == 4, "an input of {D} dimensions");
    let fits = weight.shape().num_elements() == o * dims[D - 1] * k * l;
    assert!(fits && k % 2 == 1 && l % 2 == 1, "a kernel {k}x{l} {:?} for an input {dims:?}", weight.dims());
    if D == 4 {
        [dims[1], dims[2]] = conv.output_size([dims[1], dims[2]]);
    }
    dims[D - 1] = o;
    dims
}

/// ReLU of a [`conv2d`], without a derivative.
///
/// # Panics
/// As [`conv2d`].
pub fn conv2d_relu<const W: usize>(x: Tensor<4>, weight: Tensor<W>, bias: Tensor<1>, conv: Conv2d) -> Tensor<4> {
    check_conv(&x, &weight, &bias, conv);
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PlainKernels>::conv2d_relu(x, weight, bias, conv))
}

/// Pooling of `x` `[N, H, W, C]` over 3x3 windows, without a derivative: `[N, H', W', C]`.
pub fn pool(x: Tensor<4>, pool: Pool2d) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as PlainKernels>::pool(x.into_dispatch(), pool))
}

/// Group normalisation of `x` `[N, …, C]` (Wu & He, arXiv 1803.08494) with `weight` and `bias` `[C]`, then
/// `·(1 + scale) + shift` if there is a `film` `[N, 2C]` (scale before shift), then SiLU and dropout if `norm` says so.
///
/// # Panics
/// Panics if the shapes do not fit, or if the groups do not divide C.
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    film: Option<Tensor<2>>,
    norm: GroupNorm,
) -> Tensor<D> {
    let (n, c) = (x.dims()[0], x.dims()[D - 1]);
    assert!(c.is_multiple_of(norm.groups), "{} groups do not divide {c} channels", norm.groups);
    assert_eq!((weight.dims(), bias.dims()), ([c], [c]), "shapes of weight and bias");
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(match film {
        None => <Dispatch as Kernels>::group_norm(x, weight, bias, norm),
        Some(film) => {
            assert_eq!(film.dims(), [n, 2 * c], "shape of scale and shift");
            <Dispatch as Kernels>::group_norm_film(x, weight, bias, film.into_dispatch(), norm)
        }
    })
}

/// Multi-head self-attention (Vaswani et al., arXiv 1706.03762) over all positions: `qkv` `[N, …, 3C]` to `[N, …, C]`,
/// with `heads` dividing C.
///
/// # Panics
/// Panics if the channels are not three times a multiple of `heads`.
pub fn attention<const D: usize>(qkv: Tensor<D>, heads: usize, order: HeadOrder) -> Tensor<D> {
    let width = qkv.dims()[D - 1];
    assert!(width.is_multiple_of(3 * heads), "{width} channels for {heads} heads of queries, keys and values");
    Tensor::from_dispatch(<Dispatch as Kernels>::self_attention(qkv.into_dispatch(), heads, order))
}

/// Nearest-neighbour upsampling: `[N, H, W, C]` to `[N, 2H, 2W, C]`.
pub fn upsample(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::resample(x.into_dispatch(), Resample::Up, 1.0))
}

/// Average pooling over 2x2 squares: `[N, 2H, 2W, C]` to `[N, H, W, C]`.
///
/// # Panics
/// Panics if a side is odd.
pub fn downsample(x: Tensor<4>) -> Tensor<4> {
    let [_, h, w, _] = x.dims();
    assert!(h % 2 == 0 && w % 2 == 0, "an image of {h} x {w} cannot be halved");
    Tensor::from_dispatch(<Dispatch as Kernels>::resample(x.into_dispatch(), Resample::Down, 0.25))
}

/// The channels of `a` `[N, H, W, C]`, then those of `b` `[N, H, W, D]`: `[N, H, W, C + D]`.
///
/// # Panics
/// Panics if the other sizes differ.
pub fn concat(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    assert_eq!(a.dims()[..3], b.dims()[..3], "sizes of tensors to be joined");
    Tensor::from_dispatch(<Dispatch as Kernels>::concat_channels(a.into_dispatch(), b.into_dispatch()))
}

/// One AdamW step on tensors without autodiff: the new parameter and moments. In place where a tensor has one owner.
///
/// # Panics
/// Panics if the lengths differ.
pub fn adamw(
    param: Tensor<1>,
    grad: Tensor<1>,
    m: Tensor<1>,
    v: Tensor<1>,
    adamw: AdamW,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    assert_eq!([grad.dims(), m.dims(), v.dims()], [param.dims(); 3], "lengths of gradient and moments");
    let (param, m, v) = <Dispatch as PlainKernels>::adamw(
        param.into_dispatch(),
        grad.into_dispatch(),
        m.into_dispatch(),
        v.into_dispatch(),
        adamw,
    );
    (Tensor::from_dispatch(param), Tensor::from_dispatch(m), Tensor::from_dispatch(v))
}

/// Exponential moving average: `target·rate + source·(1 − rate)`, in place where `target` has one owner.
///
/// # Panics
/// Panics if the lengths differ.
pub fn ema(target: Tensor<1>, source: Tensor<1>, rate: f64) -> Tensor<1> {
    assert_eq!(target.dims(), source.dims(), "lengths of target and source");
    Tensor::from_dispatch(<Dispatch as PlainKernels>::ema(target.into_dispatch(), source.into_dispatch(), rate))
}

/// Σ x² as a tensor of one value.
pub fn sum_squares(x: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as PlainKernels>::sum_squares(x.into_dispatch()))
}
