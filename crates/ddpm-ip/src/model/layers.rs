//! The layers of the U-Net, as places in a parameter list.

use super::parameters::{Init, Parameters, Spec};
use crate::config::{Layout, NORM_GROUPS};
use burn::tensor::ops::PadMode;
use burn::tensor::{DType, Tensor};
use ddpm_kernels::{Conv2d, Dropout, GroupNorm, HeadOrder};

/// Collects the parameters of a network as its layers are made.
#[derive(Default)]
pub(crate) struct Builder {
    specs: Vec<Spec>,
    /// Dropout layers so far: each has its own masks.
    dropouts: u32,
}

impl Builder {
    pub(crate) fn finish(self) -> Vec<Spec> {
        self.specs
    }

    pub(crate) fn parameter(&mut self, name: String, shape: &[usize], init: Init) -> usize {
        self.specs.push(Spec { name, shape: shape.to_vec(), init });
        self.specs.len() - 1
    }

    /// Weight and bias of a linear map or convolution, in PyTorch's default beginning, or zero.
    fn affine(&mut self, name: &str, shape: &[usize], zero: bool) -> usize {
        let fan_in: usize = shape[1..].iter().product();
        let init = if zero { Init::Zero } else { Init::Uniform(1.0 / (fan_in as f64).sqrt()) };
        let place = self.parameter(format!("{name}.weight"), shape, init);
        self.parameter(format!("{name}.bias"), &shape[..1], init);
        place
    }
}

/// A convolution; a linear map is one over a single pixel. The bias follows the weight in the list.
pub(crate) struct Conv {
    place: usize,
    kernel: [usize; 2],
    stride: usize,
}

impl Conv {
    pub(crate) fn new(b: &mut Builder, name: &str, from: usize, to: usize, kernel: usize) -> Self {
        Self { place: b.affine(name, &[to, from, kernel, kernel], false), kernel: [kernel; 2], stride: 1 }
    }

    /// A convolution that begins as zero.
    pub(crate) fn zero(b: &mut Builder, name: &str, from: usize, to: usize, kernel: usize) -> Self {
        Self { place: b.affine(name, &[to, from, kernel, kernel], true), kernel: [kernel; 2], stride: 1 }
    }

    /// A map of the channels of each position: PyTorch's `Conv1d` with kernel 1.
    pub(crate) fn pointwise(b: &mut Builder, name: &str, from: usize, to: usize, zero: bool) -> Self {
        Self { place: b.affine(name, &[to, from, 1], zero), kernel: [1, 1], stride: 1 }
    }

    /// PyTorch's `Linear`.
    pub(crate) fn linear(b: &mut Builder, name: &str, from: usize, to: usize) -> Self {
        Self { place: b.affine(name, &[to, from], false), kernel: [1, 1], stride: 1 }
    }

    /// On images `[N, H, W, C]` or rows `[N, C]`; a row's values do not depend on the others.
    pub(crate) fn forward<const D: usize>(&self, p: &Parameters, x: Tensor<D>) -> Tensor<D> {
        self.forward_onto(p, x, None)
    }

    fn settings(&self) -> Conv2d {
        Conv2d::same(self.kernel, self.stride)
    }

    /// The outputs of layers of one input and one kernel size, in turn, as one layer.
    fn forward_joined(layers: &[Self], p: &Parameters, x: Tensor<4>) -> Tensor<4> {
        let joined = |offset: usize| Tensor::cat(layers.iter().map(|l| p.flat(l.place + offset)).collect(), 0);
        ddpm_kernels::conv2d(x, joined(0), joined(1), None, layers[0].settings())
    }

    /// The layer's output plus the residual.
    fn forward_onto<const D: usize>(&self, p: &Parameters, x: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        ddpm_kernels::conv2d(x, p.flat(self.place), p.flat(self.place + 1), residual, self.settings())
    }
}

/// Group normalisation with the reference's 32 groups, then modulation and SiLU where asked.
pub(crate) struct Norm {
    place: usize,
    silu: bool,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(b: &mut Builder, name: &str, channels: usize, silu: bool, layout: Layout) -> Self {
        let place = b.parameter(format!("{name}.weight"), &[channels], Init::One);
        b.parameter(format!("{name}.bias"), &[channels], Init::Zero);
        let eps = match layout {
            Layout::Adm => 1e-5,
            Layout::Ddim => 1e-6,
        };
        Self { place, silu, eps }
    }

