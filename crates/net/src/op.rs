//! The operations: what each takes and makes, and what it costs.
//!
//! Activations are channels-last in the network's precision; rows, statistics and parameters are f32. The backward rules
//! stand in `backward`, what a device does in `device`.

use crate::kind::{Kind, Precision, Shape};
use crate::state::Layout;
use ddpm_kernels::conv::Geometry;
use ddpm_kernels::{Conv2d, HeadOrder, Pool2d, Resample, attention, bf16, pool};

/// A convolution's parameters and settings. A linear map is one over a single pixel.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Where weights lie; the bias follows each. Several are layers of one input side by side, their outputs joined.
    pub places: Vec<usize>,
    /// Kernel, stride and padding.
    pub settings: Conv2d,
    /// Whether ReLU follows. Such a layer has no derivative.
    pub relu: bool,
}

impl Conv {
    /// Channels of the output.
    fn outputs(&self, layout: &Layout) -> usize {
        self.places.iter().map(|&place| layout.specs()[place].shape[0]).sum()
    }

    /// Sizes, for an input of that shape.
    pub(crate) fn geometry(&self, x: Shape, layout: &Layout) -> Geometry {
        Geometry::new(self.settings, [x.n, x.h, x.w, x.c], self.outputs(layout))
    }

    /// As [`geometry`](Self::geometry), as the processor computes it.
    pub(crate) fn on_cpu(&self, x: Shape, layout: &Layout, split: bool) -> Geometry {
        Geometry { split, ..self.geometry(x, layout) }
    }
}

/// A group normalisation with what follows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Where the weight lies; the bias follows.
    pub place: usize,
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Probability of dropout after all that, and which of the network's dropout layers it is.
    pub dropout: Option<(f64, u32)>,
    /// Whether a film, scale and shift of each image, is among the inputs.
    pub film: bool,
}

/// What the gradient of a layer is wanted for beside its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The layer's parameters, whose gradients it writes.
    pub parameters: bool,
    /// What has been added up of the input's gradient is among the inputs, the last of them, and is added.
    pub onto: bool,
}

/// An operation. Where inputs are named, they come in that order.
#[derive(Clone, Debug)]
pub enum Op {
    /// What the caller writes before the part of the graph that it stands in.
    Input(Shape, Precision),
    /// Planes `[N, C, H, W]` in f32, one or several side by side, to pixels of the precision.
    Enter(Precision),
    /// The channels from the first on, as many as said, to planes in f32.
    Leave(usize),
    /// x, perhaps a residual that is added.
    Conv(Conv),
    /// The output's gradient, perhaps what it is added onto; the shape of x.
    ConvInputGrad(Conv, Shape, Wanted),
    /// x and the output's gradient; writes those of weights and biases.
    ConvWeightGrad(Conv),
    /// x, perhaps a film; y and statistics `[N, 2, C]`.
    Norm(Norm),
    /// The gradient, x, statistics, perhaps a film and what it is added onto; gradients of x and the film. Writes those of
    /// weight and bias.
    NormGrad(Norm, Wanted),
    /// Queries, keys and values of heads.
    Attention(usize, HeadOrder),
    /// The gradient, and queries, keys and values.
    AttentionGrad(usize, HeadOrder),
    /// Doubling or halving, times a factor.
    Resample(Resample, f32),
    /// All inputs' channels side by side.
    Concat,
    /// Channels from the first number on, as many as the second says.
    TakeChannels(usize, usize),
    /// x·sigmoid(x).
    Silu,
    /// The gradient and x.
    SiluGrad,
    /// The larger of x and 0.
    Relu,
    /// The gradient and x.
    ReluGrad,
    /// x and rows `[N, C]` that are added to each of its pixels.
    AddRows,
    /// The sum over an image's pixels times a factor, as rows.
    SumPixels(f32),
    /// Rows times a factor at each pixel of a shape in a precision.
    SpreadRows(Shape, Precision, f32),
    /// Rows plus those that the images' labels choose from the table at a place; [`NO_CLASS`](crate::NO_CLASS) chooses none.
    Embed(usize),
    /// The gradient of such rows; writes the table's.
    EmbedGrad(usize),
    /// x as rows of tokens `[N, 1, T + 1, C]`: their mean, then the pixels, and what is learned for each position `[C, T + 1]`.
    Tokens(usize),
    /// The gradient of such tokens, for pixels of the shape; writes that of the positions if it is wanted.
    TokensGrad(usize, Shape, Wanted),
    /// The first token.
    FirstToken,
    /// The gradient of the first of so many tokens.
    FirstTokenGrad(usize),
    /// To another precision.
    Cast(Precision),
    /// The sum of both.
    Add,
    /// Pooling over 3x3 windows.
    Pool(Pool2d),
    /// Zeros for the gradient of a parameter that nothing depends on.
    Clear(usize),
    /// One of a concatenation's inputs, as its output's channels from this one on: plans have these in its place.
    Place(usize),
}

