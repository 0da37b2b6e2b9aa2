//! Reading an architecture off names and shapes.

use crate::checkpoint::TensorInfo;
use crate::config::{Arch, Pool};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use toml::{Table, Value};

/// What the tensors of a network tell of its flags. Heads, attention order, dropout and everything of the diffusion process
/// leave no trace in them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Architecture {
    /// `--arch`.
    pub arch: Arch,
    /// `--in-channels`.
    pub in_channels: usize,
    /// `--image-size`, which only a classifier with attention pooling shows.
    pub image_size: Option<usize>,
    /// `--num-channels`.
    pub num_channels: usize,
    /// `--num-res-blocks`.
    pub num_res_blocks: usize,
    /// `--channel-mult`.
    pub channel_mult: Vec<f64>,
    /// Downsampling factors with attention: `--attention-resolutions` are the image size divided by these.
    pub attention_factors: Vec<usize>,
    /// `--num-classes`, for a class-conditional network or a classifier.
    pub num_classes: Option<usize>,
    /// Whether the output has room for a learned variance.
    pub learn_sigma: bool,
    /// `--use-scale-shift-norm`.
    pub use_scale_shift_norm: bool,
    /// `--resblock-updown`; unknown for a network of one level.
    pub resblock_updown: Option<bool>,
    /// `--conv-resample`; unknown where residual blocks resample.
    pub conv_resample: Option<bool>,
    /// `--classifier-pool`.
    pub pool: Option<Pool>,
}

/// Shapes by name.
struct Shapes<'a>(HashMap<&'a str, &'a [usize]>);

impl Shapes<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn dim(&self, name: &str, i: usize) -> Option<usize> {
        self.0.get(name).and_then(|s| s.get(i).copied())
    }

    /// How many of a sequence of names there are, from 0 on.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..self.0.len()).take_while(|&i| self.has(&name(i))).count()
    }

    /// Whether there is anything under a name.
    fn any_below(&self, prefix: &str) -> bool {
        self.0.keys().any(|name| name.starts_with(prefix))
    }
}

/// The architecture, if the tensors are those of a network that is known.
pub fn infer(tensors: &[TensorInfo]) -> Option<Architecture> {
    let shapes = Shapes(tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect());
    if shapes.has("conv_in.weight") {
        return infer_ddim(&shapes);
    }
    let num_channels = shapes.dim("time_embed.0.weight", 1).filter(|&n| n > 0)?;
    if shapes.has("output_blocks.0.0.in_layers.0.weight") {
        infer_unet(&shapes, num_channels)
    } else {
        infer_classifier(&shapes, num_channels)
    }
}

/// What the levels of an ADM network's way down tell, given how it is cut into levels.
struct WayDown {
    channels: Vec<usize>,
    attention_factors: Vec<usize>,
    scale_shift_norm: bool,
}

impl WayDown {
    fn read(shapes: &Shapes, levels: usize, num_res_blocks: usize) -> Option<Self> {
        let first_of = |level: usize| format!("input_blocks.{}", 1 + level * (num_res_blocks + 1));
        let channels: Vec<usize> = (0..levels)
            .map(|l| shapes.dim(&format!("{}.0.out_layers.0.weight", first_of(l)), 0))
            .collect::<Option<_>>()?;
        let attends = |l: &usize| shapes.has(&format!("{}.1.qkv.weight", first_of(*l)));
        let scales = shapes.dim(&format!("{}.0.emb_layers.1.weight", first_of(0)), 0)? == 2 * channels[0];
        let attention_factors = (0..levels).filter(attends).map(|l| 1 << l).collect();
        Some(Self { channels, attention_factors, scale_shift_norm: scales })
    }
}

fn multipliers(channels: &[usize], num_channels: usize) -> Vec<f64> {
    channels.iter().map(|&c| c as f64 / num_channels as f64).collect()
}

