//! What the networks share: the embedding of time and class, the way down, the middle, and what a way up consists of.

use super::layers::{AttentionBlock, Builder, Context, Conv, Norm, ResBlock, ResBlockConfig, Resize, Scale};
use super::{Heads, NetworkConfig};
use crate::graph::{Graph, Value};
use crate::op::Op;
use crate::state::Init;

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
    pub(crate) fn record(&self, graph: &mut Graph, mut x: Value, context: Context) -> Value {
        if let Some(conv) = &self.conv {
            x = conv.record(graph, x);
        }
        if let Some(res) = &self.res {
            x = res.record(graph, x, context);
        }
        if let Some(attention) = &self.attention {
            x = attention.record(graph, x);
        }
        if let Some(resize) = &self.resize {
            x = resize.record(graph, x);
        }
        if let Some(res) = &self.res_resize {
            x = res.record(graph, x, context);
        }
        x
    }
}

/// The blocks at the smallest size.
pub(crate) struct Middle(pub(crate) ResBlock, pub(crate) AttentionBlock, pub(crate) ResBlock);

impl Middle {
    pub(crate) fn record(&self, graph: &mut Graph, h: Value, context: Context) -> Value {
        let h = self.0.record(graph, h, context);
        let h = self.1.record(graph, h);
        self.2.record(graph, h, context)
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

/// The second half of a U-Net.
pub(crate) struct WayUp {
    pub(crate) output_blocks: Vec<Block>,
    pub(crate) out_norm: Norm,
    pub(crate) out_conv: Conv,
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
        family: config.family,
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

    /// SiLU of the embedding of time and class, with which every block begins: `[N, E]` from the times' sinusoids.
    pub(crate) fn embed(&self, graph: &mut Graph, times: Value) -> Value {
        let hidden = self.time_embed[0].record(graph, times);
        let hidden = graph.add(Op::Silu, &[hidden]);
        let mut embedding = self.time_embed[1].record(graph, hidden);
        if let Some(place) = self.label_emb {
            embedding = graph.add(Op::Embed(place), &[embedding]);
        }
        graph.add(Op::Silu, &[embedding])
    }
}
