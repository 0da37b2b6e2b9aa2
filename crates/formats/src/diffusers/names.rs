//! The names of parameters.

use super::{CONFIG, Reference, Unet};
use crate::{Error, Result};
use std::path::Path;

/// A reference's parameter, and the tensors of a `UNet2DModel` that are its rows, in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The reference's name.
    pub reference: String,
    /// Those of diffusers: one, or queries, keys and values.
    pub own: Vec<String>,
    /// Dimensions of 1 that the reference's shape has at its end beyond theirs.
    pub ones: usize,
}

impl Unet {
    /// Its parameters by both names.
    pub fn names(&self) -> Vec<Renamed> {
        let mut names = Names { reference: self.reference, list: Vec::new() };
        let (n, levels) = (self.res_blocks, self.level_channels.len());
        let is_ddim = self.reference == Reference::Ddim;
        let either = |ddim: &str, adm: &str| if is_ddim { ddim.to_string() } else { adm.to_string() };
        names.layer("conv_in", &either("conv_in", "input_blocks.0.0"));
        names.layer("time_embedding.linear_1", &either("temb.dense.0", "time_embed.0"));
        names.layer("time_embedding.linear_2", &either("temb.dense.1", "time_embed.2"));
        if self.classes.is_some() {
            names.tensor("class_embedding.weight", "label_emb.weight");
        }
        let mut channels = self.level_channels[0];
        let mut widths = vec![channels];
        for (l, &to) in self.level_channels.iter().enumerate() {
            for j in 0..n {
                let block = widths.len();
                names.res(
                    &format!("down_blocks.{l}.resnets.{j}"),
                    &either(&format!("down.{l}.block.{j}"), &format!("input_blocks.{block}.0")),
                    channels != to,
                );
                if self.attention[l] {
                    names.attention(
                        &format!("down_blocks.{l}.attentions.{j}"),
                        &either(&format!("down.{l}.attn.{j}"), &format!("input_blocks.{block}.1")),
                    );
                }
                channels = to;
                widths.push(channels);
            }
            if l + 1 < levels {
                let (own, block) = (format!("down_blocks.{l}.downsamplers.0"), widths.len());
                if self.residual_resampling {
                    names.res(&own, &format!("input_blocks.{block}.0"), false);
                } else {
                    let reference = either(&format!("down.{l}.downsample.conv"), &format!("input_blocks.{block}.0.op"));
                    names.layer(&format!("{own}.conv"), &reference);
                }
                widths.push(channels);
            }
        }
        names.res("mid_block.resnets.0", &either("mid.block_1", "middle_block.0"), false);
        names.attention("mid_block.attentions.0", &either("mid.attn_1", "middle_block.1"));
        names.res("mid_block.resnets.1", &either("mid.block_2", "middle_block.2"), false);
        for (k, l) in (0..levels).rev().enumerate() {
            let to = self.level_channels[l];
            for j in 0..=n {
                let from = channels + widths.pop().unwrap_or_default();
                let block = format!("output_blocks.{}", k * (n + 1) + j);
                names.res(
                    &format!("up_blocks.{k}.resnets.{j}"),
                    &either(&format!("up.{l}.block.{j}"), &format!("{block}.0")),
                    from != to,
                );
                if self.attention[l] {
                    names.attention(
                        &format!("up_blocks.{k}.attentions.{j}"),
                        &either(&format!("up.{l}.attn.{j}"), &format!("{block}.1")),
                    );
                }
                channels = to;
                if j == n && l > 0 {
                    let own = format!("up_blocks.{k}.upsamplers.0");
                    let resize = format!("{block}.{}", if self.attention[l] { 2 } else { 1 });
                    if self.residual_resampling {
                        names.res(&own, &resize, false);
                    } else {
                        let reference = either(&format!("up.{l}.upsample.conv"), &format!("{resize}.conv"));
                        names.layer(&format!("{own}.conv"), &reference);
                    }
                }
            }
        }
        names.layer("conv_norm_out", &either("norm_out", "out.0"));
        names.layer("conv_out", &either("conv_out", "out.2"));
        names.list
    }

    /// The tensors of a file of this network under the reference's names, attention of the older names as well.
    ///
    /// # Errors
    /// A tensor that is missing or that the network has no place for.
    pub fn rename<T>(&self, path: &Path, tensors: Vec<(String, T)>) -> Result<Vec<(Renamed, Vec<T>)>> {
        let mut left = std::collections::BTreeMap::new();
        for (name, tensor) in tensors {
            let name = of_today(&name);
            if left.insert(name.clone(), tensor).is_some() {
                return Err(Error::file(path, format!("has `{name}` twice, under an older name as well")));
            }
        }
        let mut renamed = Vec::new();
        for entry in self.names() {
            let take = |name: &String| {
                let missing = || format!("has no tensor `{name}`, which its {CONFIG} asks for");
                left.remove(name).ok_or_else(|| Error::file(path, missing()))
            };
            let parts = entry.own.iter().map(take).collect::<Result<Vec<_>>>()?;
            renamed.push((entry, parts));
        }
        match left.keys().next() {
            Some(name) => Err(Error::file(path, format!("has a tensor `{name}`, for which its {CONFIG} has no place"))),
            None => Ok(renamed),
        }
    }
}

/// Collects names.
struct Names {
    reference: Reference,
    list: Vec<Renamed>,
}

impl Names {
    fn tensor(&mut self, own: &str, reference: &str) {
        self.list.push(Renamed { reference: reference.into(), own: vec![own.into()], ones: 0 });
    }

    fn layer(&mut self, own: &str, reference: &str) {
        for part in ["weight", "bias"] {
            self.tensor(&format!("{own}.{part}"), &format!("{reference}.{part}"));
        }
    }

    fn res(&mut self, own: &str, reference: &str, widens: bool) {
        let names = match self.reference {
            Reference::Ddim => ["norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut"],
            Reference::Adm => {
                ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
            }
        };
        let own_names = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"];
        let layers = own_names.iter().zip(names).take(if widens { 6 } else { 5 });
        for (layer, name) in layers {
            self.layer(&format!("{own}.{layer}"), &format!("{reference}.{name}"));
        }
    }

    fn attention(&mut self, own: &str, reference: &str) {
        self.layer(&format!("{own}.group_norm"), &format!("{reference}.norm"));
        let (layers, ones): (&[(&[&str], &str)], _) = match self.reference {
            Reference::Ddim => {
                (&[(&["to_q"], "q"), (&["to_k"], "k"), (&["to_v"], "v"), (&["to_out.0"], "proj_out")], 2)
            }
            Reference::Adm => (&[(&["to_q", "to_k", "to_v"], "qkv"), (&["to_out.0"], "proj_out")], 1),
        };
        for (layers, name) in layers {
            for (part, ones) in [("weight", ones), ("bias", 0)] {
                let own = layers.iter().map(|layer| format!("{own}.{layer}.{part}")).collect();
                self.list.push(Renamed { reference: format!("{reference}.{name}.{part}"), own, ones });
            }
        }
    }
}

/// A tensor's name as diffusers writes it today.
fn of_today(name: &str) -> String {
    let older = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.len().wrapping_sub(2);
    match older.iter().find(|(old, _)| parts.get(at) == Some(old) && parts.contains(&"attentions")) {
        Some((_, new)) => [&parts[..at], &[new], &parts[at + 1..]].concat().join("."),
        None => name.into(),
    }
}
