//! The reference's checkpoints: `model000100.pt`, `ema_0.9999_000100.pt` and `opt000100.pt`, side by side.

use super::{Progress, State, tensors};
use crate::Error;
use crate::config::{ConfigError, TrainConfig};
use crate::file::{create_folder, folder_of, write_atomic};
use crate::torch::{self, Moment, Optimizer, OptimizerEntries, Tensor, TorchFile};
use ddpm_net::{Layout, Parameters, Spec};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Loads a network's parameters from a file of PyTorch's.
fn load(path: &Path, layout: &Arc<Layout>) -> Result<Parameters, Error> {
    super::load(path, layout, "")
}

/// A model file with the averages and the optimizer that belong to it.
pub struct Trio {
    model: PathBuf,
    /// The step in the file's name.
    step: u64,
}

impl Trio {
    /// The trio of a file named as the reference names a model.
    ///
    /// # Errors
    /// A file of another name.
    pub fn new(model: &Path) -> Result<Self, Error> {
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        let digits = name.strip_prefix("model").and_then(|name| name.strip_suffix(".pt"));
        let step = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit())).and_then(|digits| digits.parse().ok());
        let other = || {
            let message = "is not named like model000100.pt, which says the step: name that file; ema_*.pt and \
                           opt*.pt are looked for beside it. To resume from a checkpoint of a run, use \
                           --resume-checkpoint RUN/checkpoints/step_N --out NEW. To start a new run from any \
                           parameters, use --init-from";
            Error::file(model, message)
        };
        Ok(Self { model: model.to_path_buf(), step: step.ok_or_else(other)? })
    }

    /// Rates of the averages that lie beside the model, with commas.
    fn rates_beside(&self) -> String {
        let files = folder_of(&self.model).read_dir().into_iter().flatten().flatten();
        let end = format!("_{:06}.pt", self.step);
        let rate = |name: String| Some(name.strip_prefix("ema_")?.strip_suffix(&end)?.parse::<f64>().ok()?.to_string());
        let mut rates: Vec<String> = files.filter_map(|file| rate(file.file_name().into_string().ok()?)).collect();
        rates.sort();
        rates.join(",")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.model.with_file_name(name)
    }

    /// Everything that continues the reference's run of this trio, and what is to be said about it: averages that are not
    /// there begin at the parameters. `batch_size` tells how many images were seen.
    ///
    /// # Errors
    /// Missing or damaged files, parameters or moments of another network.
    pub fn load(&self, layout: &Arc<Layout>, rates: &[f64], batch_size: usize) -> Result<(State, Vec<String>), Error> {
        let parameters = load(&self.model, layout)?;
        let mut remarks = Vec::new();
        let mut ema = Vec::new();
        for &rate in rates {
            let path = self.beside(&format!("ema_{rate}_{:06}.pt", self.step));
            let average = if path.exists() {
                load(&path, layout)?
            } else {
                let (there, path) = (self.rates_beside(), path.display());
                let advice =
                    if there.is_empty() { String::new() } else { format!("; --ema-rate {there} takes those that are") };
                remarks.push(format!("{path} is not there: this EMA starts at the parameters{advice}"));
                parameters.clone()
            };
            ema.push((rate, average));
        }
        let path = self.beside(&format!("opt{:06}.pt", self.step));
        if !path.exists() {
            let message = "is not there, and the run cannot resume without it. To start a new run from the \
                           parameters, use --init-from";
            return Err(Error::file(&path, message));
        }
        let mut file = TorchFile::open(&path)?;
        let optimizer = file.optimizer()?;
        let moments = moments(&path, &mut file, &optimizer, layout)?;
        let updates = optimizer.steps.first().copied().unwrap_or(0);
        if optimizer.steps.iter().any(|&steps| steps != updates) {
            return Err(Error::file(&path, "has made different numbers of steps for different parameters"));
        }
        // model000100.pt is written after update 101, or at a run's end after update 100. A resumed run repeats a step, and
        // one in half precision leaves some out.
        let step = if updates == self.step { self.step } else { self.step.saturating_add(1) };
        let progress = Progress {
            step,
            images: step * batch_size as u64,
            updates: (updates != step).then_some(updates),
            ..Progress::default()
        };
        if let Some(updates) = progress.updates {
            remarks.push(format!("{} has made {updates} updates, not {step}", path.display()));
        }
        Ok((State { progress, parameters, ema, posthoc: Vec::new(), moments }, remarks))
    }
}

