//! The noised classifier: the first half of an ADM U-Net and a head that pools (Dhariwal & Nichol, arXiv 2105.05233,
//! section 4.1), with all four heads of the reference, parameter for parameter.

use super::layers::{Builder, Context, Conv, Norm};
use super::parameters::{Init, Parameters, Spec};
use super::trunk::{Trunk, enter};
use super::{RunPosition, Shards};
use crate::config::{ClassifierNetwork, Layout, Pool};
use burn::tensor::activation::relu;
use burn::tensor::{DType, Tensor};
use ddpm_kernels::HeadOrder;

/// Hidden units of the spatial heads.
const HIDDEN: usize = 2048;

/// From features to logits.
enum Head {
    /// Mean of every channel.
    Adaptive { norm: Norm, conv: Conv },
    /// Attention of the mean over all positions, with learned positions.
    Attention { norm: Norm, positions: usize, qkv: Conv, proj: Conv, heads: usize },
    /// Means of every block's channels, and two linear maps with ReLU between.
    Spatial([Conv; 2]),
    /// The same with a normalisation and SiLU between.
    SpatialV2 { first: Conv, norm: Norm, second: Conv },
}

/// A classifier of noisy images: layers as places in a list of parameters.
pub struct Classifier {
    config: ClassifierNetwork,
    specs: Vec<Spec>,
    trunk: Trunk,
    head: Head,
}

impl Classifier {
    /// Builds the network; its parameters come as [`specs`](Self::specs).
    pub fn new(config: ClassifierNetwork) -> Self {
        let mut b = Builder::default();
        let trunk = Trunk::adm(&mut b, &config.network);
        let classes = config.network.out_channels;
        let channels = trunk.widths.last().copied().unwrap_or(0);
        let features = trunk.widths.iter().sum::<usize>() + channels;
        let head = match config.pool {
            Pool::Adaptive => Head::Adaptive {
                norm: Norm::new(&mut b, "out.0", channels, true, Layout::Adm),
                conv: Conv::zero(&mut b, "out.3", channels, classes, 1),
            },
            Pool::Attention => {
                let norm = Norm::new(&mut b, "out.0", channels, true, Layout::Adm);
                let deviation = 1.0 / (channels as f64).sqrt();
                let shape = [channels, config.bottom_size.pow(2) + 1];
                Head::Attention {
                    norm,
                    positions: b.parameter("out.2.positional_embedding".into(), &shape, Init::Normal(deviation)),
                    qkv: Conv::pointwise(&mut b, "out.2.qkv_proj", channels, 3 * channels, false),
                    proj: Conv::pointwise(&mut b, "out.2.c_proj", channels, classes, false),
                    heads: config.network.heads.count(channels),
                }
            }
            Pool::Spatial => Head::Spatial([
                Conv::linear(&mut b, "out.0", features, HIDDEN),
                Conv::linear(&mut b, "out.2", HIDDEN, classes),
            ]),
            Pool::SpatialV2 => Head::SpatialV2 {
                first: Conv::linear(&mut b, "out.0", features, HIDDEN),
                norm: Norm::new(&mut b, "out.1", HIDDEN, true, Layout::Adm),
                second: Conv::linear(&mut b, "out.3", HIDDEN, classes),
            },
        };
        Self { trunk, head, specs: b.finish(), config }
    }

    /// Its parameters: names, shapes and beginnings, in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// What it was built from.
    pub fn config(&self) -> &ClassifierNetwork {
        &self.config
    }

    /// Number of values over all parameters.
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().map(Spec::len).sum()
    }

    /// How its batches are cut into pieces.
    pub(crate) fn shards(&self) -> Shards {
        Shards { parameters: self.parameter_count() }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.config.network.out_channels
    }

    /// The last features `[N, H, W, channels]`, and for a spatial head the means of every block's.
    fn encode(
        &self,
        p: &Parameters,
        x: Tensor<4>,
        t: &[f32],
        position: Option<RunPosition>,
    ) -> (Tensor<4>, Vec<Tensor<2>>) {
        let config = &self.config.network;
        let context = Context { embedding: self.trunk.embed(p, config, t, None, &x.device()), position };
        let spatial = matches!(self.head, Head::Spatial(_) | Head::SpatialV2 { .. });
        let mut h = enter(x, config);
        let mut means = Vec::new();
        for block in &self.trunk.input_blocks {
            h = block.forward(p, h, &context);
            means.extend(spatial.then(|| mean_of_positions(h.clone())));
        }
        (self.trunk.middle.forward(p, h, &context).cast(DType::F32), means)
    }

    /// What the linear map of an adaptive head sees, `[N, channels]`; none of another head.
    pub(crate) fn features(&self, p: &Parameters, x: Tensor<4>, t: &[f32]) -> Option<Tensor<2>> {
        let Head::Adaptive { norm, .. } = &self.head else { return None };
        Some(mean_of_positions(norm.forward(p, self.encode(p, x, t, None).0)))
    }

    /// Logits of an adaptive head's [`features`](Self::features).
    pub(crate) fn logits(&self, p: &Parameters, features: Tensor<2>) -> Option<Tensor<2>> {
        let Head::Adaptive { conv, .. } = &self.head else { return None };
        Some(conv.forward(p, features))
    }

    /// Logits `[N, classes]` for `x` `[N, C, H, W]` at times `t` `[N]` as the network sees them.
    ///
    /// # Panics
    /// If the images are of another size than an attention head was made for.
    pub fn forward(&self, p: &Parameters, x: Tensor<4>, t: &[f32], position: Option<RunPosition>) -> Tensor<2> {
        let (h, mut means) = self.encode(p, x, t, position);
        match &self.head {
            Head::Adaptive { norm, conv } => conv.forward(p, mean_of_positions(norm.forward(p, h))),
            Head::Attention { norm, positions, qkv, proj, heads } => {
                let h = norm.forward(p, h);
                let [n, height, width, c] = h.dims();
                let pixels = height * width;
                let h = h.reshape([n, pixels, c]);
                let h = Tensor::cat(vec![h.clone().mean_dim(1), h], 1);
                let positions = p.get(*positions, [c, self.config.bottom_size.pow(2) + 1]).swap_dims(0, 1);
                let h = (h + positions.unsqueeze_dim(0)).reshape([n, 1, pixels + 1, c]);
                let out = ddpm_kernels::attention(qkv.forward(p, h), *heads, HeadOrder::QkvFirst);
                proj.forward(p, out.slice([0..n, 0..1, 0..1, 0..c]).reshape([n, c]))
            }
            Head::Spatial([first, second]) => {
                means.push(mean_of_positions(h));
                second.forward(p, relu(first.forward(p, Tensor::cat(means, 1))))
            }
            Head::SpatialV2 { first, norm, second } => {
                means.push(mean_of_positions(h));
                let hidden = first.forward(p, Tensor::cat(means, 1));
                second.forward(p, norm.forward(p, hidden))
            }
        }
    }
}

/// The mean of every channel in f32: `[N, H, W, C]` to `[N, C]`.
fn mean_of_positions(x: Tensor<4>) -> Tensor<2> {
    let [n, h, w, c] = x.dims();
    x.cast(DType::F32).reshape([n, h * w, c]).mean_dim(1).reshape([n, c])
}
