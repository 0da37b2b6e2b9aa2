//! Hugging Face's diffusers: the `UNet2DModel` of a folder, alone or in a pipeline, and the process of its scheduler.
//!
//! `UNet2DModel` describes many networks. Two of them are networks of others under other names, exactly:
//!
//! | | [`Reference::Ddim`] | [`Reference::Adm`] |
//! | --- | --- | --- |
//! | `flip_sin_to_cos`, `freq_shift` | false, 1 | true, 0 |
//! | `norm_eps` | 1e-6 | 1e-5 |
//! | `downsample_padding` | 0 | 1 |
//! | `attention_head_dim` | null: one head | null or a number |
//! | `resnet_time_scale_shift` | `default` | `default`, or `scale_shift` with `attn_norm_num_groups` 32 |
//! | resampling | convolutions | convolutions or residual blocks |
//! | `num_class_embeds` | null | null or a number |
//!
//! Keys that diffusers does not know are passed over, as it does.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A network's settings.
pub const CONFIG: &str = "config.json";
/// What a pipeline consists of.
pub const PIPELINE: &str = "model_index.json";
/// A scheduler's settings.
pub const SCHEDULER: &str = "scheduler_config.json";
/// A network's parameters.
pub const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The same as `torch.save` writes them.
const WEIGHTS_OF_TORCH: &str = "diffusion_pytorch_model.bin";

/// A parameter that every network has, and those of others have not.
pub const MARK: &str = "time_embedding.linear_1.weight";

/// The version whose files these are.
const VERSION: &str = "0.42.1";
/// The class of networks that are read.
const UNET: &str = "UNet2DModel";
/// The longest file of settings that is read, in bytes.
const MOST_SETTINGS: u64 = 1 << 20;
/// Groups of every normalisation.
const GROUPS: usize = 32;
/// The most levels, and residual blocks in each.
const MOST_LEVELS: usize = 16;
const MOST_BLOCKS: usize = 256;
/// Schedulers of the variance-preserving process.
const SCHEDULERS: [&str; 5] =
    ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"];

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

/// The process of a scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Its class.
    pub class: String,
    /// Timesteps.
    pub steps: usize,
    /// A squared cosine, or β linear in t.
    pub cosine: bool,
    /// The network predicts the image, or the noise.
    pub predicts_image: bool,
    /// The variance of the reverse steps, where the scheduler has one.
    pub variance: Option<ProcessVariance>,
    /// Whether predicted images are clipped to [-1, 1], where the scheduler says it.
    pub clip: Option<bool>,
}

/// The variance of the reverse steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessVariance {
    /// The posterior's.
    FixedSmall,
    /// β.
    FixedLarge,
    /// Learned, between the two.
    LearnedRange,
}

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

/// An object of a file, and how to speak of it.
struct Settings<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Settings<'_> {
    /// Nothing for null, as if there were no such key.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn refuse(&self, key: &str, supported: &str) -> Error {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        Error::file(self.path, format!("`{key}` is {value}, which is not supported: {supported}"))
    }

    fn count(&self, key: &str, default: usize, most: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=most).contains(n));
        count.ok_or_else(|| self.refuse(key, &format!("a whole number from 1 to {most} is")))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.refuse(key, "a number is"))
    }

    fn is(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refuse(key, "true or false is"))
    }

    fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.refuse(key, "a text is"))
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let list = self.get(key).and_then(Value::as_array);
        let list = list.and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| self.refuse(key, "a list of names of blocks is"))
    }

    /// That a key is one of these values, the first of which it is where it is missing.
    fn only(&self, key: &str, supported: &[Value]) -> Result<()> {
        let value = self.map.get(key).or(supported.first()).unwrap_or(&Value::Null);
        let same = |other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs(),
            _ => value == other,
        };
        if supported.iter().any(same) {
            return Ok(());
        }
        let words: Vec<String> = supported.iter().map(ToString::to_string).collect();
        Err(self.refuse(key, &format!("{} is", words.join(" or "))))
    }
}

/// The object that a file of settings holds; none if there is no such file.
fn settings(path: &Path) -> Result<Option<Settings<'_>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let mut text = Vec::new();
    file.take(MOST_SETTINGS + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
    if text.len() as u64 > MOST_SETTINGS {
        return Err(Error::file(path, "is too long for a file of settings: take the one of the network"));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(Some(Settings { path, map })),
        Ok(_) => Err(Error::file(path, "is no JSON object: copy or download it again")),
        Err(error) => Err(Error::file(path, format!("is no JSON ({error}): copy or download it again"))),
    }
}

