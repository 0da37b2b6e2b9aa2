//! The layers of the U-Net, as places in a parameter list, and how they record themselves.

use super::{Family, NORM_GROUPS};
use crate::graph::{Graph, Value};
use crate::op::{self, Op};
use crate::state::{Init, Layout, Spec};
use ddpm_kernels::{Conv2d, HeadOrder, Padding, Resample};

/// Collects the parameters of a network as its layers are made.
#[derive(Default)]
pub(crate) struct Builder {
    specs: Vec<Spec>,
    /// Dropout layers so far: each has its own masks.
    dropouts: u32,
}

impl Builder {
    pub(crate) fn finish(self) -> Layout {
        Layout::new(self.specs)
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
    settings: Conv2d,
}

impl Conv {
    pub(crate) fn new(b: &mut Builder, name: &str, from: usize, to: usize, kernel: usize) -> Self {
        let settings = Conv2d::same([kernel; 2], 1);
        Self { place: b.affine(name, &[to, from, kernel, kernel], false), settings }
    }

    /// A convolution that begins as zero.
    pub(crate) fn zero(b: &mut Builder, name: &str, from: usize, to: usize, kernel: usize) -> Self {
        let settings = Conv2d::same([kernel; 2], 1);
        Self { place: b.affine(name, &[to, from, kernel, kernel], true), settings }
    }

    /// A map of the channels of each position: PyTorch's `Conv1d` with kernel 1.
    pub(crate) fn pointwise(b: &mut Builder, name: &str, from: usize, to: usize, zero: bool) -> Self {
        Self { place: b.affine(name, &[to, from, 1], zero), settings: Conv2d::same([1, 1], 1) }
    }

    /// PyTorch's `Linear`.
    pub(crate) fn linear(b: &mut Builder, name: &str, from: usize, to: usize) -> Self {
        Self { place: b.affine(name, &[to, from], false), settings: Conv2d::same([1, 1], 1) }
    }

    /// Where the weight lies.
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// On images or rows; a row's values do not depend on the others.
    pub(crate) fn record(&self, graph: &mut Graph, x: Value) -> Value {
        Self::record_joined(std::slice::from_ref(self), graph, x)
    }

    /// The outputs of layers of one input and one kernel, in turn, as one layer.
    fn record_joined(layers: &[Self], graph: &mut Graph, x: Value) -> Value {
        let places = layers.iter().map(|layer| layer.place).collect();
        graph.add(Op::Conv(op::Conv { places, settings: layers[0].settings, relu: false }), &[x])
    }

    /// The layer's output plus the residual.
    fn record_onto(&self, graph: &mut Graph, x: Value, residual: Value) -> Value {
        let conv = op::Conv { places: vec![self.place], settings: self.settings, relu: false };
        graph.add(Op::Conv(conv), &[x, residual])
    }
}

/// Group normalisation with the reference's 32 groups, then modulation and SiLU where asked.
pub(crate) struct Norm {
    place: usize,
    silu: bool,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(b: &mut Builder, name: &str, channels: usize, silu: bool, family: Family) -> Self {
        let place = b.parameter(format!("{name}.weight"), &[channels], Init::One);
        b.parameter(format!("{name}.bias"), &[channels], Init::Zero);
        let eps = match family {
            Family::Adm => 1e-5,
            Family::Ddim => 1e-6,
        };
        Self { place, silu, eps }
    }

    pub(crate) fn record(&self, graph: &mut Graph, x: Value) -> Value {
        self.record_modulated(graph, x, None, None)
    }

