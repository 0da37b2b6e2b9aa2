//! The network's constructor arguments, derived from the flags and checked.

use super::{Arch, ConfigError, ModelConfig, require};
use ddpm_kernels::HeadOrder;
use ddpm_math::Variance;
use ddpm_net::network::{Family, Heads, NORM_GROUPS, NetworkConfig};

/// The most classes: a network has an embedding of each.
pub(crate) const MOST_CLASSES: usize = 1 << 16;

impl ModelConfig {
    /// The network for images and flags, with a number of output channels by the kind of variance.
    ///
    /// # Errors
    /// Flags that describe no network: each with the flag and what would do.
    pub fn network(&self, variance: Variance) -> Result<NetworkConfig, ConfigError> {
        let m = self;
        let is_ddim = m.arch == Arch::Ddim;
        require(!is_ddim || !m.class_cond, || {
            "the DDIM network has no classes: use --arch adm with --class-cond".into()
        })?;
        require(!is_ddim || !variance.is_learned(), || {
            "the DDIM network learns no variance: use --variance fixed-large or fixed-small".into()
        })?;
        require(m.arch != Arch::Superres || (1..=m.image_size).contains(&m.small_size), || {
            format!(
                "model.small_size = {}: a super-resolution network enlarges images of 1 to {} (--image-size) pixels",
                m.small_size, m.image_size
            )
        })?;
        let mult = channel_mult(m)?;
        let size = m.image_size;
        let levels = mult.len();
        for (key, value, most) in [
            ("image_size", size, 1 << 14),
            ("in_channels", m.in_channels, 1 << 10),
            ("num_channels", m.num_channels, 1 << 14),
            ("num_res_blocks", m.num_res_blocks, 1 << 8),
        ] {
            require((1..=most).contains(&value), || format!("model.{key} = {value}: use 1 to {most}"))?;
        }
        require(m.num_classes <= MOST_CLASSES, || {
            format!("model.num_classes = {}: use at most {MOST_CLASSES}", m.num_classes)
        })?;
        let wrong = mult.iter().find(|f| !(f.is_finite() && (0.0..=64.0).contains(*f) && **f > 0.0));
        require(wrong.is_none() && levels <= 12, || match wrong {
            Some(f) => format!("model.channel_mult has a {f:e}: use multipliers above 0 and up to 64"),
            None => format!("model.channel_mult has {levels} levels: use at most 12"),
        })?;
        require(m.num_head_channels == -1 || m.num_head_channels > 0, || {
            format!("model.num_head_channels = {}: give 1 or more, or -1 to use model.num_heads", m.num_head_channels)
        })?;
        let halvings = u32::try_from(levels - 1).unwrap_or(u32::MAX);
        let factor = 1usize.checked_shl(halvings).unwrap_or(0);
        require(factor > 0 && size.is_multiple_of(factor), || {
            format!(
                "images of size {size} cannot be halved {halvings} times, as the {levels} entries of \
                 model.channel_mult need: use a multiple of {factor} for --image-size or fewer entries for \
                 --channel-mult"
            )
        })?;
        let level_channels: Vec<usize> = mult.iter().map(|f| (f * m.num_channels as f64) as usize).collect();
        for (channels, f) in level_channels.iter().zip(&mult) {
            require(*channels > 0 && channels.is_multiple_of(NORM_GROUPS), || {
                format!(
                    "model.num_channels {} times model.channel_mult {f} is {channels} channels, which {NORM_GROUPS} \
                     normalisation groups do not divide: use a multiple of {NORM_GROUPS} for --num-channels",
                    m.num_channels
                )
            })?;
        }
        let mut attention_factors = Vec::new();
        for &resolution in &m.attention_resolutions {
            require(resolution > 0, || "model.attention_resolutions has a 0: name image sizes such as 16,8".into())?;
            attention_factors.push(size / resolution);
        }
        let heads = |count: i64| -> Result<Heads, ConfigError> {
            let by_channels = usize::try_from(m.num_head_channels).ok();
            Ok(match (by_channels, usize::try_from(count)) {
                (Some(per_head), _) => Heads::Channels(per_head),
                (None, Ok(n)) => Heads::Count(n),
                (None, Err(_)) => {
                    return Err(ConfigError(format!("{count} attention heads are not possible: use at least 1")));
                }
            })
        };
        let (down, up) = if is_ddim {
            (Heads::Count(1), Heads::Count(1))
        } else {
            let up = if m.num_heads_upsample == -1 { m.num_heads as i64 } else { m.num_heads_upsample };
            (heads(m.num_heads as i64)?, heads(up)?)
        };
        for (level, &channels) in level_channels.iter().enumerate() {
            let attends = attention_factors.contains(&(1 << level));
            for (heads, attends) in [(down, attends || level == levels - 1), (up, attends)] {
                require(!attends || heads.divides(channels), || {
                    let (flag, n) = match heads {
                        Heads::Count(n) => ("num_heads", n),
                        Heads::Channels(n) => ("num_head_channels", n),
                    };
                    format!("model.{flag} {n} does not divide the {channels} channels of an attention layer")
                })?;
            }
        }
        require((0.0..1.0).contains(&m.dropout), || format!("model.dropout {} is outside [0, 1)", m.dropout))?;
        Ok(NetworkConfig {
            family: if is_ddim { Family::Ddim } else { Family::Adm },
            in_channels: m.in_channels,
            low_res: m.arch == Arch::Superres,
            out_channels: if variance.is_learned() { 2 * m.in_channels } else { m.in_channels },
            model_channels: m.num_channels,
            level_channels,
            num_res_blocks: m.num_res_blocks,
            attention_factors,
            heads: down,
            heads_up: up,
            head_order: if m.use_new_attention_order { HeadOrder::QkvFirst } else { HeadOrder::HeadsFirst },
            dropout: m.dropout,
            num_classes: m.class_cond.then_some(m.num_classes),
            scale_shift_norm: m.use_scale_shift_norm && !is_ddim,
            resblock_updown: m.resblock_updown && !is_ddim,
            conv_resample: m.conv_resample,
            precision: m.precision,
            use_checkpoint: m.use_checkpoint,
        })
    }
}

/// Multipliers as given, or the reference's by image size.
fn channel_mult(m: &ModelConfig) -> Result<Vec<f64>, ConfigError> {
    if !m.channel_mult.is_empty() {
        return Ok(m.channel_mult.clone());
    }
    Ok(match m.image_size {
        512 if m.arch == Arch::Superres => vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        512 => vec![0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        256 => vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        128 => vec![1.0, 1.0, 2.0, 3.0, 4.0],
        64 => vec![1.0, 2.0, 3.0, 4.0],
        32 => vec![1.0, 2.0, 2.0, 2.0],
        size => {
            return Err(ConfigError(format!(
                "there are no default channel multipliers for images of size {size}: give them, as in --channel-mult \
                 1,2,2"
            )));
        }
    })
}
