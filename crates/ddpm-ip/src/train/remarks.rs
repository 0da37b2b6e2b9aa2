//! What is said of a run's images before it begins.

use super::hook::grid_settings;
use super::run::open_data;
use crate::Error;
use crate::config::{Arch, Config, listed};
use crate::data::{Dataset, Labels};
use crate::diffusion::Diffusion;

/// What would be said of the images of a [resolved](super::resolve) configuration before its run begins.
///
/// # Errors
/// As [`resolve`](super::resolve).
pub fn remarks(config: &Config) -> Result<Vec<String>, Error> {
    remarks_on_data(config, &*open_data(config)?)
}

/// What is to be said about the images of a run before it begins.
pub(super) fn remarks_on_data(config: &Config, dataset: &Dataset) -> Result<Vec<String>, Error> {
    let mut remarks: Vec<String> = dataset.arrays().map(String::from).into_iter().collect();
    let (grey, colour) = dataset.grey_and_colour();
    match (grey, colour, config.model.in_channels) {
        (1.., 0, 3) => remarks.push(
            "the images are grey, and are trained on as three equal channels: --in-channels 1 takes one".to_string(),
        ),
        (0, 1.., 1) => {
            remarks.push("the images are in colour, and are made grey: --in-channels 3 keeps it".to_string());
        }
        (1.., 1.., channels) => remarks.push(format!(
            "{grey} images are grey and {colour} in colour: all are {}",
            if channels == 1 { "made grey; --in-channels 3 keeps colour" } else { "trained on in colour" }
        )),
        _ => {}
    }
    let untrained = &config.classes.untrained;
    if !untrained.is_empty() {
        let count = if config.model.arch == Arch::Classifier {
            config.classifier.num_classes
        } else {
            config.model.num_classes
        };
        remarks.push(format!(
            "{} of the {count} classes have no images and are not learned: {}",
            untrained.len(),
            listed(untrained)
        ));
    }
    let (steps, kept) = (
        config.diffusion.diffusion_steps,
        Diffusion::new(&config.diffusion, &config.diffusion.timestep_respacing)?.schedule.len(),
    );
    if kept < steps {
        let respacing = &config.diffusion.timestep_respacing;
        let grids = Config { sample: grid_settings(config), ..config.clone() };
        let drawn = if grids.check_timesteps().is_err() { ". The run's own grids are drawn at others" } else { "" };
        remarks.push(format!(
            "--timestep-respacing {respacing} trains only {kept} of the {steps} timesteps, and samples can be drawn \
             only at those{drawn}. To train all of them and sample in {kept} steps, leave it out here and give it to \
             `sample`"
        ));
    }
    Ok(remarks)
}

/// Which class is which, where the names of files say it as in the reference.
pub(super) fn classes_by_prefix(config: &Config, dataset: &Dataset) -> Option<String> {
    if dataset.class_names().is_empty() || config.data.labels == Labels::Folder {
        return None;
    }
    Some(format!("classes are file names up to the first `_`, sorted: {}", config.classes.describe()?))
}
