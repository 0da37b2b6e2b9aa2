//! One network call on given input: the tool for anyone who ports or checks a model.

use crate::config::{Config, ConfigError};
use crate::file::write_atomic;
use crate::low_res;
use crate::npz::{Array, Npz, NpzWriter};
use crate::train::Task;
use crate::{Error, checkpoint};
use ddpm_net::{Device, Feed};
use std::path::Path;

/// Runs the network of `checkpoint` once on the arrays `x` `[N, C, H, W]`, `t` `[N]` (times as the network sees them),
/// for a network with classes `y` `[N]`, and for one of super-resolution `low_res` `[N, C, h, w]`, of `input`, and writes
/// the array `out`: `[N, C or 2C, H, W]`, or a classifier's logits `[N, classes]`. Returns `out`'s shape.
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
    let file = checkpoint::resolve(checkpoint)?;
    let config = checkpoint::with_classes(config, &file)?;
    let task = Task::new(&config, device)?;
    let parameters = checkpoint::load_network(&file, task.layout(), &config)?;
    let network = task.network();
    let mut npz = Npz::open(input)?;
    let x = npz.floats("x")?;
    let wrong = |message: String| Error::file(input, message);
    let &[n, c, h, w] = x.shape.as_slice() else {
        return Err(wrong(format!("`x` has shape {:?}, expected [N, C, H, W]", x.shape)));
    };
    let halvings = network.config().level_channels.len() - 1;
    if n == 0 || h == 0 || w == 0 || c != network.config().in_channels || (h | w) % (1 << halvings) != 0 {
        let expected = network.config().in_channels;
        return Err(wrong(format!(
            "`x` has shape {:?}; the network takes {expected} channels and sides that are multiples of {}",
            x.shape,
            1 << halvings
        )));
    }
    let t: Vec<f32> = match npz.integers("t") {
        Ok(t) => t.values.into_iter().map(|t| t as f32).collect(),
        Err(_) => npz.floats("t")?.values,
    };
    if t.len() != n {
        return Err(wrong(format!("`t` has {} values for {n} images in `x`", t.len())));
    }
    let labels = labels(&mut npz, network.config().num_classes, n, input)?;
    let low_res = if network.config().low_res {
        let small = npz.floats("low_res")?;
        Some(enlarged(&small, [n, c, h, w]).ok_or_else(|| {
            let expected = format!("expected [{n}, {c}, h, h] for the square images of `x` {:?}", x.shape);
            wrong(format!("`low_res` has shape {:?}, {expected}", small.shape))
        })?)
    } else {
        None
    };
    let feed = Feed { labels: labels.as_deref(), low_res: low_res.as_deref(), ..Feed::new(&x.values, [h, w], &t) };
    let size = config.model.image_size;
    if task.unet().is_none() && [h, w] != [size, size] {
        return Err(wrong(format!("`x` has images of {w}x{h}; this classifier takes {size}x{size}")));
    }
    let values = task.forward(&parameters, feed);
    let outputs = network.config().out_channels;
    let shape = if task.unet().is_some() { vec![n, outputs, h, w] } else { vec![n, outputs] };
    write_atomic(output, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("out", &shape, |push| push(&values))?;
        npz.finish()
    })?;
    Ok(shape)
}

/// The labels `y` of a network with classes.
fn labels(npz: &mut Npz, classes: Option<usize>, count: usize, input: &Path) -> Result<Option<Vec<u32>>, Error> {
    let wrong = |message: String| Error::file(input, message);
    let Some(classes) = classes else {
        if npz.has("y") {
            let message = "the input has labels `y`, but the network has no classes (--class-cond)";
            return Err(ConfigError(message.into()).into());
        }
        return Ok(None);
    };
    let y = npz.integers("y")?;
    if y.values.len() != count {
        return Err(wrong(format!("`y` has {} values for {count} images in `x`", y.values.len())));
    }
    let labels = y.values.iter().map(|&l| u32::try_from(l).ok().filter(|&l| (l as usize) < classes));
    let labels = labels.collect::<Option<Vec<u32>>>();
    labels.map(Some).ok_or_else(|| wrong(format!("`y` holds a label outside 0 … {}", classes.saturating_sub(1))))
}

/// Small images as the network sees them, if they fit.
fn enlarged(small: &Array<f32>, [n, c, h, w]: [usize; 4]) -> Option<Vec<f32>> {
    let side = small.shape.last().copied().filter(|&side| side > 0 && h == w)?;
    if small.shape != [n, c, side, side] {
        return None;
    }
    Some(low_res::enlarge(&small.values, side, h))
}
