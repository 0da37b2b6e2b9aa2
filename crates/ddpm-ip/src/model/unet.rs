//! The ADM U-Net (Dhariwal & Nichol, arXiv 2105.05233) with every architecture option of the reference, parameter for parameter.

use super::RunPosition;
use super::embedding::timestep_embedding;
use super::layers::{AttentionBlock, Builder, Context, Conv, Norm, ResBlock, ResBlockConfig, Resize, Scale};
use super::parameters::{Init, Parameters, Spec};
use crate::config::{Heads, NetworkConfig};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Int, Tensor, TensorData};

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
        let device = x.device();
        let embedding = timestep_embedding(t, self.config.model_channels);
        let embedding = Tensor::from_data(TensorData::new(embedding, [t.len(), self.config.model_channels]), &device);
        let mut embedding = self.time_embed[1].forward_rows(p, silu(self.time_embed[0].forward_rows(p, embedding)));
        assert_eq!(labels.is_some(), self.label_emb.is_some(), "labels if and only if the network has classes");
        if let (Some(labels), Some(place)) = (labels, self.label_emb) {
            let shape = [self.config.num_classes.unwrap_or(0), 4 * self.config.model_channels];
            let labels: Vec<i64> = labels.iter().map(|&l| i64::from(l)).collect();
            let n = labels.len();
            let rows = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), &device);
            embedding = embedding + p.get(place, shape).select(0, rows);
        }
        let context = Context { embedding, position };
        let mut h = x.permute([0, 2, 3, 1]).cast(self.config.precision.dtype());
        let mut skips = Vec::with_capacity(self.input_blocks.len());
        for block in &self.input_blocks {
            h = block.forward(p, h, &context);
            skips.push(h.clone());
        }
        h = self.middle.0.forward(p, h, &context);
        h = self.middle.1.forward(p, h);
        h = self.middle.2.forward(p, h, &context);
        for (block, skip) in self.output_blocks.iter().zip(skips.into_iter().rev()) {
            h = block.forward(p, ddpm_kernels::concat(h, skip), &context);
        }
        let h = self.out_norm.forward(p, h);
        self.out_conv.forward(p, h).cast(DType::F32).permute([0, 3, 1, 2])
    }
}