fn infer_unet(shapes: &Shapes, num_channels: usize) -> Option<Architecture> {
    let input_channels = shapes.dim("input_blocks.0.0.weight", 1)?;
    let outputs = shapes.count(|i| format!("output_blocks.{i}.0.in_layers.0.weight"));
    // The last block of every level but the outermost ends in a change of size.
    let part =
        |i: usize, layer: &str| [1, 2].iter().any(|j| shapes.has(&format!("output_blocks.{i}.{j}.{layer}.weight")));
    let by_res = (0..outputs).filter(|&i| part(i, "in_layers.0")).count();
    let by_conv = (0..outputs).filter(|&i| part(i, "conv")).count();
    let (ups, resblock_updown, conv_resample) = match (by_res, by_conv) {
        (0, 0) => {
            // Plain resampling without parameters: blocks missing from the numbering of the way down.
            let gaps = (1..outputs).filter(|i| !shapes.any_below(&format!("input_blocks.{i}."))).count();
            (gaps, (gaps > 0).then_some(false), (gaps > 0).then_some(false))
        }
        (0, n) => (n, Some(false), Some(true)),
        (n, _) => (n, Some(true), None),
    };
    let levels = ups + 1;
    let num_res_blocks = (outputs / levels).checked_sub(1)?;
    let down = WayDown::read(shapes, levels, num_res_blocks)?;
    // A super-resolution network takes two images; grey and colour images have odd numbers of channels.
    let (arch, in_channels) = match input_channels {
        2 | 6 => (Arch::Superres, input_channels / 2),
        n => (Arch::Adm, n),
    };
    Some(Architecture {
        arch,
        in_channels,
        image_size: None,
        num_channels,
        num_res_blocks,
        channel_mult: multipliers(&down.channels, num_channels),
        attention_factors: down.attention_factors,
        num_classes: shapes.dim("label_emb.weight", 0),
        learn_sigma: shapes.dim("out.2.weight", 0)? == 2 * in_channels,
        use_scale_shift_norm: down.scale_shift_norm,
        resblock_updown,
        conv_resample,
        pool: None,
    })
}

fn infer_classifier(shapes: &Shapes, num_channels: usize) -> Option<Architecture> {
    let has_norm = shapes.0.get("out.1.weight").is_some_and(|shape| shape.len() == 1);
    let (pool, last) = if shapes.has("out.2.positional_embedding") {
        (Pool::Attention, "out.2.c_proj.weight")
    } else if has_norm {
        (Pool::SpatialV2, "out.3.weight")
    } else if shapes.has("out.3.weight") {
        (Pool::Adaptive, "out.3.weight")
    } else {
        (Pool::Spatial, "out.2.weight")
    };
    let blocks = 1 + (0..shapes.0.len()).rev().find(|i| shapes.any_below(&format!("input_blocks.{i}.")))?;
    let convs = (1..blocks).filter(|i| shapes.has(&format!("input_blocks.{i}.0.op.weight"))).count();
    let width = |i: usize| shapes.dim(&format!("input_blocks.{i}.0.out_layers.0.weight"), 0);
    // blocks = levels · (depth + 1); a residual block that changes the size looks like others, but that it keeps the channels
    // and is without attention. Of several readings the one with the most levels.
    let fits = |levels: usize, depth: usize| {
        (0..levels).all(|level| {
            let first = 1 + level * (depth + 1);
            let alike = (first..first + depth).all(|i| width(i).is_some() && width(i) == width(first));
            let resize = first + depth;
            let plain = !shapes.has(&format!("input_blocks.{resize}.1.qkv.weight"))
                && (width(resize).is_none() || width(resize) == width(first));
            alike && (level + 1 == levels || plain)
        })
    };
    let readings = (1..blocks).rev().filter(|levels| blocks.is_multiple_of(*levels));
    let mut readings = readings.map(|levels| (levels, blocks / levels - 1)).filter(|&(_, depth)| depth > 0);
    let (levels, num_res_blocks) = readings.find(|&(levels, depth)| fits(levels, depth))?;
    let down = WayDown::read(shapes, levels, num_res_blocks)?;
    let positions = shapes.dim("out.2.positional_embedding", 1);
    Some(Architecture {
        arch: Arch::Classifier,
        in_channels: shapes.dim("input_blocks.0.0.weight", 1)?,
        image_size: positions.map(|n| n.saturating_sub(1).isqrt() << (levels - 1)),
        num_channels,
        num_res_blocks,
        channel_mult: multipliers(&down.channels, num_channels),
        attention_factors: down.attention_factors,
        num_classes: Some(shapes.dim(last, 0)?),
        learn_sigma: false,
        use_scale_shift_norm: down.scale_shift_norm,
        resblock_updown: (levels > 1).then_some(convs == 0),
        conv_resample: (convs > 0).then_some(true),
        pool: Some(pool),
    })
}