impl Op {
    /// Shapes and types of what it makes.
    ///
    /// # Panics
    /// If the inputs do not fit.
    pub(crate) fn outputs(&self, inputs: &[Kind], layout: &Layout) -> Vec<Kind> {
        let x = || inputs[0];
        let shaped = |shape| Kind { shape, precision: inputs[0].precision };
        match self {
            Self::Input(shape, precision) | Self::SpreadRows(shape, precision, _) => {
                vec![Kind { shape: *shape, precision: *precision }]
            }
            Self::Enter(precision) => {
                let c = inputs.iter().map(|kind| kind.shape.c).sum();
                vec![Kind { shape: x().shape.with_channels(c), precision: *precision }]
            }
            Self::Leave(c) => vec![Kind { shape: x().shape.with_channels(*c), precision: Precision::F32 }],
            Self::Conv(conv) => {
                let g = conv.geometry(x().shape, layout);
                for &place in &conv.places {
                    let spec = &layout.specs()[place];
                    let per_output = spec.len() / spec.shape[0];
                    assert_eq!(
                        per_output,
                        g.c * g.kernel[0] * g.kernel[1],
                        "`{}` for an input of {} channels",
                        spec.name,
                        g.c
                    );
                }
                let shape = Shape { n: g.n, h: g.out_h(), w: g.out_w(), c: g.o };
                assert!(inputs.get(1).is_none_or(|r| *r == shaped(shape)), "a residual of another shape");
                vec![shaped(shape)]
            }
            Self::ConvInputGrad(_, shape, _) | Self::TokensGrad(_, shape, _) => vec![shaped(*shape)],
            Self::ConvWeightGrad(_) | Self::EmbedGrad(_) | Self::Clear(_) | Self::Place(_) => vec![],
            Self::Norm(norm) => {
                let Kind { shape, .. } = x();
                let spec = &layout.specs()[norm.place];
                assert!(
                    shape.c.is_multiple_of(norm.groups),
                    "{} groups do not divide {} channels",
                    norm.groups,
                    shape.c
                );
                assert_eq!(spec.len(), shape.c, "`{}` for {} channels", spec.name, shape.c);
                let film = inputs.get(1).map(|film| film.shape);
                assert_eq!(film, norm.film.then_some(Shape::rows(shape.n, 2 * shape.c)), "scale and shift");
                let statistics = Kind { shape: Shape::rows(shape.n, 2 * shape.c), precision: Precision::F32 };
                vec![x(), statistics]
            }
            Self::NormGrad(norm, _) => {
                let mut made = vec![inputs[1]];
                made.extend(norm.film.then(|| inputs[3]));
                made
            }
            Self::Attention(heads, _) => {
                let shape = x().shape;
                assert!(shape.c.is_multiple_of(3 * heads), "{} channels for {heads} heads", shape.c);
                vec![shaped(shape.with_channels(shape.c / 3))]
            }
            Self::AttentionGrad(..) | Self::ReluGrad | Self::SiluGrad => vec![inputs[1]],
            Self::Resample(to, _) => {
                let Shape { n, h, w, c } = x().shape;
                let (h, w) = match to {
                    Resample::Up => (2 * h, 2 * w),
                    Resample::Down => {
                        assert!(h % 2 == 0 && w % 2 == 0, "an image of {h} x {w} cannot be halved");
                        (h / 2, w / 2)
                    }
                };
                vec![shaped(Shape { n, h, w, c })]
            }
            Self::Concat => {
                let shape = x().shape;
                let fits = |kind: &Kind| kind.shape.with_channels(0) == shape.with_channels(0);
                assert!(inputs.iter().all(fits), "sizes of tensors to be joined");
                vec![shaped(shape.with_channels(inputs.iter().map(|kind| kind.shape.c).sum()))]
            }
            Self::TakeChannels(_, count) => vec![shaped(x().shape.with_channels(*count))],
            Self::Silu | Self::Relu | Self::Embed(_) => vec![x()],
            Self::AddRows => {
                let shape = x().shape;
                assert_eq!(inputs[1].shape, Shape::rows(shape.n, shape.c), "rows for other pixels");
                vec![x()]
            }
            Self::SumPixels(_) => {
                vec![Kind { shape: Shape::rows(x().shape.n, x().shape.c), precision: Precision::F32 }]
            }
            Self::Tokens(place) => {
                let Shape { n, c, .. } = x().shape;
                let tokens = x().shape.pixels() + 1;
                let spec = &layout.specs()[*place];
                assert_eq!(spec.shape, [c, tokens], "`{}` for images of another size", spec.name);
                vec![shaped(Shape { n, h: 1, w: tokens, c })]
            }
            Self::FirstToken => vec![shaped(Shape::rows(x().shape.n, x().shape.c))],
            Self::FirstTokenGrad(tokens) => vec![shaped(Shape { w: *tokens, ..x().shape })],
            Self::Cast(precision) => vec![Kind { precision: *precision, ..x() }],
            Self::Add => {
                assert_eq!(inputs[0], inputs[1], "a sum of different shapes");
                vec![x()]
            }
            Self::Pool(settings) => {
                let Shape { n, h, w, c } = x().shape;
                let [h, w] = pool::output_size(*settings, [h, w]);
                vec![shaped(Shape { n, h, w, c })]
            }
        }
    }

