//! The network of ermongroup/ddim (Ho et al. 2020, appendix B; Song et al. 2020): the U-Net's blocks under other names and
//! with other details, parameter for parameter and in the order in which that code registers them.

use super::layers::{AttentionBlock, Builder, Conv, Norm, ResBlock, Resize, Scale};
use super::trunk::{Block, Middle, Trunk, WayUp, res_block};
use super::{Family, NetworkConfig};

/// One level's layers, before they are put in the order of computation.
struct Level {
    res: Vec<ResBlock>,
    attention: Vec<AttentionBlock>,
    resize: Option<Resize>,
}

impl Level {
    /// `widths` are the channels before and after each residual block.
    fn new(b: &mut Builder, config: &NetworkConfig, name: &str, level: usize, widths: &[(usize, usize)]) -> Self {
        let block = |b: &mut Builder, (i, &(from, to)): (usize, &(usize, usize))| {
            ResBlock::new(b, &format!("{name}.block.{i}"), res_block(config, from, to, Scale::Keep))
        };
        let res = widths.iter().enumerate().map(|each| block(b, each)).collect();
        let attends = widths.iter().filter(|_| config.attends(level)).enumerate();
        let attention = attends
            .map(|(i, &(_, channels))| AttentionBlock::single_headed(b, &format!("{name}.attn.{i}"), channels))
            .collect();
        Self { res, attention, resize: None }
    }

    /// A block for each residual block, with its attention.
    fn into_blocks(self) -> (Vec<Block>, Option<Resize>) {
        let mut attention = self.attention.into_iter();
        let block = |res| Block { res: Some(res), attention: attention.next(), ..Block::default() };
        (self.res.into_iter().map(block).collect(), self.resize)
    }
}

/// The whole network.
pub(super) fn build(b: &mut Builder, config: &NetworkConfig) -> (Trunk, WayUp) {
    let (first, levels) = (config.model_channels, config.level_channels.len());
    let time_embed =
        [Conv::linear(b, "temb.dense.0", first, 4 * first), Conv::linear(b, "temb.dense.1", 4 * first, 4 * first)];
    let mut input_blocks =
        vec![Block { conv: Some(Conv::new(b, "conv_in", config.input_channels(), first, 3)), ..Block::default() }];
    let mut widths = vec![first];
    let before = |level: usize| if level == 0 { first } else { config.level_channels[level - 1] };
    for (l, &channels) in config.level_channels.iter().enumerate() {
        let name = format!("down.{l}");
        let from = |i: usize| if i == 0 { before(l) } else { channels };
        let of_blocks: Vec<_> = (0..config.num_res_blocks).map(|i| (from(i), channels)).collect();
        let mut level = Level::new(b, config, &name, l, &of_blocks);
        if l + 1 < levels {
            level.resize =
                Some(Resize::down_uncentred(b, &format!("{name}.downsample"), channels, config.conv_resample));
        }
        let (blocks, resize) = level.into_blocks();
        widths.extend(blocks.iter().map(|_| channels));
        input_blocks.extend(blocks);
        if let Some(resize) = resize {
            input_blocks.push(Block { resize: Some(resize), ..Block::default() });
            widths.push(channels);
        }
    }
    let last = config.level_channels[levels - 1];
    let middle = Middle(
        ResBlock::new(b, "mid.block_1", res_block(config, last, last, Scale::Keep)),
        AttentionBlock::single_headed(b, "mid.attn_1", last),
        ResBlock::new(b, "mid.block_2", res_block(config, last, last, Scale::Keep)),
    );
    let mut up = Vec::new();
    for (l, &channels) in config.level_channels.iter().enumerate() {
        let name = format!("up.{l}");
        let below = config.level_channels.get(l + 1).copied().unwrap_or(last);
        let from = |i: usize| {
            let skip = if i == config.num_res_blocks { before(l) } else { channels };
            skip + if i == 0 { below } else { channels }
        };
        let of_blocks: Vec<_> = (0..=config.num_res_blocks).map(|i| (from(i), channels)).collect();
        let mut level = Level::new(b, config, &name, l, &of_blocks);
        level.resize = (l > 0).then(|| Resize::up(b, &format!("{name}.upsample"), channels, config.conv_resample));
        up.push(level);
    }
    let mut output_blocks = Vec::new();
    for level in up.into_iter().rev() {
        let (mut blocks, resize) = level.into_blocks();
        if let Some(block) = blocks.last_mut() {
            block.resize = resize;
        }
        output_blocks.extend(blocks);
    }
    let outermost = config.level_channels[0];
    let way_up = WayUp {
        output_blocks,
        out_norm: Norm::new(b, "norm_out", outermost, true, Family::Ddim),
        out_conv: Conv::new(b, "conv_out", outermost, config.out_channels, 3),
    };
    (Trunk { time_embed, label_emb: None, input_blocks, widths, middle }, way_up)
}
