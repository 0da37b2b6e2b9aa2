//! One network call on given input: the tool for anyone who ports or checks a model.

use crate::config::{Config, ConfigError, NetworkConfig};
use crate::file::write_atomic;
use crate::model::{Unet, host_values};
use crate::npz::{Npz, NpzWriter};
use crate::{Error, checkpoint};
use burn::tensor::{Device, Tensor, TensorData};
use std::path::Path;

/// Runs the network of `checkpoint` once on the arrays `x` `[N, C, H, W]`, `t` `[N]` (times as the network sees them)
/// and, for a network with classes, `y` `[N]` of `input`, and writes the array `out`. Returns `out`'s shape.
///
/// # Errors
/// Flags that describe no network or another one than the checkpoint's, arrays of the wrong shape, failing reads or
/// writes.
pub fn predict(
    checkpoint: &Path,
    config: &Config,
    input: &Path,
    output: &Path,
    device: &Device,
) -> Result<Vec<usize>, Error> {
    let file = checkpoint::resolve(checkpoint)?;
    let config = checkpoint::with_classes(config, &file)?;
    let network = Unet::new(NetworkConfig::new(&config.model, config.diffusion.variance)?);
    let parameters = checkpoint::load(&file, network.specs(), device)?;
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
    let labels = match network.config().num_classes {
        Some(classes) => {
            let y = npz.integers("y")?;
            if y.values.len() != n {
                return Err(wrong(format!("`y` has {} values for {n} images in `x`", y.values.len())));
            }
            let labels = y.values.iter().map(|&l| u32::try_from(l).ok().filter(|&l| (l as usize) < classes));
            Some(
                labels
                    .collect::<Option<Vec<u32>>>()
                    .ok_or_else(|| wrong(format!("`y` holds a label outside 0 … {}", classes.saturating_sub(1))))?,
            )
        }
        None if npz.has("y") => {
            return Err(
                ConfigError("the input has labels `y`, but the network has no classes (--class-cond)".into()).into()
            );
        }
        None => None,
    };
    let x = Tensor::<4>::from_data(TensorData::new(x.values, [n, c, h, w]), device);
    let out = network.forward(&parameters, x, &t, labels.as_deref(), None);
    let shape = out.dims().to_vec();
    let values = host_values(out);
    write_atomic(output, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("out", &shape, |push| push(&values))?;
        npz.finish()
    })?;
    Ok(shape)
}
