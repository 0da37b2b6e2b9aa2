//! The network of a `config.json`.

use super::settings::{Settings, settings};
use super::{UNET, VERSION};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Groups of every normalisation.
const GROUPS: usize = 32;
/// The most levels, and residual blocks in each.
const MOST_LEVELS: usize = 16;
const MOST_BLOCKS: usize = 256;

/// Whose network a `UNet2DModel` is under other names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// ermongroup/ddim's, as `google/ddpm-cifar10-32` and its kin.
    Ddim,
    /// openai/guided-diffusion's, as what diffusers' own training scripts make.
    Adm,
}

/// A `UNet2DModel`.
#[derive(Clone, Debug, PartialEq)]
pub struct Unet {
    /// Whose network it is.
    pub reference: Reference,
    /// Side of the square images in pixels, if it is said.
    pub image_size: Option<usize>,
    /// Channels of the images.
    pub in_channels: usize,
    /// As many, or twice as many for a learned variance.
    pub out_channels: usize,
    /// Channels of each level.
    pub level_channels: Vec<usize>,
    /// Residual blocks of each level on the way down.
    pub res_blocks: usize,
    /// Whether each level has attention. The middle always has.
    pub attention: Vec<bool>,
    /// Channels of an attention head; none for one head.
    pub head_channels: Option<usize>,
    /// Dropout probability.
    pub dropout: f64,
    /// Whether time scales and shifts, or only shifts.
    pub scale_shift: bool,
    /// Whether residual blocks change the size, or convolutions.
    pub residual_resampling: bool,
    /// Classes, if it is given labels.
    pub classes: Option<usize>,
}

impl Unet {
    /// The network that a `config.json` describes.
    ///
    /// # Errors
    /// Damage, or a network that is not supported: the message names the key, its value, and what is.
    pub fn read(config: &Path) -> Result<Self> {
        let found = settings(config)?.ok_or_else(|| Error::file(config, "there is no such file"))?;
        Self::from_settings(&found)
    }