fn infer_ddim(shapes: &Shapes) -> Option<Architecture> {
    let num_channels = shapes.dim("conv_in.weight", 0).filter(|&n| n > 0)?;
    let in_channels = shapes.dim("conv_in.weight", 1)?;
    let levels = shapes.count(|l| format!("down.{l}.block.0.conv1.weight"));
    let channels: Vec<usize> =
        (0..levels).map(|l| shapes.dim(&format!("down.{l}.block.0.conv1.weight"), 0)).collect::<Option<_>>()?;
    let attends = |l: &usize| shapes.has(&format!("down.{l}.attn.0.q.weight"));
    Some(Architecture {
        arch: Arch::Ddim,
        in_channels,
        image_size: None,
        num_channels,
        num_res_blocks: shapes.count(|i| format!("down.0.block.{i}.conv1.weight")),
        channel_mult: multipliers(&channels, num_channels),
        attention_factors: (0..levels).filter(attends).map(|l| 1 << l).collect(),
        num_classes: None,
        learn_sigma: shapes.dim("conv_out.weight", 0)? == 2 * in_channels,
        use_scale_shift_norm: false,
        resblock_updown: Some(false),
        conv_resample: (levels > 1).then(|| shapes.has("down.0.downsample.conv.weight")),
        pool: None,
    })
}

impl Architecture {
    /// What is known, as settings to begin from; attention by the image size, where that is known or given.
    pub fn settings(&self, image_size: Option<usize>) -> Table {
        let integer = |v: usize| Value::Integer(v as i64);
        let mut model = Table::new();
        let arch = Value::try_from(self.arch).expect("a name");
        model.extend([("arch".to_string(), arch), ("in_channels".to_string(), integer(self.in_channels))]);
        let image_size = self.image_size.or(image_size);
        model.extend(image_size.map(|size| ("image_size".to_string(), integer(size))));
        let mut network = vec![
            ("channel_mult", Value::Array(self.channel_mult.iter().map(|&m| Value::Float(m)).collect())),
            ("use_scale_shift_norm", Value::Boolean(self.use_scale_shift_norm)),
        ];
        network.extend(self.resblock_updown.map(|v| ("resblock_updown", Value::Boolean(v))));
        network.extend(self.num_classes.map(|n| ("num_classes", integer(n))));
        network.extend(image_size.map(|size| {
            let resolutions = self.attention_factors.iter().map(|f| integer(size / f)).collect();
            ("attention_resolutions", Value::Array(resolutions))
        }));
        let mut table = Table::new();
        if self.arch == Arch::Classifier {
            network.extend([("width", integer(self.num_channels)), ("depth", integer(self.num_res_blocks))]);
            network.extend(self.pool.map(|pool| ("pool", Value::try_from(pool).expect("a name"))));
            table.insert("classifier".into(), Value::Table(owned(network)));
        } else {
            network.extend([
                ("num_channels", integer(self.num_channels)),
                ("num_res_blocks", integer(self.num_res_blocks)),
                ("class_cond", Value::Boolean(self.num_classes.is_some())),
            ]);
            network.extend(self.conv_resample.map(|v| ("conv_resample", Value::Boolean(v))));
            model.extend(owned(network));
            if self.learn_sigma {
                let variance = owned(vec![("variance", Value::String("learned-range".into()))]);
                table.insert("diffusion".into(), Value::Table(variance));
            }
        }
        table.insert("model".into(), Value::Table(model));
        table
    }
}

