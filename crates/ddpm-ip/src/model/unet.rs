//! The ADM U-Net (Dhariwal & Nichol, arXiv 2105.05233) with every architecture option of the reference, parameter for parameter.

use super::RunPosition;
use super::embedding::timestep_embedding;
use super::layers::{AttentionBlock, Builder, Context, Conv, Norm, ResBlock, ResBlockConfig, Resize, Scale};
use super::parameters::{Init, Parameters, Spec};
use crate::config::{Heads, NetworkConfig};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use rayon::prelude::*;
use std::ops::Range;

/// The most images of a piece of a batch.
const SHARD_IMAGES: usize = 32;

/// One step of the way down or up: what the reference numbers as one block.
#[derive(Default)]
struct Block {
    conv: Option<Conv>,
    res: Option<ResBlock>,
    attention: Option<AttentionBlock>,
    resize: Option<Resize>,
    /// A residual block that changes the size, after the others.
    res_resize: Option<ResBlock>,
}

impl Block {
    fn forward(&self, p: &Parameters, mut x: Tensor<4>, context: &Context) -> Tensor<4> {
        if let Some(conv) = &self.conv {
            x = conv.forward(p, x);
        }
        if let Some(res) = &self.res {
            x = res.forward(p, x, context);
        }
        if let Some(attention) = &self.attention {
            x = attention.forward(p, x);
        }
        if let Some(resize) = &self.resize {
            x = resize.forward(p, x);
        }
        if let Some(res) = &self.res_resize {
            x = res.forward(p, x, context);
        }
        x
    }
}

/// The network: layers as places in a list of parameters.
pub struct Unet {
    config: NetworkConfig,
    specs: Vec<Spec>,
    time_embed: [Conv; 2],
    label_emb: Option<usize>,
    input_blocks: Vec<Block>,
    middle: (ResBlock, AttentionBlock, ResBlock),
    output_blocks: Vec<Block>,
    out_norm: Norm,
    out_conv: Conv,
}

impl Unet {
    /// Builds the network; its parameters come as [`specs`](Self::specs).
    pub fn new(config: NetworkConfig) -> Self {
        let mut b = Builder::default();
        let embedding = config.model_channels * 4;
        let time_embed = [
            Conv::linear(&mut b, "time_embed.0", config.model_channels, embedding),
            Conv::linear(&mut b, "time_embed.2", embedding, embedding),
        ];
        let label_emb =
            config.num_classes.map(|n| b.parameter("label_emb.weight".into(), &[n, embedding], Init::Normal));
        let res = |from, to, scale| ResBlockConfig {
            from,
            to,
            embedding,
            dropout: config.dropout,
            scale_shift_norm: config.scale_shift_norm,
            scale,
        };
        let attend = |b: &mut Builder, name: &str, channels: usize, heads: Heads| {
            AttentionBlock::new(b, name, channels, heads.count(channels), config.head_order)
        };
        let levels = config.level_channels.len();
        let first = config.level_channels[0];
        let mut channels = first;
        let mut skips = vec![channels];
        let mut input_blocks = vec![Block {
            conv: Some(Conv::new(&mut b, "input_blocks.0.0", config.in_channels, channels, 3)),
            ..Block::default()
        }];
        for (level, &to) in config.level_channels.iter().enumerate() {
            let attends = config.attention_factors.contains(&(1 << level));
            for _ in 0..config.num_res_blocks {
                let name = format!("input_blocks.{}", input_blocks.len());
                let res = ResBlock::new(&mut b, &format!("{name}.0"), res(channels, to, Scale::Keep));
                let attention = attends.then(|| attend(&mut b, &format!("{name}.1"), to, config.heads));
                input_blocks.push(Block { res: Some(res), attention, ..Block::default() });
                channels = to;
                skips.push(channels);
            }
            if level + 1 < levels {
                let name = format!("input_blocks.{}.0", input_blocks.len());
                input_blocks.push(if config.resblock_updown {
                    Block {
                        res_resize: Some(ResBlock::new(&mut b, &name, res(channels, channels, Scale::Down))),
                        ..Block::default()
                    }
                } else {
                    Block {
                        resize: Some(Resize::down(&mut b, &name, channels, config.conv_resample)),
                        ..Block::default()
                    }
                });
                skips.push(channels);
            }
        }
        let middle = (
            ResBlock::new(&mut b, "middle_block.0", res(channels, channels, Scale::Keep)),
            attend(&mut b, "middle_block.1", channels, config.heads),
            ResBlock::new(&mut b, "middle_block.2", res(channels, channels, Scale::Keep)),
        );
        let mut output_blocks = Vec::new();
        for (level, &to) in config.level_channels.iter().enumerate().rev() {
            let attends = config.attention_factors.contains(&(1 << level));
            for i in 0..=config.num_res_blocks {
                let name = format!("output_blocks.{}", output_blocks.len());
                let from = channels + skips.pop().expect("as many skips as output blocks");
                let mut block = Block {
                    res: Some(ResBlock::new(&mut b, &format!("{name}.0"), res(from, to, Scale::Keep))),
                    attention: attends.then(|| attend(&mut b, &format!("{name}.1"), to, config.heads_up)),
                    ..Block::default()
                };
                channels = to;
                if level > 0 && i == config.num_res_blocks {
                    let name = format!("{name}.{}", 1 + usize::from(attends));
                    if config.resblock_updown {
                        block.res_resize = Some(ResBlock::new(&mut b, &name, res(channels, channels, Scale::Up)));
                    } else {
                        block.resize = Some(Resize::up(&mut b, &name, channels, config.conv_resample));
                    }
                }
                output_blocks.push(block);
            }
        }
        let out_norm = Norm::new(&mut b, "out.0", channels, true);
        let out_conv = Conv::zero(&mut b, "out.2", first, config.out_channels);
        Self {
            time_embed,
            label_emb,
            input_blocks,
            middle,
            output_blocks,
            out_norm,
            out_conv,
            specs: b.finish(),
            config,
        }
    }