    /// `film` is scale and shift `[N, 2C]`; without it the layer is plain. `dropout` is its probability, and which of the
    /// network's layers of it this is.
    fn record_modulated(&self, graph: &mut Graph, x: Value, film: Option<Value>, dropout: Option<(f64, u32)>) -> Value {
        let Self { place, silu, eps } = *self;
        let norm = op::Norm { place, groups: NORM_GROUPS, eps, silu, dropout, film: film.is_some() };
        let inputs: Vec<Value> = [x].into_iter().chain(film).collect();
        graph.add(Op::Norm(norm), &inputs)
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
    fn record(self, graph: &mut Graph, x: Value) -> Value {
        match self {
            Self::Keep => x,
            Self::Up => graph.add(Op::Resample(Resample::Up, 1.0), &[x]),
            Self::Down => graph.add(Op::Resample(Resample::Down, 0.25), &[x]),
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
    pub(crate) family: Family,
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
        let ResBlockConfig { from, to, embedding, scale_shift_norm, family, .. } = config;
        let [in_norm, in_conv, emb, out_norm, out_conv, skip] = match family {
            Family::Adm => {
                ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
            }
            Family::Ddim => ["norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut"],
        }
        .map(|layer| format!("{name}.{layer}"));
        b.dropouts += 1;
        Self {
            in_norm: Norm::new(b, &in_norm, from, true, family),
            in_conv: Conv::new(b, &in_conv, from, to, 3),
            embedding: Conv::linear(b, &emb, embedding, if scale_shift_norm { 2 * to } else { to }),
            out_norm: Norm::new(b, &out_norm, to, true, family),
            out_conv: match family {
                Family::Adm => Conv::zero(b, &out_conv, to, to, 3),
                Family::Ddim => Conv::new(b, &out_conv, to, to, 3),
            },
            skip: (from != to).then(|| Conv::new(b, &skip, from, to, 1)),
            dropout_layer: b.dropouts,
            config,
        }
    }

    pub(crate) fn record(&self, graph: &mut Graph, x: Value, context: Context) -> Value {
        let scale = self.config.scale;
        let h = self.in_norm.record(graph, x);
        let (h, x) = (scale.record(graph, h), scale.record(graph, x));
        let h = self.in_conv.record(graph, h);
        let embedding = self.embedding.record(graph, context.embedding);
        let (h, film) = if self.config.scale_shift_norm {
            (h, Some(embedding))
        } else {
            (graph.add(Op::AddRows, &[h, embedding]), None)
        };
        let dropout =
            (context.training && self.config.dropout > 0.0).then_some((self.config.dropout, self.dropout_layer));
        let h = self.out_norm.record_modulated(graph, h, film, dropout);
        let x = match &self.skip {
            Some(skip) => skip.record(graph, x),
            None => x,
        };
        self.out_conv.record_onto(graph, h, x)
    }
}

/// What every block of one recording shares.
#[derive(Clone, Copy)]
pub(crate) struct Context {
    /// SiLU of the embedding of time and class, `[N, E]`.
    pub(crate) embedding: Value,
    /// Whether there is dropout.
    pub(crate) training: bool,
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
            norm: Norm::new(b, &format!("{name}.norm"), channels, false, Family::Adm),
            qkv: vec![Conv::pointwise(b, &format!("{name}.qkv"), channels, 3 * channels, false)],
            proj: Conv::pointwise(b, &format!("{name}.proj_out"), channels, channels, true),
            heads,
            order,
        }
    }

    /// The DDIM network's: one head, a layer each for queries, keys and values.
    pub(crate) fn single_headed(b: &mut Builder, name: &str, channels: usize) -> Self {
        let norm = Norm::new(b, &format!("{name}.norm"), channels, false, Family::Ddim);
        let mut layer = |layer: &str| Conv::new(b, &format!("{name}.{layer}"), channels, channels, 1);
        let (qkv, proj) = (["q", "k", "v"].map(&mut layer).into(), layer("proj_out"));
        Self { norm, qkv, proj, heads: 1, order: HeadOrder::QkvFirst }
    }

    pub(crate) fn record(&self, graph: &mut Graph, x: Value) -> Value {
        let normalised = self.norm.record(graph, x);
        let qkv = Conv::record_joined(&self.qkv, graph, normalised);
        let out = graph.add(Op::Attention(self.heads, self.order), &[qkv]);
        self.proj.record_onto(graph, out, x)
    }
}

/// A plain change of size: pooling or repetition, with a convolution if asked.
pub(crate) enum Resize {
    Down(Option<Conv>),
    Up(Option<Conv>),
}

impl Resize {
    pub(crate) fn down(b: &mut Builder, name: &str, channels: usize, conv: bool) -> Self {
        let conv = conv.then(|| Conv::new(b, &format!("{name}.op"), channels, channels, 3));
        Self::Down(conv.map(|conv| Conv { settings: Conv2d { stride: 2, ..conv.settings }, ..conv }))
    }

    /// Without zeros on the left and above: the DDIM network's.
    pub(crate) fn down_uncentred(b: &mut Builder, name: &str, channels: usize, conv: bool) -> Self {
        let settings = Conv2d { kernel: [3, 3], stride: 2, padding: Padding::After };
        let conv = conv.then(|| Conv::new(b, &format!("{name}.conv"), channels, channels, 3));
        Self::Down(conv.map(|conv| Conv { settings, ..conv }))
    }

    pub(crate) fn up(b: &mut Builder, name: &str, channels: usize, conv: bool) -> Self {
        Self::Up(conv.then(|| Conv::new(b, &format!("{name}.conv"), channels, channels, 3)))
    }

    pub(crate) fn record(&self, graph: &mut Graph, x: Value) -> Value {
        match self {
            Self::Down(Some(conv)) => conv.record(graph, x),
            Self::Down(None) => Scale::Down.record(graph, x),
            Self::Up(conv) => {
                let x = Scale::Up.record(graph, x);
                conv.as_ref().map_or(x, |conv| conv.record(graph, x))
            }
        }
    }
}