    /// The parameters whose gradients it writes: places that follow each other.
    pub(crate) fn writes(&self) -> Vec<usize> {
        let pairs = |places: &[usize]| places.iter().flat_map(|&place| [place, place + 1]).collect();
        match self {
            Self::ConvWeightGrad(conv) => pairs(&conv.places),
            Self::NormGrad(norm, wanted) if wanted.parameters => pairs(&[norm.place]),
            Self::TokensGrad(place, _, wanted) if wanted.parameters => vec![*place],
            Self::EmbedGrad(place) | Self::Clear(place) => vec![*place],
            _ => Vec::new(),
        }
    }

    /// The parameters that it reads, as far as backward rules need to know.
    pub(crate) fn has_parameters(&self) -> bool {
        matches!(self, Self::Conv(_) | Self::Norm(_) | Self::Embed(_) | Self::Tokens(_))
    }

    /// Operations of the plain algorithm, a multiply-add counted as two; 0 where memory decides.
    pub(crate) fn flop(&self, inputs: &[Kind], layout: &Layout) -> f64 {
        match self {
            Self::Conv(conv) | Self::ConvWeightGrad(conv) => conv.geometry(inputs[0].shape, layout).flop(),
            Self::ConvInputGrad(conv, shape, _) => conv.geometry(*shape, layout).flop(),
            Self::Attention(heads, order) => 2.0 * extent(inputs[0].shape, *heads, *order).product_flop(),
            Self::AttentionGrad(heads, order) => 5.0 * extent(inputs[1].shape, *heads, *order).product_flop(),
            _ => 0.0,
        }
    }

    /// Its name in tables, without the type; with how the processor computes it, if that is asked for by saying whether it may
    /// [split](Geometry::split) f32.
    pub(crate) fn name(&self, inputs: &[Kind], layout: &Layout, split: Option<bool>) -> String {
        let conv = |pass: &str, layer: &Conv, x: Shape| {
            let g = layer.on_cpu(x, layout, split == Some(true));
            let of = match inputs.first().map(|kind| kind.precision) {
                Some(Precision::Bf16) => g.method::<bf16>(),
                _ => g.method::<f32>(),
            };
            let ([k, l], method) = (g.kernel, split.map_or(String::new(), |_| format!(" ({of})")));
            format!("convolution {k}x{l} {pass}{method}")
        };
        match self {
            Self::Conv(c) => conv("forward", c, inputs[0].shape),
            Self::ConvInputGrad(c, shape, _) => conv("input gradient", c, *shape),
            Self::ConvWeightGrad(c) => conv("weight gradient", c, inputs[0].shape),
            Self::Norm(_) => "group norm forward".into(),
            Self::NormGrad(..) => "group norm backward".into(),
            Self::Attention(..) => "attention forward".into(),
            Self::AttentionGrad(..) => "attention backward".into(),
            Self::Resample(..) => "resampling".into(),
            Self::Concat | Self::Place(_) => "concatenation forward".into(),
            Self::TakeChannels(..) => "concatenation backward".into(),
            Self::Pool(_) => "pooling".into(),
            Self::Enter(_) | Self::Leave(_) => "layout at the edges".into(),
            Self::Silu | Self::SiluGrad | Self::Relu | Self::ReluGrad => "activations of rows".into(),
            Self::Add => "sum of gradients".into(),
            Self::AddRows | Self::SumPixels(_) | Self::SpreadRows(..) => "rows of pixels".into(),
            Self::Embed(_) | Self::EmbedGrad(_) => "class embedding".into(),
            Self::Tokens(_) | Self::TokensGrad(..) | Self::FirstToken | Self::FirstTokenGrad(_) => "tokens".into(),
            Self::Cast(_) => "cast".into(),
            Self::Input(..) | Self::Clear(_) => "clearing".into(),
        }
    }
}

/// Sizes of an attention over queries, keys and values of that shape.
pub(crate) fn extent(qkv: Shape, heads: usize, order: HeadOrder) -> attention::Extent {
    attention::Extent { n: qkv.n, t: qkv.pixels(), heads, ch: qkv.c / (3 * heads), order }
}