    pub(super) fn from_settings(s: &Settings) -> Result<Self> {
        s.only("_class_name", &[json!(UNET)])?;
        let reference = match (s.is("flip_sin_to_cos", true)?, s.number("freq_shift", 0.0)?) {
            (false, 1.0) => Reference::Ddim,
            (true, 0.0) => Reference::Adm,
            (flip, _) => {
                return Err(s.refuse("freq_shift", &format!("with `flip_sin_to_cos` {flip} {} is", u8::from(!flip))));
            }
        };
        let is_ddim = reference == Reference::Ddim;
        s.only("center_input_sample", &[json!(false)])?;
        s.only("time_embedding_type", &[json!("positional")])?;
        s.only("act_fn", &[json!("silu"), json!("swish")])?;
        s.only("mid_block_type", &[json!("UNetMidBlock2D")])?;
        s.only("mid_block_scale_factor", &[json!(1)])?;
        s.only("add_attention", &[json!(true)])?;
        s.only("norm_num_groups", &[json!(GROUPS)])?;
        s.only("class_embed_type", &[Value::Null])?;
        // Beside the default value for a missing key these are what the reference has.
        let norm_eps = s.number("norm_eps", 1e-5)?;
        if (norm_eps - if is_ddim { 1e-6 } else { 1e-5 }).abs() > 1e-9 {
            let supported = if is_ddim { "1e-6 with `freq_shift` 1 is" } else { "1e-5 with `freq_shift` 0 is" };
            return Err(s.refuse("norm_eps", supported));
        }
        let channels = s.get("block_out_channels").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let channels = channels.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect::<Option<Vec<_>>>();
        let level_channels = channels.unwrap_or_default();
        let fits = |&n: &usize| n > 0 && n.is_multiple_of(GROUPS) && n <= 1 << 14;
        if !(1..=MOST_LEVELS).contains(&level_channels.len()) || !level_channels.iter().all(fits) {
            let supported = format!("1 to {MOST_LEVELS} multiples of {GROUPS} up to {} are", 1 << 14);
            return Err(s.refuse("block_out_channels", &supported));
        }
        s.only("time_embedding_dim", &[Value::Null, json!(4 * level_channels[0])])?;
        let (attention, residual_resampling) = blocks(s, level_channels.len())?;
        if is_ddim && residual_resampling {
            return Err(s.refuse("downsample_type", "\"conv\" with `freq_shift` 1 is"));
        }
        let padding = s.count("downsample_padding", 1, 1);
        let padding = if s.get("downsample_padding") == Some(&json!(0)) { 0 } else { padding? };
        if level_channels.len() > 1 && !residual_resampling && padding != usize::from(!is_ddim) {
            let supported = if is_ddim { "0 with `freq_shift` 1 is" } else { "1 with `freq_shift` 0 is" };
            return Err(s.refuse("downsample_padding", supported));
        }
        let scale_shift = match s.text("resnet_time_scale_shift", "default")? {
            "default" => false,
            "scale_shift" if !is_ddim => true,
            _ if is_ddim => return Err(s.refuse("resnet_time_scale_shift", "\"default\" with `freq_shift` 1 is")),
            _ => return Err(s.refuse("resnet_time_scale_shift", "\"default\" or \"scale_shift\" is")),
        };
        match scale_shift {
            true if s.get("attn_norm_num_groups") != Some(&json!(GROUPS)) => {
                return Err(s.refuse("attn_norm_num_groups", "32 with `resnet_time_scale_shift` \"scale_shift\" is"));
            }
            true => {}
            false => s.only("attn_norm_num_groups", &[Value::Null, json!(GROUPS)])?,
        }
        let head_channels = match s.map.get("attention_head_dim") {
            Some(Value::Null) => None,
            _ => Some(s.count("attention_head_dim", 8, 1 << 14)?),
        };
        let attends = |(l, _): &(usize, &usize)| attention[*l] || l + 1 == level_channels.len();
        let mut attending = level_channels.iter().enumerate().filter(attends).map(|(_, &channels)| channels);
        let one_head = |head: usize| attending.clone().all(|channels| channels == head);
        let head_channels = head_channels.filter(|&head| !one_head(head));
        if let Some(head) = head_channels
            && (is_ddim || attending.any(|channels| !channels.is_multiple_of(head)))
        {
            let supported =
                if is_ddim { "null with `freq_shift` 1 is" } else { "null or a divisor of the blocks' channels is" };
            return Err(s.refuse("attention_head_dim", supported));
        }
        let in_channels = s.count("in_channels", 3, 1 << 10)?;
        let out_channels = s.count("out_channels", 3, 1 << 11)?;
        if out_channels != in_channels && (is_ddim || out_channels != 2 * in_channels) {
            let learned = if is_ddim { "" } else { ", or twice as many for a learned variance," };
            return Err(s.refuse("out_channels", &format!("{in_channels}, as many as `in_channels`{learned} is")));
        }
        let classes = s.get("num_class_embeds").map(|_| s.count("num_class_embeds", 0, 1 << 16)).transpose()?;
        if is_ddim && classes.is_some() {
            return Err(s.refuse("num_class_embeds", "null with `freq_shift` 1 is"));
        }
        let dropout = s.number("dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(s.refuse("dropout", "a probability below 1 is"));
        }
        let image_size = match s.get("sample_size") {
            None => None,
            Some(Value::Array(sides)) if sides.len() == 2 && sides[0] == sides[1] => {
                sides[0].as_u64().and_then(|n| usize::try_from(n).ok())
            }
            Some(_) => Some(s.count("sample_size", 0, 1 << 14)?),
        };
        Ok(Self {
            reference,
            image_size,
            in_channels,
            out_channels,
            level_channels,
            res_blocks: s.count("layers_per_block", 2, MOST_BLOCKS)?,
            attention,
            head_channels,
            dropout,
            scale_shift,
            residual_resampling,
            classes,
        })
    }

