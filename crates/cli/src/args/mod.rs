//! Flags that commands share, and how they become a configuration.

mod idle;
mod reference;
mod settings;
mod unknown;

pub(crate) use settings::Settings;
pub(crate) use unknown::advice;

use crate::sink::LogFormats;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};
use ddpm_ip::config::{Config, ConfigError, KEYS, Key};
use ddpm_ip::data::Labels;
use std::path::PathBuf;

/// `--untrained-timesteps`.
pub(crate) fn untrained() -> Arg {
    switch("untrained-timesteps", "also use timesteps at which the network was not trained")
}

/// That a network is used where it was trained, unless `--untrained-timesteps` says that it need not be.
pub(crate) fn check_timesteps(matches: &ArgMatches, config: &Config) -> Result<(), ConfigError> {
    if matches.get_flag("untrained-timesteps") { Ok(()) } else { config.check_timesteps() }
}

/// Remarks on flags of input perturbation where nothing is trained.
pub(crate) fn training_only(matches: &ArgMatches, config: &Config) -> Vec<String> {
    let changed = config.changes_from(&Config::default());
    let is_written =
        |key: &&Key| given(matches, &key.path()).is_some() && changed.iter().any(|(c, ..)| *c == key.path());
    let keys = KEYS.iter().filter(|key| key.section == "perturbation").filter(is_written);
    keys.map(|key| format!("--{} does nothing here: it is for training", key.flag())).collect()
}

/// A flag without a value.
pub(crate) fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// A flag for a truth value: alone it means true.
fn truth(id: String, flag: String, help: &str) -> Arg {
    let help = help.to_string();
    Arg::new(id).long(flag).value_name("BOOL").num_args(0..=1).default_missing_value("true").help(help)
}

/// A flag with a path.
pub(crate) fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).value_parser(clap::value_parser!(PathBuf)).help(help)
}

/// The network that a command uses.
pub(crate) fn checkpoint() -> Arg {
    let help = "run directory (its newest checkpoint), checkpoint folder, .safetensors or PyTorch file";
    path("checkpoint", "PATH", help).required(true).visible_alias("model-path")
}

/// Where the classes of a folder's images come from.
pub(crate) const LABELS: [(&str, Labels); 3] =
    [("none", Labels::None), ("prefix", Labels::Prefix), ("folder", Labels::Folder)];

/// A value that is chosen by its name.
pub(crate) fn choice<T: Copy + Send + Sync + 'static, const N: usize>(
    choices: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    let value = move |name: String| choices.iter().find(|(choice, _)| *choice == name).map(|(_, value)| *value);
    PossibleValuesParser::new(choices.map(|(name, _)| name))
        .map(move |name| value(name).expect("clap lets only the choices through"))
}

/// A flag whose value is chosen by its name.
pub(crate) fn choice_arg<T: Copy + Send + Sync + 'static, const N: usize>(
    name: &'static str,
    choices: [(&'static str, T); N],
    help: &'static str,
) -> Arg {
    Arg::new(name).long(name).value_name("CHOICE").value_parser(choice(choices)).help(help)
}

/// A flag with a number of something, in bounds.
pub(crate) fn number(name: &'static str, bounds: std::ops::RangeInclusive<u64>, help: &'static str) -> Arg {
    let parser = RangedU64ValueParser::<usize>::new().range(bounds);
    Arg::new(name).long(name).value_name("N").value_parser(parser).help(help)
}

/// The value of a flag that was written, not defaulted.
pub(crate) fn given<'a>(matches: &'a ArgMatches, id: &str) -> Option<&'a str> {
    let written = matches.value_source(id) == Some(ValueSource::CommandLine);
    written.then(|| matches.get_one::<String>(id).map(String::as_str)).flatten()
}

/// Where features and weights are kept: `DDPM_IP_CACHE`, or ddpm-ip in the user's folder for such.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    folder("DDPM_IP_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|dir| dir.join("ddpm-ip")))
        .or_else(|| folder("HOME").map(|dir| dir.join(".cache/ddpm-ip")))
}

/// The folder that the reference's scripts write to, `OPENAI_LOGDIR`.
pub(crate) fn log_dir() -> Option<PathBuf> {
    std::env::var_os("OPENAI_LOGDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// How training logs: as the reference's `OPENAI_LOG_FORMAT` says, if it is set.
pub(crate) fn log_formats() -> Result<LogFormats, ConfigError> {
    std::env::var("OPENAI_LOG_FORMAT").map_or_else(|_| Ok(LogFormats::default()), |text| LogFormats::parse(&text))
}

/// `--device` and `--tune`.
pub(crate) fn device_args() -> [Arg; 2] {
    let device = Arg::new("device")
        .long("device")
        .value_name("DEVICE")
        .default_value("auto")
        .help("where to compute: cpu, cuda (or cuda:1, …), or auto: a GPU if one can be used, else the CPU");
    [device, switch("tune", "on a GPU: time cuDNN's engines once for each size of convolution, and use the fastest")]
}

fn device_name(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("device").map_or("cpu", String::as_str)
}

/// The device asked for, on which something is to run.
pub(crate) fn device(matches: &ArgMatches) -> Result<ddpm_ip::Device, ConfigError> {
    let name = device_name(matches);
    if ddpm_ip::net::Chip::names().any(|chip| chip == name) {
        return Err(ConfigError(format!(
            "--device {name} is a kind of GPU, not a device of this machine: `train --dry-run --device {name}` says what a run \
             would need there; --device cuda uses a GPU of this machine"
        )));
    }
    device_or_chip(matches)
}

/// The device asked for, which may be a kind of GPU that is not there.
pub(crate) fn device_or_chip(matches: &ArgMatches) -> Result<ddpm_ip::Device, ConfigError> {
    let name = device_name(matches);
    let cache = cache_dir();
    let open = |name: &str| ddpm_ip::device(name, cache.as_deref());
    let device = match crate::ranks::own_gpu(name) {
        Some(own) if name == "auto" => open(&own).or_else(|_| open(name))?,
        Some(own) => open(&own)?,
        None => open(name)?,
    };
    if let (ddpm_ip::Device::Cuda(gpu), true) = (device, matches.get_flag("tune")) {
        gpu.tune();
    }
    Ok(device)
}