fn owned(entries: Vec<(&str, Value)>) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

impl Display for Architecture {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let list = |v: &[f64]| v.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let known = |v: Option<bool>| v.map_or("leaves no trace".into(), |v| v.to_string());
        let name = Value::try_from(self.arch).map_or(String::new(), |v| v.as_str().unwrap_or_default().to_string());
        writeln!(f, "  arch                  {name}")?;
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
        if let Some(pool) = self.pool {
            writeln!(f, "  pool                  {}", Value::try_from(pool).unwrap_or(Value::Boolean(false)))?;
        }
        let unseen = "attention heads and their order, dropout, the diffusion process";
        match self.image_size {
            Some(size) => write!(f, "  image_size            {size}\n  Not visible in the tensors: {unseen}."),
            None => write!(f, "  Not visible in the tensors: image size, {unseen}."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, PRESETS};
    use crate::train;

    fn tensors(config: &Config) -> Vec<TensorInfo> {
        let task = train::Task::new(config, ddpm_net::Device::Cpu).unwrap();
        let info =
            |s: &ddpm_net::Spec| TensorInfo { name: s.name.clone(), shape: s.shape.clone(), dtype: "F32".into() };
        task.specs().iter().map(info).collect()
    }

    /// A configuration with settings inferred from another's tensors.
    fn read_back(config: &Config) -> Config {
        let inferred = infer(&tensors(config)).unwrap().settings(Some(config.model.image_size));
        let mut layers = crate::config::Layers::default();
        layers.add(inferred).unwrap();
        layers.resolve().unwrap()
    }

    #[test]
    fn presets_are_read_back() {
        for preset in PRESETS {
            let mut config = preset.config();
            config.model.num_classes = if config.model.class_cond { 10 } else { 0 };
            let again = read_back(&config);
            let specs = |config: &Config| train::Task::new(config, ddpm_net::Device::Cpu).unwrap().specs().to_vec();
            assert_eq!(specs(&again), specs(&config), "{}", preset.name);
            assert_eq!(again.model.attention_resolutions, config.model.attention_resolutions, "{}", preset.name);
            assert_eq!(again.model.class_cond, config.model.class_cond);
        }
    }

    #[test]
    fn other_networks_are_read_back() {
        let classifier = "[model]\narch = 'classifier'\nimage_size = 64\n[classifier]\nnum_classes = 1000\nwidth = 64";
        for (settings, lines) in [
            (classifier, vec!["pool = 'attention'", "pool = 'spatial'\ndepth = 1", "resblock_updown = false"]),
            (classifier, vec!["pool = 'adaptive'\nuse_scale_shift_norm = false", "pool = 'spatial_v2'\ndepth = 4"]),
            (
                "[model]\narch = 'superres'\nsmall_size = 16\nnum_channels = 32",
                vec!["", "class_cond = true\nnum_classes = 3"],
            ),
            (
                "[model]\narch = 'ddim'\nnum_channels = 32",
                vec!["", "conv_resample = false\nattention_resolutions = [16]"],
            ),
        ] {
            for line in lines {
                let config = Config::from_toml(&format!("{settings}\n{line}")).unwrap();
                let again = read_back(&config);
                let specs = |config: &Config| train::Task::new(config, ddpm_net::Device::Cpu).unwrap().specs().to_vec();
                assert!(specs(&again) == specs(&config), "{settings} {line}: {:?}", infer(&tensors(&config)));
                assert_eq!(again.model.arch, config.model.arch);
            }
        }
        let mut config = Config::from_toml(classifier).unwrap();
        assert_eq!(infer(&tensors(&config)).unwrap().image_size, Some(64));
        config.model.image_size = 128;
        assert_eq!(infer(&tensors(&config)).unwrap().image_size, Some(128));
    }

    #[test]
    fn plain_resampling_is_told_apart() {
        let mut config = PRESETS[0].config();
        config.model.num_classes = 10;
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