    /// On `[N, …, C]`.
    pub(crate) fn forward<const D: usize>(&self, p: &Parameters, x: Tensor<D>) -> Tensor<D> {
        self.forward_modulated(p, x, None, None)
    }

    /// `film` is scale and shift `[N, 2C]`; without it the layer is plain.
    fn forward_modulated<const D: usize>(
        &self,
        p: &Parameters,
        x: Tensor<D>,
        film: Option<Tensor<2>>,
        dropout: Option<Dropout>,
    ) -> Tensor<D> {
        let (weight, bias) = (p.flat(self.place), p.flat(self.place + 1));
        let norm = GroupNorm { groups: NORM_GROUPS, eps: self.eps, silu: self.silu, dropout };
        ddpm_kernels::group_norm(x, weight, bias, film, norm)
    }
}

/// A change of size by two inside a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Keep,
    Up,
    Down,
}

impl Scale {
    fn apply(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Keep => x,
            Self::Up => ddpm_kernels::upsample(x),
            Self::Down => ddpm_kernels::downsample(x),
        }
    }
}

/// What a residual block is made from.
#[derive(Clone, Copy)]
pub(crate) struct ResBlockConfig {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) embedding: usize,
    pub(crate) dropout: f64,
    pub(crate) scale_shift_norm: bool,
    pub(crate) scale: Scale,
    pub(crate) layout: Layout,
}

/// A residual block, conditioned on the embedding of time and class.
pub(crate) struct ResBlock {
    config: ResBlockConfig,
    in_norm: Norm,
    in_conv: Conv,
    embedding: Conv,
    out_norm: Norm,
    out_conv: Conv,
    skip: Option<Conv>,
    dropout_layer: u32,
}

impl ResBlock {
    pub(crate) fn new(b: &mut Builder, name: &str, config: ResBlockConfig) -> Self {
        let ResBlockConfig { from, to, embedding, scale_shift_norm, layout, .. } = config;
        let [in_norm, in_conv, emb, out_norm, out_conv, skip] = match layout {
            Layout::Adm => {
                ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
            }
            Layout::Ddim => ["norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut"],
        }
        .map(|layer| format!("{name}.{layer}"));
        b.dropouts += 1;
        Self {
            in_norm: Norm::new(b, &in_norm, from, true, layout),
            in_conv: Conv::new(b, &in_conv, from, to, 3),
            embedding: Conv::linear(b, &emb, embedding, if scale_shift_norm { 2 * to } else { to }),
            out_norm: Norm::new(b, &out_norm, to, true, layout),
            out_conv: match layout {
                Layout::Adm => Conv::zero(b, &out_conv, to, to, 3),
                Layout::Ddim => Conv::new(b, &out_conv, to, to, 3),
            },
            skip: (from != to).then(|| Conv::new(b, &skip, from, to, 1)),
            dropout_layer: b.dropouts,
            config,
        }
    }

    /// `x` `[N, H, W, C]`, `embedding` `[N, E]`.
    pub(crate) fn forward(&self, p: &Parameters, x: Tensor<4>, context: &Context) -> Tensor<4> {
        let scale = self.config.scale;
        let h = self.in_norm.forward(p, x.clone());
        let (h, x) = (scale.apply(h), scale.apply(x));
        let h = self.in_conv.forward(p, h);
        let embedding = self.embedding.forward(p, context.embedding.clone());
        let (h, film) = if self.config.scale_shift_norm {
            (h, Some(embedding))
        } else {
            let (dims, dtype) = ([h.dims()[0], 1, 1, self.config.to], h.dtype());
            // In f32, as the embedding's gradient is a sum over all pixels.
            ((h.cast(DType::F32) + embedding.reshape(dims)).cast(dtype), None)
        };
        let h = self.out_norm.forward_modulated(p, h, film, context.dropout(self.config.dropout, self.dropout_layer));
        let x = match &self.skip {
            Some(skip) => skip.forward(p, x),
            None => x,
        };
        self.out_conv.forward_onto(p, h, Some(x))
    }
}

/// Where in a run a training step's images stand: an image's dropout masks depend on the seed, its position and the layer,
/// not on batch size, microbatches or threads.
#[derive(Clone, Copy, Debug)]
pub struct RunPosition {
    /// The run's seed.
    pub seed: u64,
    /// Images the run has seen before this batch's first.
    pub position: u64,
}

