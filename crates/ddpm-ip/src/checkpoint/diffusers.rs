//! Networks of diffusers' `UNet2DModel`: what their folders say, as settings, and pipelines made of parameters.

use crate::Error;
use crate::config::{
    Arch, Config, ConfigError, KEYS, Layers, NoiseSchedule, Prediction, Respacing, SamplerKind, Variance,
};
use crate::file::{create_folder, folder_of, sync_folder, write_atomic};
use ddpm_formats::diffusers::{self, Process, ProcessVariance, Reference, Unet};
use ddpm_formats::safetensors::{self, Width};
use ddpm_kernels::HeadOrder;
use ddpm_net::Parameters;
use ddpm_net::network::{Family, NetworkConfig};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The settings of a file of parameters that lies beside diffusers' `config.json`, of the network and, where there is one, of
/// the scheduler; none for other files. `image_size` is the side of the images in pixels where the network does not say it.
///
/// # Errors
/// Files that describe what is not supported: the message names the key, its value, and what is. Damage.
pub fn described(file: &Path, image_size: Option<usize>) -> Result<Option<Table>, Error> {
    let Some(unet) = diffusers::unet_of(file)? else { return Ok(None) };
    let mut table = Table::from_iter([("model".to_string(), Value::Table(model(&unet, image_size)))]);
    let process = diffusers::process_of(file)?;
    let learned = unet.out_channels != unet.in_channels;
    let says = process.as_ref().and_then(|process| process.variance);
    if says.is_some_and(|variance| (variance == ProcessVariance::LearnedRange) != learned) {
        let message = format!(
            "has {} channels of output for images of {}, and its scheduler's `variance_type` is {}: one of them is not this \
             network's",
            unet.out_channels,
            unet.in_channels,
            if learned { "not \"learned_range\"" } else { "\"learned_range\"" },
        );
        return Err(Error::file(&file.with_file_name(diffusers::CONFIG), message));
    }
    let mut diffusion = Table::new();
    let variance = match says {
        Some(ProcessVariance::FixedSmall) => Some(Variance::FixedSmall),
        Some(ProcessVariance::FixedLarge) => Some(Variance::FixedLarge),
        Some(ProcessVariance::LearnedRange) => Some(Variance::LearnedRange),
        None => learned.then_some(Variance::LearnedRange),
    };
    if let Some(variance) = variance {
        diffusion.insert("variance".into(), value(variance));
    }
    if let Some(process) = process {
        let schedule = if process.cosine { NoiseSchedule::Cosine } else { NoiseSchedule::Linear };
        let prediction = if process.predicts_image { Prediction::XStart } else { Prediction::Epsilon };
        diffusion.insert("diffusion_steps".into(), value(process.steps));
        diffusion.insert("noise_schedule".into(), value(schedule));
        diffusion.insert("prediction".into(), value(prediction));
        let mut sample = Table::new();
        sample.extend(process.clip.map(|clip| ("clip_denoised".to_string(), value(clip))));
        if process.class == "DDIMScheduler" {
            sample.insert("sampler".into(), value(SamplerKind::Ddim));
        }
        table.insert("sample".into(), Value::Table(sample));
    }
    table.insert("diffusion".into(), Value::Table(diffusion));
    Ok(Some(table))
}

fn value(setting: impl serde::Serialize) -> Value {
    Value::try_from(setting).expect("settings are values of TOML")
}

