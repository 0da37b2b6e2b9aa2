//! The U-Nets, with every architecture option of the reference, parameter for parameter: ADM's (Dhariwal & Nichol, arXiv
//! 2105.05233), its super-resolution form, and the DDIM network.

use super::layers::{Builder, Context, Conv, Norm, ResBlock, Resize, Scale};
use super::parameters::{Parameters, Spec};
use super::trunk::{Block, Trunk, attention, enter, res_block};
use super::{Condition, RunPosition, Shards, ddim};
use crate::config::{Layout, NetworkConfig};
use burn::tensor::{DType, Gradients, Tensor};

/// The second half of a U-Net.
pub(super) struct WayUp {
    pub(super) output_blocks: Vec<Block>,
    pub(super) out_norm: Norm,
    pub(super) out_conv: Conv,
}

impl WayUp {
    /// The ADM networks'.
    fn adm(b: &mut Builder, config: &NetworkConfig, mut skips: Vec<usize>) -> Self {
        let first = config.level_channels[0];
        let mut channels = skips.last().copied().unwrap_or(first);
        let mut output_blocks = Vec::new();
        for (level, &to) in config.level_channels.iter().enumerate().rev() {
            let attends = config.attends(level);
            for i in 0..=config.num_res_blocks {
                let name = format!("output_blocks.{}", output_blocks.len());
                let from = channels + skips.pop().expect("as many skips as output blocks");
                let mut block = Block {
                    res: Some(ResBlock::new(b, &format!("{name}.0"), res_block(config, from, to, Scale::Keep))),
                    attention: attends.then(|| attention(b, config, &format!("{name}.1"), to, config.heads_up)),
                    ..Block::default()
                };
                channels = to;
                if level > 0 && i == config.num_res_blocks {
                    let name = format!("{name}.{}", 1 + usize::from(attends));
                    if config.resblock_updown {
                        let res = res_block(config, channels, channels, Scale::Up);
                        block.res_resize = Some(ResBlock::new(b, &name, res));
                    } else {
                        block.resize = Some(Resize::up(b, &name, channels, config.conv_resample));
                    }
                }
                output_blocks.push(block);
            }
        }
        let out_norm = Norm::new(b, "out.0", channels, true, Layout::Adm);
        let out_conv = Conv::zero(b, "out.2", first, config.out_channels, 3);
        Self { output_blocks, out_norm, out_conv }
    }
}

/// A network that predicts noise: layers as places in a list of parameters.
pub struct Unet {
    config: NetworkConfig,
    specs: Vec<Spec>,
    trunk: Trunk,
    way_up: WayUp,
}

impl Unet {
    /// Builds the network; its parameters come as [`specs`](Self::specs).
    pub fn new(config: NetworkConfig) -> Self {
        let mut b = Builder::default();
        let (trunk, way_up) = match config.layout {
            Layout::Adm => {
                let trunk = Trunk::adm(&mut b, &config);
                let way_up = WayUp::adm(&mut b, &config, trunk.widths.clone());
                (trunk, way_up)
            }
            Layout::Ddim => ddim::build(&mut b, &config),
        };
        Self { trunk, way_up, specs: b.finish(), config }
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

    /// How its batches are cut into pieces.
    pub(crate) fn shards(&self) -> Shards {
        Shards { parameters: self.parameter_count() }
    }

    /// The network's output `[N, out, H, W]` for `x` `[N, in, H, W]`, times `t` `[N]` as the network sees them and what
    /// else it is given. `position` says where in a run a training step is; without it there is no dropout.
    ///
    /// # Panics
    /// If a condition is given to a network without it or missing for one with; callers check user input before.
    pub fn forward(
        &self,
        p: &Parameters,
        x: Tensor<4>,
        t: &[f32],
        condition: Condition,
        position: Option<RunPosition>,
    ) -> Tensor<4> {
        let embedding = self.trunk.embed(p, &self.config, t, condition.labels, &x.device());
        self.run(p, self.join(x, condition.low_res), &Context { embedding, position }, |_, _| {})
    }

    /// What enters the first layer: `x`, and the enlarged small image of a super-resolution network.
    fn join(&self, x: Tensor<4>, low_res: Option<Tensor<4>>) -> Tensor<4> {
        assert_eq!(low_res.is_some(), self.config.low_res, "small images if and only if the network enlarges them");
        match low_res {
            Some(low_res) => Tensor::cat(vec![x, low_res], 1),
            None => x,
        }
    }

    /// All stages in turn; `each` sees their input and skip.
    fn run(
        &self,
        p: &Parameters,
        x: Tensor<4>,
        context: &Context,
        mut each: impl FnMut(&Tensor<4>, &Option<Tensor<4>>),
    ) -> Tensor<4> {
        let (mut h, mut skips) = (enter(x, &self.config), Vec::new());
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
        condition: Condition,
        position: Option<RunPosition>,
    ) -> (Tensor<4>, Kept) {
        let Condition { labels, low_res } = condition;
        let embedding = self.trunk.embed(p, &self.config, t, labels, &x.device());
        let (context, mut inputs) = (Context { embedding, position }, Vec::new());
        let x = self.join(x, low_res);
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
        let mut grad_h = enter(grad, &self.config);
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
        let embedding = self.trunk.embed(&tracked, &self.config, &t, labels.as_deref(), &device.clone().autodiff());
        let mut grads = (embedding * Tensor::from_inner(grad_embedding)).sum().backward();
        collect(&tracked, &mut grads);
        let zeros = |(gradient, spec): (Option<Tensor<1>>, &Spec)| {
            gradient.unwrap_or_else(|| Tensor::zeros([spec.len()], &device))
        };
        Parameters(gradients.into_iter().zip(&self.specs).map(zeros).collect())
    }

    /// The blocks on the way down, the middle, those on the way up and the last layers.
    fn stages(&self) -> usize {
        self.trunk.input_blocks.len() + 1 + self.way_up.output_blocks.len() + 1
    }

    /// Whether a stage's output is the skip of another, the last one's of the first.
    fn gives_skip(&self, stage: usize) -> bool {
        stage < self.trunk.input_blocks.len()
    }

    fn takes_skip(&self, stage: usize) -> bool {
        (self.trunk.input_blocks.len() + 1..self.stages() - 1).contains(&stage)
    }

    fn stage(
        &self,
        stage: usize,
        p: &Parameters,
        h: Tensor<4>,
        skip: Option<Tensor<4>>,
        context: &Context,
    ) -> Tensor<4> {
        if let Some(block) = self.trunk.input_blocks.get(stage) {
            return block.forward(p, h, context);
        }
        let Some(up) = stage.checked_sub(self.trunk.input_blocks.len() + 1) else {
            return self.trunk.middle.forward(p, h, context);
        };
        match (self.way_up.output_blocks.get(up), skip) {
            (Some(block), Some(skip)) => block.forward(p, ddpm_kernels::concat(h, skip), context),
            _ => self.way_up.out_conv.forward(p, self.way_up.out_norm.forward(p, h)),
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
