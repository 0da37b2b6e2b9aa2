//! What the networks share: the embedding of time and class, the way down and the middle.

use super::embedding::timestep_embedding;
use super::layers::{AttentionBlock, Builder, Context, Conv, ResBlock, ResBlockConfig, Resize, Scale};
use super::parameters::{Init, Parameters};
use crate::config::{Heads, NetworkConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// One step of the way down or up: what the reference numbers as one block.
#[derive(Default)]
pub(crate) struct Block {
    pub(crate) conv: Option<Conv>,
    pub(crate) res: Option<ResBlock>,
    pub(crate) attention: Option<AttentionBlock>,
    pub(crate) resize: Option<Resize>,
    /// A residual block that changes the size, after the others.
    pub(crate) res_resize: Option<ResBlock>,
}

impl Block {
    pub(crate) fn forward(&self, p: &Parameters, mut x: Tensor<4>, context: &Context) -> Tensor<4> {
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

/// The blocks at the smallest size.
pub(crate) struct Middle(pub(crate) ResBlock, pub(crate) AttentionBlock, pub(crate) ResBlock);

impl Middle {
    pub(crate) fn forward(&self, p: &Parameters, h: Tensor<4>, context: &Context) -> Tensor<4> {
        let h = self.0.forward(p, h, context);
        self.2.forward(p, self.1.forward(p, h), context)
    }
}

/// The first half of a network.
pub(crate) struct Trunk {
    pub(crate) time_embed: [Conv; 2],
    /// Place of the embedding of classes.
    pub(crate) label_emb: Option<usize>,
    pub(crate) input_blocks: Vec<Block>,
    /// Channels that each of them puts out; the middle puts out as many as the last.
    pub(crate) widths: Vec<usize>,
    pub(crate) middle: Middle,
}

/// A residual block of a network.
pub(super) fn res_block(config: &NetworkConfig, from: usize, to: usize, scale: Scale) -> ResBlockConfig {
    ResBlockConfig {
        from,
        to,
        embedding: 4 * config.model_channels,
        dropout: config.dropout,
        scale_shift_norm: config.scale_shift_norm,
        scale,
        layout: config.layout,
    }
}

/// An attention layer of an ADM network.
pub(super) fn attention(
    b: &mut Builder,
    config: &NetworkConfig,
    name: &str,
    channels: usize,
    heads: Heads,
) -> AttentionBlock {
    AttentionBlock::new(b, name, channels, heads.count(channels), config.head_order)
}

impl Trunk {
    /// The ADM networks'.
    pub(crate) fn adm(b: &mut Builder, config: &NetworkConfig) -> Self {
        let embedding = config.model_channels * 4;
        let time_embed = [
            Conv::linear(b, "time_embed.0", config.model_channels, embedding),
            Conv::linear(b, "time_embed.2", embedding, embedding),
        ];
        let label_emb =
            config.num_classes.map(|n| b.parameter("label_emb.weight".into(), &[n, embedding], Init::Normal(1.0)));
        let levels = config.level_channels.len();
        let mut channels = config.level_channels[0];
        let mut widths = vec![channels];
        let mut input_blocks = vec![Block {
            conv: Some(Conv::new(b, "input_blocks.0.0", config.input_channels(), channels, 3)),
            ..Block::default()
        }];
        for (level, &to) in config.level_channels.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                let name = format!("input_blocks.{}", input_blocks.len());
                let res = ResBlock::new(b, &format!("{name}.0"), res_block(config, channels, to, Scale::Keep));
                let attention =
                    config.attends(level).then(|| attention(b, config, &format!("{name}.1"), to, config.heads));
                input_blocks.push(Block { res: Some(res), attention, ..Block::default() });
                channels = to;
                widths.push(channels);
            }
            if level + 1 < levels {
                let name = format!("input_blocks.{}.0", input_blocks.len());
                input_blocks.push(if config.resblock_updown {
                    let res = ResBlock::new(b, &name, res_block(config, channels, channels, Scale::Down));
                    Block { res_resize: Some(res), ..Block::default() }
                } else {
                    let resize = Resize::down(b, &name, channels, config.conv_resample);
                    Block { resize: Some(resize), ..Block::default() }
                });
                widths.push(channels);
            }
        }
        let middle = Middle(
            ResBlock::new(b, "middle_block.0", res_block(config, channels, channels, Scale::Keep)),
            attention(b, config, "middle_block.1", channels, config.heads),
            ResBlock::new(b, "middle_block.2", res_block(config, channels, channels, Scale::Keep)),
        );
        Self { time_embed, label_emb, input_blocks, widths, middle }
    }

    /// SiLU of the embedding of time and class, with which every block begins: `[N, E]`.
    pub(crate) fn embed(
        &self,
        p: &Parameters,
        config: &NetworkConfig,
        t: &[f32],
        labels: Option<&[u32]>,
        device: &Device,
    ) -> Tensor<2> {
        let sines = timestep_embedding(t, config.model_channels, config.layout);
        let sines = Tensor::from_data(TensorData::new(sines, [t.len(), config.model_channels]), device);
        let embedding = self.time_embed[1].forward(p, silu(self.time_embed[0].forward(p, sines)));
        assert_eq!(labels.is_some(), self.label_emb.is_some(), "labels if and only if the network has classes");
        let (Some(labels), Some(place)) = (labels, self.label_emb) else { return silu(embedding) };
        let shape = [config.num_classes.unwrap_or(0), 4 * config.model_channels];
        let labels: Vec<i64> = labels.iter().map(|&l| i64::from(l)).collect();
        let n = labels.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), device);
        silu(embedding + p.get(place, shape).select(0, rows))
    }
}

/// `[N, C, H, W]` to channels last and the precision of the activations.
pub(super) fn enter(x: Tensor<4>, config: &NetworkConfig) -> Tensor<4> {
    x.permute([0, 2, 3, 1]).cast(config.precision.dtype())
}