/// AdamW's moments, parameter by parameter: as they are saved, or cut from the two flat tensors of a run in half precision,
/// one of all vectors and one of all else.
fn moments(
    path: &Path,
    file: &mut TorchFile,
    optimizer: &Optimizer,
    layout: &Arc<Layout>,
) -> Result<[Parameters; 2], Error> {
    let specs = layout.specs();
    let of_spec = |tensor: &Tensor, spec: &Spec| tensor.shape() == spec.shape;
    let each =
        optimizer.exp_avg.len() == specs.len() && optimizer.exp_avg.iter().zip(specs).all(|(t, s)| of_spec(t, s));
    let is_vector = |spec: &Spec| spec.shape.len() <= 1;
    let flat: Vec<usize> =
        [true, false].map(|vector| specs.iter().filter(|s| is_vector(s) == vector).map(Spec::len).sum()).into();
    let counts: Vec<usize> = optimizer.exp_avg.iter().map(Tensor::count).collect();
    if !each && counts != flat {
        let message = format!(
            "is the optimizer of another network: it has moments of {} tensors with {} values, but the network has \
             {} with {}",
            counts.len(),
            counts.iter().sum::<usize>(),
            specs.len(),
            flat.iter().sum::<usize>()
        );
        return Err(Error::file(path, message));
    }
    let mut read = |list: &[Tensor]| -> Result<Parameters, Error> {
        let values = list.iter().map(|tensor| file.floats(tensor)).collect::<Result<Vec<_>, _>>()?;
        let values = if each { values } else { cut(&values, specs, is_vector) };
        let named = specs.iter().zip(values).map(|(spec, values)| tensors::finite(path, &spec.name, values));
        Ok(Parameters::from_values(layout, &named.collect::<Result<Vec<_>, _>>()?))
    };
    Ok([read(&optimizer.exp_avg)?, read(&optimizer.exp_avg_sq)?])
}

/// Parameters cut from two lists: that of vectors, and that of all else.
fn cut(lists: &[Vec<f32>], specs: &[Spec], is_vector: impl Fn(&Spec) -> bool) -> Vec<Vec<f32>> {
    let mut taken = [0, 0];
    let one = |spec: &Spec| {
        let list = usize::from(!is_vector(spec));
        let from = taken[list];
        taken[list] += spec.len();
        lists[list][from..taken[list]].to_vec()
    };
    specs.iter().map(one).collect()
}

/// Writes parameters as the reference's model files hold them.
///
/// # Errors
/// What writing says.
pub fn write_model(path: &Path, parameters: &Parameters) -> Result<(), Error> {
    let specs = parameters.layout().specs();
    let entries: Vec<_> = specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
    write_atomic(path, |w| torch::write_state_dict(w, &entries, |i| parameters.get(i)))
}

/// Writes a state into a folder as the reference does: averages, optimizer and, when these are there, the model. Returns the
/// files, the model first.
///
/// # Errors
/// A model that is there already; what writing says.
pub fn write_trio(folder: &Path, state: &State, settings: &TrainConfig) -> Result<Vec<PathBuf>, Error> {
    create_folder(folder)?;
    let step = state.progress.step;
    let mut written = vec![folder.join(format!("model{step:06}.pt"))];
    if written[0].exists() {
        return Err(ConfigError(format!("{} exists: choose another folder or remove it", written[0].display())).into());
    }
    for (rate, ema) in &state.ema {
        let path = folder.join(format!("ema_{rate}_{step:06}.pt"));
        write_model(&path, ema)?;
        written.push(path);
    }
    let path = folder.join(format!("opt{step:06}.pt"));
    let specs = state.parameters.layout().specs();
    let shapes: Vec<_> = specs.iter().map(|spec| spec.shape.clone()).collect();
    let steps = vec![state.progress.updates.unwrap_or(step); specs.len()];
    let [beta1, beta2] = settings.adam_betas;
    let entries = OptimizerEntries {
        shapes: &shapes,
        steps: &steps,
        lr: settings.lr,
        betas: (beta1, beta2),
        eps: settings.adam_eps,
        weight_decay: settings.weight_decay,
    };
    let [first, second] = &state.moments;
    write_atomic(&path, |w| {
        torch::write_optimizer(w, &entries, |i, moment| match moment {
            Moment::First => first.get(i),
            Moment::Second => second.get(i),
        })
    })?;
    written.push(path);
    // Last, as nothing is written beside a model that is there.
    write_model(&written[0], &state.parameters)?;
    Ok(written)
}