    /// The content of a `config.json`.
    pub fn to_json(&self) -> Value {
        let is_ddim = self.reference == Reference::Ddim;
        let resample = if self.residual_resampling { "resnet" } else { "conv" };
        let names = |attends: &str, residual: &str, plain: &str| -> Vec<String> {
            let name = |&has: &bool| {
                if has {
                    attends
                } else if self.residual_resampling {
                    residual
                } else {
                    plain
                }
            };
            self.attention.iter().map(|has| name(has).to_string()).collect()
        };
        let down = names("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D");
        let mut up = names("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D");
        up.reverse();
        json!({
            "_class_name": UNET,
            "_diffusers_version": VERSION,
            "act_fn": "silu",
            "add_attention": true,
            "attention_head_dim": self.head_channels,
            "attn_norm_num_groups": self.scale_shift.then_some(GROUPS),
            "block_out_channels": self.level_channels,
            "center_input_sample": false,
            "class_embed_type": null,
            "down_block_types": down,
            "downsample_padding": u8::from(!is_ddim),
            "downsample_type": resample,
            "dropout": self.dropout,
            "flip_sin_to_cos": !is_ddim,
            "freq_shift": u8::from(is_ddim),
            "in_channels": self.in_channels,
            "layers_per_block": self.res_blocks,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2D",
            "norm_eps": if is_ddim { 1e-6 } else { 1e-5 },
            "norm_num_groups": GROUPS,
            "num_class_embeds": self.classes,
            "num_train_timesteps": null,
            "out_channels": self.out_channels,
            "resnet_time_scale_shift": if self.scale_shift { "scale_shift" } else { "default" },
            "sample_size": self.image_size,
            "time_embedding_dim": null,
            "time_embedding_type": "positional",
            "up_block_types": up,
            "upsample_type": resample,
        })
    }
}

/// Whether each level has attention, and whether residual blocks change the size.
fn blocks(s: &Settings, levels: usize) -> Result<(Vec<bool>, bool)> {
    let resample = |key: &str| match s.text(key, "conv")? {
        "conv" => Ok(false),
        "resnet" => Ok(true),
        _ => Err(s.refuse(key, "\"conv\" or \"resnet\" is")),
    };
    let side = |key: &str, by: &str, plain: &str, residual: &str, attends: &str| -> Result<Vec<(bool, bool)>> {
        let default = resample(by)?;
        let names = s.texts(key)?;
        if names.len() != levels {
            return Err(s.refuse(key, &format!("{levels}, as many as `block_out_channels`, are")));
        }
        let read = |name: &&str| match *name {
            name if name == plain => Ok((false, false)),
            name if name == residual => Ok((false, true)),
            name if name == attends => Ok((true, default)),
            _ => Err(s.refuse(key, &format!("\"{plain}\", \"{residual}\" and \"{attends}\" are"))),
        };
        names.iter().map(read).collect()
    };
    let down = ["DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"];
    let down = side("down_block_types", "downsample_type", down[0], down[1], down[2])?;
    let up = ["UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"];
    let mut up = side("up_block_types", "upsample_type", up[0], up[1], up[2])?;
    // The last of each changes no size.
    let resized = levels - 1;
    let kinds =
        || down.iter().chain(&up[..]).enumerate().filter(|(i, _)| i % levels != resized).map(|(_, side)| side.1);
    let residual = kinds().next().unwrap_or(false);
    if kinds().any(|kind| kind != residual) {
        return Err(s.refuse(
            "down_block_types",
            "blocks, `downsample_type` and `upsample_type` that all resample by residual blocks, or none of them, are",
        ));
    }
    up.reverse();
    let attends = |side: &[(bool, bool)]| side.iter().map(|block| block.0).collect::<Vec<_>>();
    if attends(&down) != attends(&up) {
        return Err(s.refuse("up_block_types", "attention at the levels of `down_block_types` is"));
    }
    Ok((attends(&down), residual))
}