    /// Its parameters: names, shapes and beginnings, in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// What it was built from.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Number of values over all parameters.
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().map(Spec::len).sum()
    }

    /// Whether a batch is computed in pieces side by side. The kernels of a large network share out their own work better,
    /// and each piece prepares the weights again; in a small one the sharing costs more than the work.
    pub(crate) fn is_split(&self, images: usize) -> bool {
        /// Parameters from which a network is large.
        const LARGE: usize = 4_000_000;
        self.parameter_count() < LARGE && images > SHARD_IMAGES
    }

    /// What `work` makes of the pieces of a batch, in order. The pieces depend on nothing but the network and the batch.
    pub(crate) fn by_shard<R: Send>(&self, images: usize, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
        if !self.is_split(images) {
            return vec![work(0..images)];
        }
        let count = images.div_ceil(SHARD_IMAGES);
        (0..count).into_par_iter().map(|i| work(i * images / count..(i + 1) * images / count)).collect()
    }

    /// The network's output `[N, out, H, W]` for `x` `[N, in, H, W]`, times `t` `[N]` as the network sees them and, for
    /// a class-conditional network, labels `[N]`. `position` says where in a
    /// run a training step is; without it there is no dropout.
    ///
    /// # Panics
    /// If labels are given to a network without classes or missing for one with; callers check user input before.
    pub fn forward(
        &self,
        p: &Parameters,
        x: Tensor<4>,
        t: &[f32],
        labels: Option<&[u32]>,
        position: Option<RunPosition>,
    ) -> Tensor<4> {
        let context = Context { embedding: self.embed(p, t, labels, &x.device()), position };
        self.run(p, x, &context, |_, _| {})
    }

    /// All stages in turn; `each` sees their input and skip.
    fn run(
        &self,
        p: &Parameters,
        x: Tensor<4>,
        context: &Context,
        mut each: impl FnMut(&Tensor<4>, &Option<Tensor<4>>),
    ) -> Tensor<4> {
        let (mut h, mut skips) = (self.enter(x), Vec::new());
        for stage in 0..self.stages() {
            let skip = if self.takes_skip(stage) { skips.pop() } else { None };
            each(&h, &skip);
            h = self.stage(stage, p, h, skip, context);
            if self.gives_skip(stage) {
                skips.push(h.clone());
            }
        }
        h.cast(DType::F32).permute([0, 3, 1, 2])
    }

    /// As [`forward`](Self::forward) on tensors without autodiff, keeping the input of every stage instead of a graph.
    pub(crate) fn forward_kept(
        &self,
        p: &Parameters,
        x: Tensor<4>,
        t: &[f32],
        labels: Option<&[u32]>,
        position: Option<RunPosition>,
    ) -> (Tensor<4>, Kept) {
        let context = Context { embedding: self.embed(p, t, labels, &x.device()), position };
        let mut inputs = Vec::new();
        let output = self.run(p, x, &context, |h, skip| inputs.push((h.clone(), skip.clone())));
        let kept = Kept { inputs, context, t: t.to_vec(), labels: labels.map(<[u32]>::to_vec) };
        (output, kept)
    }

    /// The gradients of the parameters, from that of the output: stage by stage, each computed again first.
    pub(crate) fn backward_kept(&self, p: &Parameters, kept: Kept, grad: Tensor<4>) -> Parameters {
        let Kept { mut inputs, context, t, labels } = kept;
        let device = grad.device();
        let mut gradients: Vec<Option<Tensor<1>>> = vec![None; self.specs.len()];
        // No parameter belongs to two stages.
        let mut collect = |tracked: &Parameters, grads: &mut Gradients| {
            for (gradient, parameter) in gradients.iter_mut().zip(&tracked.0) {
                *gradient = parameter.grad_remove(grads).or(gradient.take());
            }
        };
        let leaf = |x: Tensor<4>| Tensor::<4>::from_inner(x).require_grad();
        // The gradient of the output enters as the weights of a sum.
        let mut grad_h = self.enter(grad);
        let mut grad_embedding = context.embedding.zeros_like();
        let mut grad_skips: Vec<Tensor<4>> = Vec::new();
        for stage in (0..self.stages()).rev() {
            if self.gives_skip(stage) {
                grad_h = grad_h + grad_skips.pop().expect("a gradient for every skip");
            }
            let (h, skip) = inputs.pop().expect("an input for every stage");
            let (h, skip, tracked) = (leaf(h), skip.map(leaf), p.tracked());
            let embedding = Tensor::<2>::from_inner(context.embedding.clone()).require_grad();
            let again = Context { embedding: embedding.clone(), position: context.position };
            let y = self.stage(stage, &tracked, h.clone(), skip.clone(), &again);
            let mut grads = (y * Tensor::from_inner(grad_h)).sum().backward();
            grad_skips.extend(skip.and_then(|skip| skip.grad_remove(&mut grads)));
            if let Some(grad) = embedding.grad_remove(&mut grads) {
                grad_embedding = grad_embedding + grad;
            }
            grad_h = h.grad_remove(&mut grads).expect("every stage depends on its input");
            collect(&tracked, &mut grads);
        }
        let tracked = p.tracked();
        let embedding = self.embed(&tracked, &t, labels.as_deref(), &device.clone().autodiff());
        let mut grads = (embedding * Tensor::from_inner(grad_embedding)).sum().backward();
        collect(&tracked, &mut grads);
        let zeros = |(gradient, spec): (Option<Tensor<1>>, &Spec)| {
            gradient.unwrap_or_else(|| Tensor::zeros([spec.len()], &device))
        };
        Parameters(gradients.into_iter().zip(&self.specs).map(zeros).collect())
    }

    /// SiLU of the embedding of time and class, with which every block begins: `[N, E]`.
    fn embed(&self, p: &Parameters, t: &[f32], labels: Option<&[u32]>, device: &Device) -> Tensor<2> {
        let sines = timestep_embedding(t, self.config.model_channels);
        let sines = Tensor::from_data(TensorData::new(sines, [t.len(), self.config.model_channels]), device);
        let embedding = self.time_embed[1].forward_rows(p, silu(self.time_embed[0].forward_rows(p, sines)));
        assert_eq!(labels.is_some(), self.label_emb.is_some(), "labels if and only if the network has classes");
        let (Some(labels), Some(place)) = (labels, self.label_emb) else { return silu(embedding) };
        let shape = [self.config.num_classes.unwrap_or(0), 4 * self.config.model_channels];
        let labels: Vec<i64> = labels.iter().map(|&l| i64::from(l)).collect();
        let n = labels.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), device);
        silu(embedding + p.get(place, shape).select(0, rows))
    }

    /// `[N, C, H, W]` to channels last and the precision of the activations.
    fn enter(&self, x: Tensor<4>) -> Tensor<4> {
        x.permute([0, 2, 3, 1]).cast(self.config.precision.dtype())
    }

    /// The blocks on the way down, the middle, those on the way up and the last layers.
    fn stages(&self) -> usize {
        self.input_blocks.len() + 1 + self.output_blocks.len() + 1
    }

    /// Whether a stage's output is the skip of another, the last one's of the first.
    fn gives_skip(&self, stage: usize) -> bool {
        stage < self.input_blocks.len()
    }

    fn takes_skip(&self, stage: usize) -> bool {
        (self.input_blocks.len() + 1..self.stages() - 1).contains(&stage)
    }

    fn stage(
        &self,
        stage: usize,
        p: &Parameters,
        h: Tensor<4>,
        skip: Option<Tensor<4>>,
        context: &Context,
    ) -> Tensor<4> {
        if let Some(block) = self.input_blocks.get(stage) {
            return block.forward(p, h, context);
        }
        let Some(up) = stage.checked_sub(self.input_blocks.len() + 1) else {
            let h = self.middle.0.forward(p, h, context);
            return self.middle.2.forward(p, self.middle.1.forward(p, h), context);
        };
        match (self.output_blocks.get(up), skip) {
            (Some(block), Some(skip)) => block.forward(p, ddpm_kernels::concat(h, skip), context),
            _ => self.out_conv.forward(p, self.out_norm.forward(p, h)),
        }
    }
}

/// What [`Unet::forward_kept`] keeps for [`Unet::backward_kept`].
pub(crate) struct Kept {
    /// Input and skip of every stage.
    inputs: Vec<(Tensor<4>, Option<Tensor<4>>)>,
    context: Context,
    t: Vec<f32>,
    labels: Option<Vec<u32>>,
}
