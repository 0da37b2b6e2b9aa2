//! Flags for the keys of the configuration.

use super::{given, idle, reference, truth};
use clap::{Arg, ArgAction, ArgMatches};
use ddpm_ip::config::{Config, ConfigError, KEYS, Key, Layers};
use std::path::PathBuf;
use toml::Value;

/// The sections, or single keys of them, that a command has flags for. Where two have a flag of the same name, the later
/// one's is meant.
#[derive(Clone, Copy)]
pub(crate) struct Settings(pub(crate) &'static [&'static str]);

impl Settings {
    /// Their keys.
    pub(crate) fn keys(self) -> Vec<&'static Key> {
        let rank = |k: &Key| self.0.iter().position(|s| *s == k.section || *s == k.path());
        let shadowed = |k: &Key| KEYS.iter().any(|other| other.flag() == k.flag() && rank(other) > rank(k));
        KEYS.iter().filter(|k| rank(k).is_some() && !shadowed(k)).collect()
    }

    /// A flag for every key, `--config` and `--set`.
    pub(crate) fn args(self) -> Vec<Arg> {
        let defaults: toml::Table = Config::default().to_toml().parse().unwrap_or_default();
        let mut args = vec![
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .action(ArgAction::Append)
                .help("TOML file with settings, such as a run's config.toml; may be repeated"),
            Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .help("any setting by its key, as in sample.seed=1; may be repeated"),
        ];
        args.extend(self.keys().into_iter().map(|key| arg(key, &defaults[key.section][key.name])));
        args.extend(reference::args(self.0));
        args
    }

    /// Lays files, `--set` and flags, in this order, on `base`. Also remarks for the user.
    pub(crate) fn resolve(self, base: Layers, matches: &ArgMatches) -> Result<(Config, Vec<String>), ConfigError> {
        let mut layers = base;
        for file in matches.get_many::<PathBuf>("config").into_iter().flatten() {
            layers.add_file(file)?;
        }
        let sets = matches.get_many::<String>("set").into_iter().flatten();
        let sets: Vec<(&str, &str)> = sets
            .map(|s| s.split_once('=').ok_or_else(|| ConfigError(format!("--set {s}: write it as --set KEY=VALUE"))))
            .collect::<Result<_, _>>()?;
        let keys = self.keys().into_iter().map(Key::path);
        let flags: Vec<(String, String)> =
            keys.filter_map(|key| Some((key.clone(), written(matches, &key)?))).collect();
        let flags = flags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        // One layer, in which flags come last.
        layers.set(sets.into_iter().chain(flags))?;
        let mut config = layers.resolve()?;
        let mut notices = reference::apply(self.0, matches, &mut config)?;
        notices.extend(idle::remarks(&self.keys(), matches, &config));
        Ok((config, notices))
    }
}

/// What a flag says; `--correct`, as often as it is written.
fn written(matches: &ArgMatches, key: &str) -> Option<String> {
    given(matches, key)?;
    let all: Vec<&str> = matches.get_many::<String>(key)?.map(String::as_str).collect();
    Some(all.join("; "))
}

fn arg(key: &Key, default: &Value) -> Arg {
    let text = |value: &'static str| {
        Arg::new(key.path()).long(key.flag()).value_name(value).allow_negative_numbers(true).help(key.help)
    };
    let arg = match default {
        Value::Boolean(_) => truth(key.path(), key.flag(), key.help),
        Value::String(_) if key.name == "correct" => text("NAME:VALUES").action(ArgAction::Append),
        Value::String(_) => text("TEXT"),
        Value::Array(_) if key.name == "posthoc_ema" => text("LIST").num_args(0..=1).default_missing_value("0.05,0.1"),
        Value::Array(_) => text("LIST"),
        _ => text("N"),
    };
    let aliases: &[&str] = match key.name {
        "gamma" => &["input-perturbation", "input-pertub", "input-perturb"],
        "image_size" => &["large-size"],
        "steps" => &["iterations"],
        _ => &[],
    };
    arg.help_heading(heading(key.section)).visible_aliases(aliases.iter().copied())
}

fn heading(section: &str) -> &'static str {
    match section {
        "model" => "Network",
        "classifier" => "Classifier",
        "diffusion" => "Diffusion",
        "perturbation" => "Input perturbation",
        "data" => "Data",
        "train" => "Training",
        "evaluation" => "Evaluation during training",
        _ => "Sampling",
    }
}
