//! The noised classifier: the first half of an ADM U-Net and a head that pools (Dhariwal & Nichol, arXiv 2105.05233,
//! section 4.1), with all four heads of the reference, parameter for parameter.

use super::layers::{Builder, Context, Conv, Norm};
use super::trunk::Trunk;
use super::{ClassifierNetwork, Family, Network, NetworkConfig, Pool, Recorded, inputs};
use crate::graph::{Graph, Value};
use crate::kind::Precision;
use crate::op::Op;
use crate::state::{Init, Layout};
use ddpm_kernels::HeadOrder;
use std::sync::Arc;

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
    layout: Arc<Layout>,
    trunk: Trunk,
    head: Head,
}

impl Classifier {
    /// Builds the network.
    pub fn new(config: ClassifierNetwork) -> Self {
        let mut b = Builder::default();
        let trunk = Trunk::adm(&mut b, &config.network);
        let classes = config.network.out_channels;
        let channels = trunk.widths.last().copied().unwrap_or(0);
        let features = trunk.widths.iter().sum::<usize>() + channels;
        let head = match config.pool {
            Pool::Adaptive => Head::Adaptive {
                norm: Norm::new(&mut b, "out.0", channels, true, Family::Adm),
                conv: Conv::zero(&mut b, "out.3", channels, classes, 1),
            },
            Pool::Attention => {
                let norm = Norm::new(&mut b, "out.0", channels, true, Family::Adm);
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
                norm: Norm::new(&mut b, "out.1", HIDDEN, true, Family::Adm),
                second: Conv::linear(&mut b, "out.3", HIDDEN, classes),
            },
        };
        Self { trunk, head, layout: Arc::new(b.finish()), config }
    }

    /// What it was built from.
    pub fn network(&self) -> &ClassifierNetwork {
        &self.config
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.config.network.out_channels
    }

    /// Where the linear map of an adaptive head lies, its bias after it; none of another head.
    pub fn last_layer(&self) -> Option<usize> {
        match &self.head {
            Head::Adaptive { conv, .. } => Some(conv.place()),
            _ => None,
        }
    }

    /// Records it up to what the linear map of an adaptive head sees, `[N, channels]`.
    ///
    /// # Panics
    /// If it has another head.
    pub fn record_features(&self, graph: &mut Graph, n: usize, size: [usize; 2]) -> Recorded {
        let (recorded, h, _) = self.encode(graph, n, size, false);
        let Head::Adaptive { norm, .. } = &self.head else { panic!("features of an adaptive head alone") };
        let h = norm.record(graph, h);
        Recorded { output: mean(graph, h), ..recorded }
    }

    /// The last features `[N, H, W, channels]` in f32, and for a spatial head the means of every block's.
    fn encode(&self, graph: &mut Graph, n: usize, size: [usize; 2], training: bool) -> (Recorded, Value, Vec<Value>) {
        let config = &self.config.network;
        let (images, low_res, times) = inputs(graph, config, n, size);
        let context = Context { embedding: self.trunk.embed(graph, times), training };
        let spatial = matches!(self.head, Head::Spatial(_) | Head::SpatialV2 { .. });
        let mut h = graph.add(Op::Enter(config.precision.kept()), &[images]);
        let mut means = Vec::new();
        for block in &self.trunk.input_blocks {
            graph.stage();
            h = block.record(graph, h, context);
            means.extend(spatial.then(|| mean(graph, h)));
        }
        graph.stage();
        h = self.trunk.middle.record(graph, h, context);
        if config.precision.kept() != Precision::F32 {
            h = graph.add(Op::Cast(Precision::F32), &[h]);
        }
        (Recorded { images, low_res, times, output: h }, h, means)
    }
}

impl Network for Classifier {
    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn config(&self) -> &NetworkConfig {
        &self.config.network
    }

    /// The output are logits `[N, classes]`.
    ///
    /// # Panics
    /// If the images are of another size than an attention head was made for.
    fn record(&self, graph: &mut Graph, n: usize, size: [usize; 2], training: bool) -> Recorded {
        let (recorded, h, mut means) = self.encode(graph, n, size, training);
        let output = match &self.head {
            Head::Adaptive { norm, conv } => {
                let h = norm.record(graph, h);
                let h = mean(graph, h);
                conv.record(graph, h)
            }
            Head::Attention { norm, positions, qkv, proj, heads } => {
                let h = norm.record(graph, h);
                let tokens = graph.add(Op::Tokens(*positions), &[h]);
                let qkv = qkv.record(graph, tokens);
                let out = graph.add(Op::Attention(*heads, HeadOrder::QkvFirst), &[qkv]);
                let first = graph.add(Op::FirstToken, &[out]);
                proj.record(graph, first)
            }
            Head::Spatial([first, second]) => {
                means.push(mean(graph, h));
                let h = graph.add(Op::Concat, &means);
                let h = first.record(graph, h);
                let h = graph.add(Op::Relu, &[h]);
                second.record(graph, h)
            }
            Head::SpatialV2 { first, norm, second } => {
                means.push(mean(graph, h));
                let h = graph.add(Op::Concat, &means);
                let h = first.record(graph, h);
                let h = norm.record(graph, h);
                second.record(graph, h)
            }
        };
        Recorded { output, ..recorded }
    }
}

/// The mean of every channel in f32: `[N, C]`.
fn mean(graph: &mut Graph, x: Value) -> Value {
    let scale = 1.0 / graph.shape(x).pixels() as f32;
    graph.add(Op::SumPixels(scale), &[x])
}
