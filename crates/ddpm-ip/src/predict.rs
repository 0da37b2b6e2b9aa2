//! One network call on given input: the tool for anyone who ports or checks a model.

use crate::Error;
use crate::checkpoint::Loaded;
use crate::config::{Config, ConfigError};
use crate::file::{create_folder, folder_of, write_atomic};
use crate::npz::{Array, Npz, NpzWriter};
use crate::{low_res, memory};
use ddpm_net::{Device, Feed};
use std::path::Path;

/// What a network is called on.
#[derive(Clone, Debug)]
pub struct Input {
    /// Images `[N, C, H, W]`.
    pub x: Array<f32>,
    /// Times `[N]` as the network sees them.
    pub t: Vec<f32>,
    /// Classes `[N]`, for a network with classes.
    pub y: Option<Vec<i64>>,
    /// Small images `[N, C, h, h]`, for a network of super-resolution.
    pub low_res: Option<Array<f32>>,
}

/// The answer `[N, C or 2C, H, W]` of a network, or a classifier's logits `[N, classes]`.
///
/// # Errors
/// Arrays of shapes or values that the network does not take; the message names the array.
pub fn call(loaded: &Loaded, input: &Input) -> Result<Array<f32>, ConfigError> {
    let (config, task) = (&loaded.config, &loaded.task);
    let network = task.network();
    let wrong = |message: String| Err(ConfigError(message));
    let x = &input.x;
    let &[n, c, h, w] = x.shape.as_slice() else {
        return wrong(format!("`x` has shape {:?}, expected [N, C, H, W]", x.shape));
    };
    let halvings = network.config().level_channels.len() - 1;
    if n == 0 || h == 0 || w == 0 || c != network.config().in_channels || (h | w) % (1 << halvings) != 0 {
        let expected = network.config().in_channels;
        return wrong(format!(
            "`x` has shape {:?}; the network takes {expected} channels and sides that are multiples of {}",
            x.shape,
            1 << halvings
        ));
    }
    let t = &input.t;
    if t.len() != n {
        return wrong(format!("`t` has {} values for {n} images in `x`", t.len()));
    }
    let labels = labels(input.y.as_deref(), network.config().num_classes, n)?;
    let low_res = match (&input.low_res, network.config().low_res) {
        (None, false) => None,
        (Some(small), true) => {
            let Some(enlarged) = enlarged(small, [n, c, h, w]) else {
                let expected = format!("expected [{n}, {c}, h, h] for the square images of `x` {:?}", x.shape);
                return wrong(format!("`low_res` has shape {:?}, {expected}", small.shape));
            };
            Some(enlarged)
        }
        (None, true) => return wrong("`low_res` is missing: the network enlarges images [N, C, h, h]".into()),
        (Some(_), false) => return wrong("there is a `low_res`, but the network enlarges no images".into()),
    };
    let size = config.model.image_size;
    if task.unet().is_none() && [h, w] != [size, size] {
        return wrong(format!("`x` has images of {w}x{h}; this classifier takes {size}x{size}"));
    }
    for (name, values) in [("x", &x.values), ("t", t)] {
        if !values.iter().all(|v| v.is_finite()) {
            return wrong(format!("`{name}` holds a value that is not finite"));
        }
    }
    // A batch that nobody has drawn so far may be too large.
    if task.unet().is_some() && n > config.sample.batch_size {
        let mut wanted = config.clone();
        (wanted.sample.batch_size, wanted.sample.num_samples) = (n, n);
        let machine = if loaded.device() == Device::Cpu { memory::of_machine() } else { None };
        memory::check_sampling(&wanted, machine)?;
    }
    let feed = Feed { labels: labels.as_deref(), low_res: low_res.as_deref(), ..Feed::new(&x.values, [h, w], t) };
    let values = task.forward(&loaded.parameters, feed);
    let outputs = network.config().out_channels;
    let shape = if task.unet().is_some() { vec![n, outputs, h, w] } else { vec![n, outputs] };
    Ok(Array { shape, values })
}

/// Runs the network of `checkpoint` once on the arrays `x`, `t`, `y` and `low_res` of the npz `input`, those of [`Input`], and
/// writes the array `out`. Returns `out`'s shape.
///
/// # Errors
/// Flags that describe no network or another one than the checkpoint's, arrays of the wrong shape, failing reads or
/// writes.
pub fn predict(
    checkpoint: &Path,
    config: &Config,
    input: &Path,
    output: &Path,
    device: Device,
) -> Result<Vec<usize>, Error> {
    // Another answer may be replaced.
    if output.exists() && !Npz::open(output).is_ok_and(|npz| npz.names() == ["out"]) {
        let message =
            format!("{} exists and is no earlier answer: choose another --output, or remove it", output.display());
        return Err(ConfigError(message).into());
    }
    let loaded = Loaded::open(checkpoint, config, device)?;
    let mut npz = Npz::open(input)?;
    let t = match npz.integers("t") {
        Ok(t) => t.values.into_iter().map(|t| t as f32).collect(),
        Err(_) => npz.floats("t")?.values,
    };
    let wanted = loaded.task.network().config();
    let (classes, enlarges) = (wanted.num_classes.is_some(), wanted.low_res);
    let arrays = Input {
        x: npz.floats("x")?,
        t,
        y: if classes || npz.has("y") { Some(npz.integers("y")?.values) } else { None },
        low_res: if enlarges { Some(npz.floats("low_res")?) } else { None },
    };
    let Array { shape, values } = call(&loaded, &arrays).map_err(|e| Error::file(input, e.0))?;
    create_folder(folder_of(output))?;
    write_atomic(output, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("out", &shape, |push| push(&values))?;
        npz.finish()
    })?;
    Ok(shape)
}

/// The labels of a network with so many classes.
fn labels(y: Option<&[i64]>, classes: Option<usize>, count: usize) -> Result<Option<Vec<u32>>, ConfigError> {
    let (y, classes) = match (y, classes) {
        (None, None) => return Ok(None),
        (Some(y), Some(classes)) => (y, classes),
        (Some(_), None) => {
            return Err(ConfigError("there are labels `y`, but the network has no classes (--class-cond)".into()));
        }
        (None, Some(classes)) => {
            return Err(ConfigError(format!("labels `y` are missing: the network has {classes} classes")));
        }
    };
    if y.len() != count {
        return Err(ConfigError(format!("`y` has {} values for {count} images in `x`", y.len())));
    }
    let labels = y.iter().map(|&l| u32::try_from(l).ok().filter(|&l| (l as usize) < classes));
    let labels = labels.collect::<Option<Vec<u32>>>();
    labels.map(Some).ok_or_else(|| ConfigError(format!("`y` holds a label outside 0 … {}", classes.saturating_sub(1))))
}

/// Small images as the network sees them, if they fit.
fn enlarged(small: &Array<f32>, [n, c, h, w]: [usize; 4]) -> Option<Vec<f32>> {
    let side = small.shape.last().copied().filter(|&side| side > 0 && h == w)?;
    if small.shape != [n, c, side, side] {
        return None;
    }
    Some(low_res::enlarge(&small.values, side, h))
}