/// A network's settings, for images of a size where it does not say its own.
fn model(unet: &Unet, image_size: Option<usize>) -> Table {
    let first = unet.level_channels[0];
    let arch = match unet.reference {
        Reference::Ddim => Arch::Ddim,
        Reference::Adm => Arch::Adm,
    };
    let multipliers: Vec<f64> = unet.level_channels.iter().map(|&n| n as f64 / first as f64).collect();
    let head_channels = unet.head_channels.map_or(-1, |n| n as i64);
    let mut model: Table = [
        ("arch", value(arch)),
        ("in_channels", value(unet.in_channels)),
        ("num_channels", value(first)),
        ("num_res_blocks", value(unet.res_blocks)),
        ("channel_mult", value(multipliers)),
        ("num_heads", value(1)),
        ("num_heads_upsample", value(-1)),
        ("num_head_channels", value(head_channels)),
        ("dropout", value(unet.dropout)),
        ("class_cond", value(unet.classes.is_some())),
        ("use_scale_shift_norm", value(unet.scale_shift)),
        ("resblock_updown", value(unet.residual_resampling)),
        ("conv_resample", value(true)),
        ("use_new_attention_order", value(true)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into_iter()
    .collect();
    model.extend(unet.classes.map(|n| ("num_classes".to_string(), value(n))));
    if let Some(size) = unet.image_size.or(image_size) {
        let attends = unet.attention.iter().enumerate().filter(|(_, attends)| **attends);
        let resolutions: Vec<usize> = attends.map(|(level, _)| size >> level).collect();
        model.insert("image_size".into(), value(size));
        model.insert("attention_resolutions".into(), value(resolutions));
    }
    model
}

/// `config` with what a file's description says in place of its own settings; none for a file without one.
///
/// # Errors
/// As [`described`].
pub(crate) fn config_with(file: &Path, config: &Config) -> Result<Option<Config>, Error> {
    let Some(table) = described(file, Some(config.model.image_size))? else { return Ok(None) };
    let mut layers = Layers::default();
    layers.add(config.to_toml().parse().map_err(|_| ConfigError("the settings are no TOML".into()))?)?;
    layers.add(table)?;
    Ok(Some(layers.resolve()?))
}

/// Checks that a configuration's network computes what the one that a file's description names does, where names and shapes
/// do not tell: family, attention heads and their order.
///
/// # Errors
/// Flags that contradict the description.
pub(crate) fn check(file: &Path, config: &Config) -> Result<(), Error> {
    let Some(own) = config_with(file, config)? else { return Ok(()) };
    if !matches!(config.model.arch, Arch::Adm | Arch::Ddim) {
        let message = "is a network that draws whole images, not a classifier or a super-resolution network";
        return Err(Error::file(file, message));
    }
    let [ours, theirs] = [config, &own].map(|config| config.model.network(config.diffusion.variance));
    let (ours, theirs) = (ours?, theirs?);
    let is_adm = theirs.family == Family::Adm;
    if ours.family == theirs.family
        && attending(&theirs).all(|channels| heads_of(&ours, channels) == heads_of(&theirs, channels))
        && (!is_adm || ours.head_order == theirs.head_order)
    {
        return Ok(());
    }
    let keys = ["arch", "num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order"];
    let flag = |key: &str| KEYS.iter().find(|k| k.path() == key).map_or(key.into(), |k| format!("--{}", k.flag()));
    let changes = config.changes_from(&own);
    let changes = changes.iter().filter(|(key, ..)| keys.iter().any(|name| *key == format!("model.{name}")));
    let changes: Vec<String> = changes
        .map(|(key, now, before)| format!("{} {} (not {})", flag(key), before.trim_matches('"'), now.trim_matches('"')))
        .collect();
    Err(Error::file(file, format!("is, by its {}, a network with {}", diffusers::CONFIG, changes.join(", "))))
}

/// Channels of each layer with attention.
fn attending(network: &NetworkConfig) -> impl Iterator<Item = usize> + Clone {
    let last = network.level_channels.len() - 1;
    let levels = network.level_channels.iter().enumerate();
    levels.filter(move |(l, _)| network.attends(*l) || *l == last).map(|(_, &channels)| channels)
}

/// Channels of a layer, and its heads on the way down with the middle, and up.
fn heads_of(network: &NetworkConfig, channels: usize) -> [usize; 3] {
    [channels, network.heads.count(channels), network.heads_up.count(channels)]
}

/// The `UNet2DModel` of a configuration's network.
fn unet(config: &Config) -> Result<Unet, ConfigError> {
    let refuse = |what: String| Err(ConfigError(format!("diffusers' UNet2DModel has no place for {what}")));
    let (model, network) = (&config.model, config.model.network(config.diffusion.variance)?);
    match model.arch {
        Arch::Adm | Arch::Ddim => {}
        Arch::Superres => return refuse("the small image of a super-resolution network".into()),
        Arch::Classifier => return refuse("a classifier".into()),
    }
    if network.level_channels.len() > 1 && !network.resblock_updown && !network.conv_resample {
        return refuse("changes of size without convolutions (--conv-resample false)".into());
    }
    if network.level_channels[0] != network.model_channels {
        return refuse(format!(
            "a time embedding of {} channels beside {} of the first level (--channel-mult {})",
            network.model_channels, network.level_channels[0], model.channel_mult[0]
        ));
    }
    let sizes = attending(&network).map(|channels| heads_of(&network, channels));
    let one_head = sizes.clone().all(|[_, down, up]| (down, up) == (1, 1));
    let mut sizes: Vec<usize> = sizes.flat_map(|[channels, down, up]| [channels / down, channels / up]).collect();
    sizes.dedup();
    let head_channels = match sizes[..] {
        _ if one_head => None,
        [size] => Some(size),
        _ => return refuse(format!("heads of {sizes:?} channels in one network")),
    };
    Ok(Unet {
        reference: if network.family == Family::Ddim { Reference::Ddim } else { Reference::Adm },
        image_size: Some(model.image_size),
        in_channels: network.in_channels,
        out_channels: network.out_channels,
        res_blocks: network.num_res_blocks,
        attention: (0..network.level_channels.len()).map(|level| network.attends(level)).collect(),
        level_channels: network.level_channels,
        head_channels,
        dropout: network.dropout,
        scale_shift: network.scale_shift_norm,
        residual_resampling: network.resblock_updown,
        classes: network.num_classes,
    })
}

/// The scheduler of a configuration's process.
fn process(config: &Config) -> Result<Process, ConfigError> {
    let refuse = |what: &str| Err(ConfigError(format!("diffusers' DDPMScheduler has no place for {what}")));
    let diffusion = &config.diffusion;
    let variance = match diffusion.variance {
        Variance::FixedSmall => ProcessVariance::FixedSmall,
        Variance::FixedLarge => ProcessVariance::FixedLarge,
        Variance::LearnedRange => ProcessVariance::LearnedRange,
        Variance::Learned => return refuse("the logarithm of a variance (--variance learned)"),
    };
    if diffusion.prediction == Prediction::PreviousX {
        return refuse("a prediction of the step before (--prediction previous-x)");
    }
    if diffusion.rescale_timesteps && diffusion.diffusion_steps != 1000 {
        return refuse("times scaled to 0 … 1000 (--rescale-timesteps) of another number of steps");
    }
    if diffusion.timestep_respacing != Respacing::Full {
        return refuse("a network that was trained only at some timesteps (diffusion.timestep_respacing)");
    }
    Ok(Process {
        class: "DDPMScheduler".into(),
        steps: diffusion.diffusion_steps,
        cosine: diffusion.noise_schedule == NoiseSchedule::Cosine,
        predicts_image: diffusion.prediction == Prediction::XStart,
        variance: Some(variance),
        clip: Some(config.sample.clip_denoised),
    })
}

/// Writes parameters as a pipeline that `DDPMPipeline.from_pretrained` loads, a folder that is whole or not there. Returns its
/// files.
///
/// # Errors
/// A folder that is there already; a network or a process that diffusers has no place for; what writing says.
pub fn write(folder: &Path, parameters: &Parameters, config: &Config) -> Result<Vec<PathBuf>, Error> {
    let (unet, process) = (unet(config)?, process(config)?);
    if folder.exists() {
        return Err(ConfigError(format!("{} exists: choose another folder or remove it", folder.display())).into());
    }
    let order = config.model.network(config.diffusion.variance)?.head_order;
    let heads_first = unet.reference == Reference::Adm && order == HeadOrder::HeadsFirst;
    let mut tensors: Vec<(String, Vec<usize>, Cow<[f32]>)> = Vec::new();
    let named: BTreeMap<&str, (&[usize], &[f32])> =
        parameters.iter().map(|(spec, values)| (spec.name.as_str(), (spec.shape.as_slice(), values))).collect();
    for entry in unet.names() {
        let (shape, values) = named[entry.reference.as_str()];
        let parts = entry.own.len();
        let mut shape = shape[..shape.len() - entry.ones].to_vec();
        shape[0] /= parts;
        let values = if parts > 1 && heads_first {
            Cow::Owned(parts_first(values, shape[0] / unet.head_channels.unwrap_or(shape[0]), parts))
        } else {
            Cow::Borrowed(values)
        };
        let length = values.len() / parts;
        for (i, name) in entry.own.into_iter().enumerate() {
            let part = i * length..(i + 1) * length;
            let values = match &values {
                Cow::Borrowed(values) => Cow::Borrowed(&values[part]),
                Cow::Owned(values) => Cow::Owned(values[part].to_vec()),
            };
            tensors.push((name, shape.clone(), values));
        }
    }
    let above = folder_of(folder);
    create_folder(above)?;
    let temporary =
        tempfile::Builder::new().prefix(".tmp-").tempdir_in(above).map_err(Error::io("write into", above))?;
    let at = temporary.path();
    let files = [
        (diffusers::PIPELINE.to_string(), Some(diffusers::pipeline())),
        (format!("unet/{}", diffusers::CONFIG), Some(unet.to_json())),
        (format!("unet/{}", diffusers::WEIGHTS), None),
        (format!("scheduler/{}", diffusers::SCHEDULER), Some(process.to_json())),
    ];
    for (name, content) in &files {
        let path = at.join(name);
        create_folder(folder_of(&path))?;
        write_atomic(&path, |w| {
            if let Some(json) = content {
                return serde_json::to_writer_pretty(w, json).map_err(Into::into);
            }
            let mut tensors: Vec<_> =
                tensors.iter().map(|(name, shape, values)| (name.clone(), &shape[..], &values[..])).collect();
            safetensors::write(w, &mut tensors, &BTreeMap::from([("format", "pt".to_string())]), Width::Single)
        })?;
    }
    allow_listing(at).map_err(Error::io("write", folder))?;
    std::fs::rename(at, folder).map_err(Error::io("write", folder))?;
    // What was renamed is no longer the temporary folder's to remove.
    let _ = temporary.keep();
    sync_folder(above);
    Ok(files.iter().map(|(name, _)| folder.join(name)).collect())
}

/// Temporary folders are private; a finished one may be read like any other.
#[cfg(unix)]
fn allow_listing(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn allow_listing(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Rows [heads, parts, …] as [parts, heads, …].
fn parts_first(values: &[f32], heads: usize, parts: usize) -> Vec<f32> {
    let length = values.len() / (heads * parts);
    let chunk = |part, head: usize| &values[(head * parts + part) * length..][..length];
    (0..parts).flat_map(|part| (0..heads).flat_map(move |head| chunk(part, head))).copied().collect()
}
