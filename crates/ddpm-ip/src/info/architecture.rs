//! Reading an architecture off names and shapes.

use crate::checkpoint::TensorInfo;
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::{Display, Formatter};

/// What the tensors of an ADM U-Net tell of its flags. Image size, heads, attention order, dropout and everything of
/// the diffusion process leave no trace in them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Architecture {
    /// `--in-channels`.
    pub in_channels: usize,
    /// `--num-channels`.
    pub num_channels: usize,
    /// `--num-res-blocks`.
    pub num_res_blocks: usize,
    /// `--channel-mult`.
    pub channel_mult: Vec<f64>,
    /// Downsampling factors with attention: `--attention-resolutions` are the image size divided by these.
    pub attention_factors: Vec<usize>,
    /// `--num-classes`, for a class-conditional network.
    pub num_classes: Option<usize>,
    /// Whether the output has room for a learned variance.
    pub learn_sigma: bool,
    /// `--use-scale-shift-norm`.
    pub use_scale_shift_norm: bool,
    /// `--resblock-updown`; unknown for a network of one level.
    pub resblock_updown: Option<bool>,
    /// `--conv-resample`; unknown where residual blocks resample.
    pub conv_resample: Option<bool>,
}

/// The architecture, if the tensors are those of an ADM U-Net.
pub fn infer(tensors: &[TensorInfo]) -> Option<Architecture> {
    let shapes: HashMap<&str, &[usize]> = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let dim = |name: &str, i: usize| shapes.get(name).and_then(|s| s.get(i).copied());
    let num_channels = dim("time_embed.0.weight", 1).filter(|&n| n > 0)?;
    let in_channels = dim("input_blocks.0.0.weight", 1)?;
    let outputs = (0..tensors.len())
        .take_while(|i| shapes.contains_key(format!("output_blocks.{i}.0.in_layers.0.weight").as_str()))
        .count();
    // The last block of every level but the outermost ends in a change of size.
    let part = |i: usize, layer: &str| {
        [1, 2].iter().any(|j| shapes.contains_key(format!("output_blocks.{i}.{j}.{layer}.weight").as_str()))
    };
    let by_res = (0..outputs).filter(|&i| part(i, "in_layers.0")).count();
    let by_conv = (0..outputs).filter(|&i| part(i, "conv")).count();
    let (ups, resblock_updown, conv_resample) = match (by_res, by_conv) {
        (0, 0) => {
            // Plain resampling without parameters: blocks missing from the numbering of the way down.
            let gaps = (1..outputs)
                .filter(|i| !tensors.iter().any(|t| t.name.starts_with(&format!("input_blocks.{i}."))))
                .count();
            (gaps, (gaps > 0).then_some(false), (gaps > 0).then_some(false))
        }
        (0, n) => (n, Some(false), Some(true)),
        (n, _) => (n, Some(true), None),
    };
    let levels = ups + 1;
    let num_res_blocks = (outputs / levels).checked_sub(1)?;
    let first_of = |level: usize| format!("input_blocks.{}", 1 + level * (num_res_blocks + 1));
    let channels: Vec<usize> =
        (0..levels).map(|l| dim(&format!("{}.0.out_layers.0.weight", first_of(l)), 0)).collect::<Option<_>>()?;
    let out = dim("out.2.weight", 0)?;
    Some(Architecture {
        in_channels,
        num_channels,
        num_res_blocks,
        channel_mult: channels.iter().map(|&c| c as f64 / num_channels as f64).collect(),
        attention_factors: (0..levels)
            .filter(|&l| shapes.contains_key(format!("{}.1.qkv.weight", first_of(l)).as_str()))
            .map(|l| 1 << l)
            .collect(),
        num_classes: dim("label_emb.weight", 0),
        learn_sigma: out == 2 * in_channels,
        use_scale_shift_norm: dim(&format!("{}.0.emb_layers.1.weight", first_of(0)), 0)? == 2 * channels[0],
        resblock_updown,
        conv_resample,
    })
}

impl Display for Architecture {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let list = |v: &[f64]| v.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let known = |v: Option<bool>| v.map_or("leaves no trace".into(), |v| v.to_string());
        writeln!(f, "  in_channels           {}", self.in_channels)?;
        writeln!(f, "  num_channels          {}", self.num_channels)?;
        writeln!(f, "  num_res_blocks        {}", self.num_res_blocks)?;
        writeln!(f, "  channel_mult          {}", list(&self.channel_mult))?;
        writeln!(f, "  attention at factors  {:?} of the image size", self.attention_factors)?;
        writeln!(f, "  classes               {}", self.num_classes.map_or("none".into(), |n| n.to_string()))?;
        writeln!(f, "  learned variance      {}", self.learn_sigma)?;
        writeln!(f, "  use_scale_shift_norm  {}", self.use_scale_shift_norm)?;
        writeln!(f, "  resblock_updown       {}", known(self.resblock_updown))?;
        writeln!(f, "  conv_resample         {}", known(self.conv_resample))?;
        write!(f, "  Not to be seen: image size, attention heads and their order, dropout, the diffusion process.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, NetworkConfig, PRESETS};
    use crate::model::Unet;

    fn tensors(config: &Config) -> Vec<TensorInfo> {
        let network = Unet::new(NetworkConfig::new(&config.model, config.diffusion.variance).unwrap());
        let info =
            |s: &crate::model::Spec| TensorInfo { name: s.name.clone(), shape: s.shape.clone(), dtype: "F32".into() };
        network.specs().iter().map(info).collect()
    }

    #[test]
    fn presets_are_read_back() {
        for preset in PRESETS {
            let config = preset.config();
            let a = infer(&tensors(&config)).unwrap();
            let m = &config.model;
            assert_eq!(
                (a.in_channels, a.num_channels, a.num_res_blocks),
                (m.in_channels, m.num_channels, m.num_res_blocks)
            );
            assert_eq!(a.learn_sigma, config.diffusion.variance.is_learned());
            assert_eq!(a.resblock_updown, Some(m.resblock_updown));
            let resolutions: Vec<_> = a.attention_factors.iter().map(|f| m.image_size / f).collect();
            assert_eq!(resolutions, m.attention_resolutions, "{}", preset.name);
        }
    }

    #[test]
    fn plain_resampling_is_told_apart() {
        let mut config = PRESETS[0].config();
        config.model.resblock_updown = false;
        config.model.channel_mult = vec![1.0, 2.0];
        for conv_resample in [true, false] {
            config.model.conv_resample = conv_resample;
            let a = infer(&tensors(&config)).unwrap();
            assert_eq!((a.resblock_updown, a.conv_resample), (Some(false), Some(conv_resample)));
            assert_eq!(a.channel_mult, [1.0, 2.0]);
        }
        assert_eq!(infer(&[]), None);
    }
}