/// What every block of one forward pass shares.
pub(crate) struct Context {
    /// SiLU of the embedding of time and class, `[N, E]`.
    pub(crate) embedding: Tensor<2>,
    /// Where in a run this pass is, for dropout; none outside training.
    pub(crate) position: Option<RunPosition>,
}

impl Context {
    fn dropout(&self, probability: f64, layer: u32) -> Option<Dropout> {
        let RunPosition { seed, position } = self.position.filter(|_| probability > 0.0)?;
        Some(Dropout { probability, seed, position, layer })
    }
}

/// Self-attention over all positions.
pub(crate) struct AttentionBlock {
    norm: Norm,
    /// Queries, keys and values: one layer, or three.
    qkv: Vec<Conv>,
    proj: Conv,
    heads: usize,
    order: HeadOrder,
}

impl AttentionBlock {
    pub(crate) fn new(b: &mut Builder, name: &str, channels: usize, heads: usize, order: HeadOrder) -> Self {
        Self {
            norm: Norm::new(b, &format!("{name}.norm"), channels, false, Layout::Adm),
            qkv: vec![Conv::pointwise(b, &format!("{name}.qkv"), channels, 3 * channels, false)],
            proj: Conv::pointwise(b, &format!("{name}.proj_out"), channels, channels, true),
            heads,
            order,
        }
    }

    /// The DDIM network's: one head, a layer each for queries, keys and values.
    pub(crate) fn single_headed(b: &mut Builder, name: &str, channels: usize) -> Self {
        let norm = Norm::new(b, &format!("{name}.norm"), channels, false, Layout::Ddim);
        let mut layer = |layer: &str| Conv::new(b, &format!("{name}.{layer}"), channels, channels, 1);
        let (qkv, proj) = (["q", "k", "v"].map(&mut layer).into(), layer("proj_out"));
        Self { norm, qkv, proj, heads: 1, order: HeadOrder::QkvFirst }
    }

    pub(crate) fn forward(&self, p: &Parameters, x: Tensor<4>) -> Tensor<4> {
        let normalised = self.norm.forward(p, x.clone());
        let qkv = match self.qkv.as_slice() {
            [qkv] => qkv.forward(p, normalised),
            layers => Conv::forward_joined(layers, p, normalised),
        };
        let out = ddpm_kernels::attention(qkv, self.heads, self.order);
        self.proj.forward_onto(p, out, Some(x))
    }
}

/// A plain change of size: pooling or repetition, with a convolution if asked.
pub(crate) enum Resize {
    Down(Option<Conv>),
    /// Without padding on the left and above: the DDIM network's.
    DownUncentred(Conv),
    Up(Option<Conv>),
}

impl Resize {
    pub(crate) fn down(b: &mut Builder, name: &str, channels: usize, conv: bool) -> Self {
        Self::Down(conv.then(|| Conv { stride: 2, ..Conv::new(b, &format!("{name}.op"), channels, channels, 3) }))
    }

    pub(crate) fn down_uncentred(b: &mut Builder, name: &str, channels: usize, conv: bool) -> Self {
        if !conv {
            return Self::Down(None);
        }
        Self::DownUncentred(Conv { stride: 2, ..Conv::new(b, &format!("{name}.conv"), channels, channels, 3) })
    }

    pub(crate) fn up(b: &mut Builder, name: &str, channels: usize, conv: bool) -> Self {
        Self::Up(conv.then(|| Conv::new(b, &format!("{name}.conv"), channels, channels, 3)))
    }

    pub(crate) fn forward(&self, p: &Parameters, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Down(Some(conv)) => conv.forward(p, x),
            Self::Down(None) => Scale::Down.apply(x),
            Self::DownUncentred(conv) => {
                // The kernel pads by one and looks at pixels around every second; after one more pixel on every side those
                // are one further to the right and below, and the first row and column are not wanted.
                let y = conv.forward(p, x.pad([(1, 1), (1, 1), (0, 0)], PadMode::Constant(0.0)));
                let [n, h, w, c] = y.dims();
                y.slice([0..n, 1..h, 1..w, 0..c])
            }
            Self::Up(Some(conv)) => conv.forward(p, Scale::Up.apply(x)),
            Self::Up(None) => Scale::Up.apply(x),
        }
    }
}