/// The file of parameters that a folder means: a network's, a pipeline's, or one that diffusers' training scripts save, with
/// an average (`unet_ema`) before the network itself. None if it is none of these.
pub fn weights_in(folder: &Path) -> Option<PathBuf> {
    let candidates = [folder.to_path_buf(), folder.join("unet_ema"), folder.join("unet")];
    let files = candidates.iter().filter(|folder| folder.join(CONFIG).is_file());
    files.flat_map(|folder| [folder.join(WEIGHTS), folder.join(WEIGHTS_OF_TORCH)]).find(|file| file.is_file())
}

/// The network that the `config.json` beside a file of parameters describes; none if there is none that is diffusers'.
///
/// # Errors
/// One that describes a network that is not supported: the message names the key, its value, and what is. Damage, where the
/// file is named as diffusers names its own.
pub fn unet_of(weights: &Path) -> Result<Option<Unet>> {
    let path = weights.with_file_name(CONFIG);
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    match settings(&path) {
        Ok(Some(settings)) if settings.map.contains_key("_class_name") => Unet::from_settings(&settings).map(Some),
        Err(error) if name.starts_with("diffusion_pytorch_model") => Err(error),
        _ => Ok(None),
    }
}

/// The process that the scheduler beside a file of parameters describes, or the one of its pipeline; none if there is none.
///
/// # Errors
/// One that is not supported: the message names the key, its value, and what is. Damage.
pub fn process_of(weights: &Path) -> Result<Option<Process>> {
    let beside = weights.with_file_name(SCHEDULER);
    let folder = weights.parent().unwrap_or(Path::new(""));
    // A folder without a name is where one is, or leads upwards.
    let pipeline = match folder.file_name() {
        Some(_) => folder.parent().unwrap_or(Path::new("")).to_path_buf(),
        None => folder.join(".."),
    };
    let of_pipeline = pipeline.join("scheduler").join(SCHEDULER);
    for path in [beside, of_pipeline] {
        if let Some(settings) = settings(&path)? {
            return Process::from_settings(&settings).map(Some);
        }
    }
    Ok(None)
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

    fn from_settings(s: &Settings) -> Result<Self> {
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

impl Process {
    /// The process that a `scheduler_config.json` describes.
    ///
    /// # Errors
    /// Damage, or a process that is not supported: the message names the key, its value, and what is.
    pub fn read(path: &Path) -> Result<Self> {
        let found = settings(path)?.ok_or_else(|| Error::file(path, "there is no such file"))?;
        Self::from_settings(&found)
    }

    fn from_settings(s: &Settings) -> Result<Self> {
        let class = s.text("_class_name", "")?;
        if !SCHEDULERS.contains(&class) {
            return Err(s.refuse("_class_name", &format!("{} are", SCHEDULERS.join(", "))));
        }
        let steps = s.count("num_train_timesteps", 1000, 1 << 20)?;
        s.only("trained_betas", &[Value::Null])?;
        let cosine = match s.text("beta_schedule", "linear")? {
            "linear" => false,
            "squaredcos_cap_v2" => true,
            _ => return Err(s.refuse("beta_schedule", "\"linear\" or \"squaredcos_cap_v2\" is")),
        };
        if !cosine {
            let [start, end] = linear(steps);
            for (key, default, supported) in [("beta_start", 1e-4, start), ("beta_end", 0.02, end)] {
                if (s.number(key, default)? - supported).abs() > 1e-6 * supported {
                    let message = format!("{supported} with `num_train_timesteps` {steps} is");
                    return Err(s.refuse(key, &message));
                }
            }
        }
        s.only("rescale_betas_zero_snr", &[json!(false)])?;
        s.only("thresholding", &[json!(false)])?;
        let predicts_image = match s.text("prediction_type", "epsilon")? {
            "epsilon" => false,
            "sample" => true,
            _ => return Err(s.refuse("prediction_type", "\"epsilon\" or \"sample\" is")),
        };
        let variance = match (class, s.text("variance_type", "fixed_small")?) {
            ("DDPMScheduler", "fixed_small" | "fixed_small_log") => Some(ProcessVariance::FixedSmall),
            ("DDPMScheduler", "fixed_large") => Some(ProcessVariance::FixedLarge),
            ("DDPMScheduler", "learned_range") => Some(ProcessVariance::LearnedRange),
            ("DDPMScheduler", _) => {
                let supported = "\"fixed_small\", \"fixed_large\" or \"learned_range\" is";
                return Err(s.refuse("variance_type", supported));
            }
            _ => None,
        };
        let clip = match class {
            "DDPMScheduler" | "DDIMScheduler" => Some(s.is("clip_sample", true)?),
            _ => None,
        };
        if clip == Some(true) {
            s.only("clip_sample_range", &[json!(1)])?;
        }
        Ok(Self { class: class.into(), steps, cosine, predicts_image, variance, clip })
    }

    /// The content of a `scheduler_config.json`, of a `DDPMScheduler`.
    pub fn to_json(&self) -> Value {
        let [start, end] = linear(self.steps);
        json!({
            "_class_name": "DDPMScheduler",
            "_diffusers_version": VERSION,
            "beta_end": end,
            "beta_schedule": if self.cosine { "squaredcos_cap_v2" } else { "linear" },
            "beta_start": start,
            "clip_sample": self.clip.unwrap_or(true),
            "clip_sample_range": 1.0,
            "num_train_timesteps": self.steps,
            "prediction_type": if self.predicts_image { "sample" } else { "epsilon" },
            "rescale_betas_zero_snr": false,
            "steps_offset": 0,
            "thresholding": false,
            "timestep_spacing": "leading",
            "trained_betas": null,
            "variance_type": match self.variance {
                Some(ProcessVariance::FixedLarge) => "fixed_large",
                Some(ProcessVariance::LearnedRange) => "learned_range",
                _ => "fixed_small",
            },
        })
    }
}

/// The first and the last β of a linear schedule.
fn linear(steps: usize) -> [f64; 2] {
    [1e-4, 0.02].map(|beta| beta * 1000.0 / steps as f64)
}

/// The content of the `model_index.json` of a pipeline of a `UNet2DModel` and a `DDPMScheduler`.
pub fn pipeline() -> Value {
    json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", UNET],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `google/ddpm-cifar10-32` says.
    fn cifar10() -> Value {
        json!({
            "_class_name": "UNet2DModel",
            "_diffusers_version": "0.0.4",
            "act_fn": "silu",
            "attention_head_dim": null,
            "block_out_channels": [128, 256, 256, 256],
            "center_input_sample": false,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "downsample_padding": 0,
            "flip_sin_to_cos": false,
            "freq_shift": 1,
            "in_channels": 3,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-06,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 32,
            "time_embedding_type": "positional",
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
        })
    }

    /// What diffusers' script of unconditional training makes.
    fn unconditional() -> Value {
        json!({
            "_class_name": "UNet2DModel",
            "sample_size": [64, 64],
            "block_out_channels": [128, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        })
    }

    fn read(json: &Value) -> Result<Unet> {
        let Value::Object(map) = json.clone() else { panic!("an object") };
        Unet::from_settings(&Settings { path: Path::new("config.json"), map })
    }

    fn process(json: &Value) -> Result<Process> {
        let Value::Object(map) = json.clone() else { panic!("an object") };
        Process::from_settings(&Settings { path: Path::new("scheduler_config.json"), map })
    }

    fn with(mut json: Value, key: &str, value: Value) -> Value {
        json[key] = value;
        json
    }

    #[test]
    fn networks_are_read_as_they_were_written() {
        let ddim = read(&cifar10()).unwrap();
        assert_eq!((ddim.reference, ddim.image_size, ddim.head_channels), (Reference::Ddim, Some(32), None));
        assert_eq!(ddim.attention, [false, true, false, false]);
        let adm = read(&unconditional()).unwrap();
        assert_eq!((adm.reference, adm.image_size, adm.head_channels), (Reference::Adm, Some(64), Some(8)));
        assert_eq!((adm.res_blocks, adm.in_channels, adm.scale_shift, adm.classes), (2, 3, false, None));
        let residual = Unet {
            scale_shift: true,
            residual_resampling: true,
            classes: Some(10),
            out_channels: 6,
            dropout: 0.25,
            ..adm.clone()
        };
        for unet in [ddim, adm, residual] {
            assert_eq!(read(&unet.to_json()).unwrap(), unet);
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_with_key_value_and_what_is() {
        let both = [cifar10(), unconditional()];
        for (which, key, value, words) in [
            (0, "_class_name", json!("UNet2DConditionModel"), "UNet2DModel"),
            (0, "freq_shift", json!(0), "with `flip_sin_to_cos` false 1 is"),
            (0, "norm_eps", json!(1e-5), "1e-6 with"),
            (0, "downsample_padding", json!(1), "0 with"),
            (0, "attention_head_dim", json!(8), "null with"),
            (0, "resnet_time_scale_shift", json!("scale_shift"), "default"),
            (0, "num_class_embeds", json!(10), "null with"),
            (0, "out_channels", json!(6), "3, as many as"),
            (0, "center_input_sample", json!(true), "false is"),
            (0, "time_embedding_type", json!("fourier"), "positional"),
            (0, "act_fn", json!("relu"), "\"silu\" or \"swish\""),
            (0, "norm_num_groups", json!(16), "32 is"),
            (0, "mid_block_type", json!(null), "UNetMidBlock2D"),
            (0, "block_out_channels", json!([100, 200, 200, 200]), "multiples of 32"),
            (0, "block_out_channels", json!("wide"), "multiples of 32"),
            (0, "block_out_channels", json!([]), "multiples of 32"),
            (0, "layers_per_block", json!(1_000_000_000_000u64), "from 1 to 256"),
            (0, "sample_size", json!([32, 48]), "whole number"),
            (0, "up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]), "at the levels of"),
            (0, "down_block_types", json!(["DownBlock2D"]), "4, as many as"),
            (
                0,
                "down_block_types",
                json!(["SkipDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
                "AttnDown",
            ),
            (0, "downsample_type", json!("resnet"), "supported"),
            (1, "norm_eps", json!(1e-6), "1e-5 with"),
            (1, "downsample_padding", json!(0), "1 with"),
            (1, "attention_head_dim", json!(24), "a divisor"),
            (1, "resnet_time_scale_shift", json!("scale_shift"), "`attn_norm_num_groups` is null"),
            (1, "resnet_time_scale_shift", json!("spatial"), "scale_shift"),
            (1, "out_channels", json!(4), "twice as many"),
            (1, "class_embed_type", json!("timestep"), "null is"),
            (1, "add_attention", json!(false), "true is"),
            (1, "dropout", json!(1.5), "probability"),
            (1, "upsample_type", json!("shuffle"), "\"conv\" or \"resnet\""),
        ] {
            let error = read(&with(both[which].clone(), key, value.clone())).expect_err(key).to_string();
            assert!(error.contains("is not supported") && error.contains(words), "{key} {value}: {error}");
        }
        let newer = with(cifar10(), "key_of_another_program", json!(1));
        assert!(read(&newer).is_ok());
    }

    #[test]
    fn processes_are_read_as_they_were_written_and_others_refused() {
        let google = json!({
            "_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
            "clip_sample": true, "num_train_timesteps": 1000, "tensor_format": "pt", "trained_betas": null,
            "variance_type": "fixed_large",
        });
        let read = process(&google).unwrap();
        assert_eq!(read.variance, Some(ProcessVariance::FixedLarge));
        let ddim = process(&with(google.clone(), "_class_name", json!("DDIMScheduler"))).unwrap();
        assert_eq!((ddim.variance, ddim.clip), (None, Some(true)));
        let other = Process {
            steps: 4000,
            cosine: true,
            predicts_image: true,
            variance: Some(ProcessVariance::LearnedRange),
            clip: Some(false),
            ..read.clone()
        };
        for one in [read, other] {
            assert_eq!(process(&one.to_json()).unwrap(), one);
        }
        for (key, value, words) in [
            ("_class_name", json!("EDMEulerScheduler"), "DDPMScheduler"),
            ("beta_schedule", json!("scaled_linear"), "squaredcos_cap_v2"),
            ("beta_end", json!(0.012), "0.02 with"),
            ("num_train_timesteps", json!(2000), "`beta_start` is 0.0001"),
            ("num_train_timesteps", json!(0), "whole number"),
            ("trained_betas", json!([0.1]), "null is"),
            ("prediction_type", json!("v_prediction"), "\"epsilon\" or \"sample\""),
            ("variance_type", json!("learned"), "learned_range"),
            ("rescale_betas_zero_snr", json!(true), "false is"),
            ("thresholding", json!(true), "false is"),
            ("clip_sample_range", json!(2.0), "1 is"),
            ("clip_sample", json!("yes"), "true or false"),
        ] {
            let error = process(&with(google.clone(), key, value)).expect_err(key).to_string();
            assert!(error.contains("is not supported") && error.contains(words), "{key}: {error}");
        }
    }

    #[test]
    fn names_are_one_to_one_and_older_ones_are_read() {
        for json in [cifar10(), unconditional(), with(unconditional(), "num_class_embeds", json!(10))] {
            let unet = read(&json).unwrap();
            let names = unet.names();
            let distinct = |names: Vec<&String>| {
                let all = names.len();
                names.into_iter().collect::<std::collections::BTreeSet<_>>().len() == all
            };
            assert!(distinct(names.iter().map(|n| &n.reference).collect()));
            assert!(distinct(names.iter().flat_map(|n| &n.own).collect()));
            let older = |name: &str| {
                let name = name.replace(".to_q.", ".query.").replace(".to_k.", ".key.");
                name.replace(".to_v.", ".value.").replace(".to_out.0.", ".proj_attn.")
            };
            let own = || names.iter().flat_map(|n| n.own.clone());
            let file: Vec<_> = own().map(|name| (older(&name), name)).collect();
            let renamed = unet.rename(Path::new("x"), file.clone()).unwrap();
            assert!(renamed.iter().all(|(entry, tensors)| entry.own == *tensors));
            let fails = |file: Vec<(String, String)>| unet.rename(Path::new("x"), file).unwrap_err().to_string();
            assert!(fails(file[1..].to_vec()).contains(&format!("no tensor `{}`", own().next().unwrap())));
            let more = |name: &str| [file.clone(), vec![(name.into(), String::new())]].concat();
            assert!(fails(more("extra.weight")).contains("`extra.weight`, for which"));
            assert!(fails(more("mid_block.attentions.0.to_q.weight")).contains("twice"));
        }
    }

    #[test]
    fn folders_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        assert_eq!(weights_in(folder.path()), None);
        write("p/unet/config.json", &cifar10().to_string());
        let torch = write("p/unet/diffusion_pytorch_model.bin", "");
        assert_eq!(weights_in(&folder.path().join("p")), Some(torch.clone()));
        let weights = write("p/unet/diffusion_pytorch_model.safetensors", "");
        assert_eq!(weights_in(&folder.path().join("p")), Some(weights.clone()));
        assert_eq!(weights_in(&folder.path().join("p/unet")), Some(weights.clone()));
        assert!(unet_of(&weights).unwrap().is_some() && process_of(&weights).unwrap().is_none());
        write("p/unet_ema/config.json", &cifar10().to_string());
        let average = write("p/unet_ema/diffusion_pytorch_model.safetensors", "");
        assert_eq!(weights_in(&folder.path().join("p")), Some(average));
        write("p/scheduler/scheduler_config.json", "{\"_class_name\": \"DDPMScheduler\"}");
        assert_eq!(process_of(&weights).unwrap().unwrap().variance, Some(ProcessVariance::FixedSmall));
        // On the hub all lie in one folder.
        write("p/unet/scheduler_config.json", "{\"_class_name\": \"PNDMScheduler\"}");
        assert_eq!(process_of(&weights).unwrap().unwrap().variance, None);
        // A config.json of other programs says nothing, and a damaged one is named where it is diffusers'.
        write("p/unet/config.json", "{\"hidden\": 3}");
        assert_eq!(unet_of(&weights).unwrap(), None);
        write("p/unet/config.json", "{\"_class_name\":");
        assert_eq!(unet_of(&folder.path().join("p/unet/model.pt")).unwrap(), None);
        assert!(unet_of(&weights).unwrap_err().to_string().contains("is no JSON"));
        let long = write("long/config.json", &" ".repeat((MOST_SETTINGS + 2) as usize));
        assert!(Unet::read(&long).unwrap_err().to_string().contains("too long"));
    }
}
