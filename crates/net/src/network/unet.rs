//! The U-Nets, with every architecture option of the reference, parameter for parameter: ADM's (Dhariwal & Nichol, arXiv
//! 2105.05233), its super-resolution form, and the DDIM network.

use super::layers::{Builder, Context, Conv, Norm, ResBlock, Resize, Scale};
use super::trunk::{Block, Trunk, WayUp, attention, res_block};
use super::{Family, Network, NetworkConfig, Recorded, ddim, inputs};
use crate::graph::Graph;
use crate::op::Op;
use crate::state::Layout;
use std::sync::Arc;

/// The ADM networks' second half.
fn adm_way_up(b: &mut Builder, config: &NetworkConfig, mut skips: Vec<usize>) -> WayUp {
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
    let out_norm = Norm::new(b, "out.0", channels, true, Family::Adm);
    let out_conv = Conv::zero(b, "out.2", first, config.out_channels, 3);
    WayUp { output_blocks, out_norm, out_conv }
}

/// A network that predicts noise: layers as places in a list of parameters.
pub struct Unet {
    config: NetworkConfig,
    layout: Arc<Layout>,
    trunk: Trunk,
    way_up: WayUp,
}

impl Unet {
    /// Builds the network.
    pub fn new(config: NetworkConfig) -> Self {
        let mut b = Builder::default();
        let (trunk, way_up) = match config.family {
            Family::Adm => {
                let trunk = Trunk::adm(&mut b, &config);
                let way_up = adm_way_up(&mut b, &config, trunk.widths.clone());
                (trunk, way_up)
            }
            Family::Ddim => ddim::build(&mut b, &config),
        };
        Self { trunk, way_up, layout: Arc::new(b.finish()), config }
    }
}

impl Network for Unet {
    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The output are planes `[N, out_channels, H, W]`.
    fn record(&self, graph: &mut Graph, n: usize, size: [usize; 2], training: bool) -> Recorded {
        let (images, low_res, times) = inputs(graph, &self.config, n, size);
        let context = Context { embedding: self.trunk.embed(graph, times), training };
        let planes: Vec<_> = [images].into_iter().chain(low_res).collect();
        let mut h = graph.add(Op::Enter(self.config.precision.kept()), &planes);
        let mut skips = Vec::new();
        for block in &self.trunk.input_blocks {
            graph.stage();
            h = block.record(graph, h, context);
            skips.push(h);
        }
        graph.stage();
        h = self.trunk.middle.record(graph, h, context);
        for block in &self.way_up.output_blocks {
            graph.stage();
            let skip = skips.pop().expect("a skip for each block on the way up");
            h = graph.add(Op::Concat, &[h, skip]);
            h = block.record(graph, h, context);
        }
        graph.stage();
        h = self.way_up.out_norm.record(graph, h);
        h = self.way_up.out_conv.record(graph, h);
        let output = graph.add(Op::Leave(self.config.out_channels), &[h]);
        Recorded { images, low_res, times, output }
    }
}
