//! Settings on top of settings: preset < file < `--set` < flag.

use super::{Config, ConfigError, KEYS, Key};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::{Table, Value};

/// A file of every setting has some thousand bytes; `/dev/zero` does not end.
const MOST_BYTES: u64 = 1 << 20;

/// Steps of the grids where nothing says how to sample.
const FAST_GRID_STEPS: usize = 20;

/// Settings collected so far; later ones win.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    table: Table,
}

impl Layers {
    /// The configuration: what was set, and defaults for the rest. Its values still want [`Config::validate`].
    ///
    /// # Errors
    /// None that [`Self::set`] and [`Self::add`] would have let through.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let mut config = Config::from_table(self.table.clone())?;
        // A grid of a thousand steps that nobody asked for would hold up the training for minutes.
        let chosen = [("sample", "sampler"), ("sample", "timestep_respacing"), ("train", "grid_steps")];
        if !chosen.iter().any(|(section, key)| self.says(section, key)) {
            config.train.grid_steps = FAST_GRID_STEPS;
        }
        config.model.auto_precision = !self.says("model", "precision");
        config.train.auto_keep = !self.says("train", "keep_checkpoints");
        config.classifier.auto_precision = !self.says("classifier", "precision");
        Ok(config)
    }

    /// Whether any layer sets a key.
    fn says(&self, section: &str, key: &str) -> bool {
        self.table.get(section).and_then(Value::as_table).is_some_and(|keys| keys.contains_key(key))
    }

    /// Lays a table of sections on top.
    ///
    /// # Errors
    /// Unknown sections or keys, with the nearest known one; values of the wrong type.
    pub fn add(&mut self, layer: Table) -> Result<(), ConfigError> {
        let limits = |t: &Table| ["steps", "duration"].map(|k| t.get("train").is_some_and(|t| t.get(k).is_some()));
        // A layer that says when training ends replaces what lower layers said.
        let ends = limits(&layer);
        for (ends, other) in [(ends[0], "duration"), (ends[1], "steps")] {
            if let Some(train) = self.table.get_mut("train").and_then(Value::as_table_mut).filter(|_| ends) {
                train.remove(other);
            }
        }
        for (section, keys) in layer {
            let Value::Table(keys) = keys else {
                let advice = nearest(&section).map_or("section.key".into(), |key| format!("`{key}`"));
                return Err(ConfigError(format!("`{section}` stands outside a section: write it as {advice}")));
            };
            for (name, value) in keys {
                self.insert(find(&format!("{section}.{name}"))?, value)?;
            }
        }
        Ok(())
    }

    /// Lays a TOML file on top.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML, and as [`Self::add`]; each message names the file.
    pub fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let named = |message: String| ConfigError(format!("{}: {}", path.display(), message.trim_end()));
        if path.is_dir() {
            return Err(named("is a folder: name a file, such as the config.toml of a run".into()));
        }
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
            .map_err(|e| named(format!("cannot read this configuration: {e}")))?;
        if text.len() as u64 > MOST_BYTES {
            return Err(named(format!("is larger than {MOST_BYTES} bytes: name a configuration file")));
        }
        let layer: Table = text.parse().map_err(|e: toml::de::Error| named(e.to_string()))?;
        self.add(layer).map_err(|e| named(e.0))
    }

    /// Sets keys as a command line spells them: `section.key`, or the key alone where only one section has it. All of
    /// them make one layer.
    ///
    /// # Errors
    /// Unknown or ambiguous keys, values that do not read as the key's type.
    pub fn set<'a>(&mut self, assignments: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), ConfigError> {
        let mut layer = Table::new();
        for (name, text) in assignments {
            let key = find(name)?;
            let value = parse(key, text)?;
            let section = layer.entry(key.section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(key.name.to_string(), value);
            }
        }
        self.add(layer)
    }

    fn insert(&mut self, key: &Key, value: Value) -> Result<(), ConfigError> {
        if key.name == "precision" && value.as_str() == Some("auto") {
            // As if no layer had chosen.
            if let Some(Value::Table(section)) = self.table.get_mut(key.section) {
                section.remove(key.name);
            }
            return Ok(());
        }
        let shown = value.to_string();
        let single = |value| {
            let section: Table = [(key.name.to_string(), value)].into_iter().collect();
            [(key.section.to_string(), Value::Table(section))].into_iter().collect::<Table>()
        };
        Config::from_table(single(value.clone())).map_err(|e| {
            let why = in_words(key, e.0.lines().next().unwrap_or_default());
            ConfigError(format!("{} = {shown}: {why}", key.path()))
        })?;
        let section = self.table.entry(key.section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.name.to_string(), value);
        }
        Ok(())
    }
}

/// What reading a value says, without names of types; `auto` is among the precisions.
fn in_words(key: &Key, why: &str) -> String {
    let mut why = why.to_string();
    for (name, words) in [
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected an array of length 2", "expected 2 numbers"),
        ("invalid length", "wrong number of values"),
    ] {
        why = why.replace(name, words);
    }
    if key.name == "precision" && why.contains("`f16`") {
        why.push_str(", `auto`");
    }
    why
}

/// The key of that name: `section.key`, the key alone, or its flag's name. The classifier's keys, many of which are the
/// network's too, want one of the longer names.
fn find(name: &str) -> Result<&'static Key, ConfigError> {
    let name = name.replace('-', "_");
    let exact = KEYS.iter().find(|k| k.path() == name);
    let alone = |k: &Key| k.name == name && k.section != "classifier";
    let mut by_name = KEYS.iter().filter(|k| alone(k) || k.flag().replace('-', "_") == name);
    match (exact, by_name.next(), by_name.next()) {
        (Some(key), ..) | (None, Some(key), None) => Ok(key),
        (None, Some(one), Some(other)) => {
            Err(ConfigError(format!("`{name}` could be {} or {}: say which", one.path(), other.path())))
        }
        (None, None, _) => {
            let advice = nearest(&name).map_or("`--help` lists them".into(), |key| format!("did you mean `{key}`?"));
            Err(ConfigError(format!("there is no setting `{name}`: {advice}")))
        }
    }
}

/// How alike two names are that may be one misspelled.
const ALIKE: f64 = 0.7;

/// The known key most like `name`, if any is. Where several are, the section decides.
fn nearest(name: &str) -> Option<String> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let likeness = |k: &Key| strsim::normalized_damerau_levenshtein(last, k.name);
    let whole = |k: &Key| strsim::normalized_damerau_levenshtein(name, &k.path());
    let best = KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)).then(whole(a).total_cmp(&whole(b))))?;
    (likeness(best) >= ALIKE).then(|| best.path())
}

/// Reads a truth value as the reference's scripts do.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a value as its default's type; lists have commas.
fn parse(key: &Key, text: &str) -> Result<Value, ConfigError> {
    let text = text.trim();
    let defaults: Table =
        Config::default().to_toml().parse().map_err(|e: toml::de::Error| ConfigError(e.to_string()))?;
    let wrong = |expected: &str| ConfigError(format!("{} = {text:?} is not {expected}", key.path()));
    let number = |text: &str| match text.parse::<i64>() {
        Ok(n) => Some(Value::Integer(n)),
        Err(_) => text.parse::<f64>().ok().map(Value::Float),
    };
    match &defaults[key.section][key.name] {
        Value::Boolean(_) => boolean(text).map(Value::Boolean).ok_or_else(|| wrong("true or false")),
        Value::Integer(_) => {
            text.parse().map(Value::Integer).map_err(|_| wrong("a whole number (of 64 bits with sign)"))
        }
        Value::Float(_) => text.parse().map(Value::Float).map_err(|_| wrong("a number")),
        Value::Array(_) => {
            let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
            let entries = inner.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            if key.path() == "classes.names" {
                return Ok(Value::Array(entries.map(|name| Value::String(name.into())).collect()));
            }
            entries
                .map(number)
                .collect::<Option<_>>()
                .map(Value::Array)
                .ok_or_else(|| wrong("a list of numbers such as 16,8"))
        }
        _ => Ok(Value::String(text.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ddpm_math::{Mode, Variance};

    fn message(assignment: (&str, &str)) -> String {
        Layers::default().set([assignment]).unwrap_err().0
    }

    #[test]
    fn a_precision_is_automatic_until_a_layer_chooses_one_and_again_after_auto() {
        let resolved = |layers: &Layers| layers.resolve().unwrap().model;
        let mut layers = Layers::default();
        assert!(resolved(&layers).auto_precision);
        layers.set([("precision", "bf16")]).unwrap();
        assert!(!resolved(&layers).auto_precision);
        layers.add("[model]\nprecision = \"auto\"".parse().unwrap()).unwrap();
        assert!(resolved(&layers).auto_precision);
        layers.set([("precision", "f16"), ("classifier.precision", "auto")]).unwrap();
        assert_eq!((resolved(&layers).auto_precision, resolved(&layers).precision.name()), (false, "f16"));
    }

    #[test]
    fn later_layers_win_and_the_rest_is_default() {
        let mut layers = Layers::default();
        layers.add("[train]\nlr = 0.1\nbatch_size = 8".parse().unwrap()).unwrap();
        layers.set([("lr", "2e-3"), ("perturbation.mode", "equivalent"), ("attention_resolutions", "16,8")]).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.train.lr, config.train.batch_size), (2e-3, 8));
        assert_eq!(config.perturbation.mode, Mode::Equivalent);
        assert_eq!(config.model.attention_resolutions, [16, 8]);
        assert_eq!(config.sample, Config::default().sample);
    }

    #[test]
    fn values_are_read_as_the_references_scripts_read_them() {
        let mut layers = Layers::default();
        layers
            .set([("class_cond", "True"), ("random-flip", "0"), ("channel_mult", "1,2,2"), ("ema_rate", "0.9,0.99")])
            .unwrap();
        layers.set([("variance", "learned-range"), ("diffusion.timestep_respacing", "ddim50")]).unwrap();
        let config = layers.resolve().unwrap();
        assert!(config.model.class_cond && !config.data.random_flip);
        assert_eq!(config.model.channel_mult, [1.0, 2.0, 2.0]);
        assert_eq!(config.train.ema_rate, [0.9, 0.99]);
        assert_eq!(config.diffusion.variance, Variance::LearnedRange);
        assert_eq!(config.diffusion.timestep_respacing.to_string(), "ddim50");
    }

    #[test]
    fn when_training_ends_is_said_by_the_topmost_layer_that_says_it() {
        let mut layers = Layers::default();
        layers.add("[train]\nsteps = 100".parse().unwrap()).unwrap();
        layers.set([("duration", "20m")]).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.train.steps, config.train.duration.as_str()), (0, "20m"));
        layers.set([("steps", "7"), ("duration", "1h")]).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.train.steps, config.train.duration.as_str()), (7, "1h"));
    }

    #[test]
    fn grids_take_few_steps_unless_something_says_how_to_sample() {
        let steps = |assignments: &[(&str, &str)]| {
            let mut layers = Layers::default();
            layers.set(assignments.iter().copied()).unwrap();
            layers.resolve().unwrap().train.grid_steps
        };
        assert_eq!(steps(&[("lr", "1e-3"), ("sample.seed", "1")]), FAST_GRID_STEPS);
        assert_eq!(steps(&[("sampler", "ddpm")]), 0);
        assert_eq!(steps(&[("sample.timestep_respacing", "")]), 0);
        assert_eq!(steps(&[("sampler", "ddim"), ("grid_steps", "7")]), 7);
    }

    #[test]
    fn mistakes_are_named_with_what_to_write_instead() {
        assert_eq!(
            message(("num_chanels", "3")),
            "there is no setting `num_chanels`: did you mean `model.num_channels`?"
        );
        assert_eq!(
            message(("train.gama", "3")),
            "there is no setting `train.gama`: did you mean `perturbation.gamma`?"
        );
        let mut layers = Layers::default();
        layers.set([("channel_mult", "1,2"), ("classifier_channel_mult", "1,3"), ("classifier.depth", "4")]).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!(config.model.channel_mult, [1.0, 2.0]);
        assert_eq!((config.classifier.channel_mult, config.classifier.depth), (vec![1.0, 3.0], 4));
        assert_eq!(
            message(("train.learning_rate", "3")),
            "there is no setting `train.learning_rate`: `--help` lists them"
        );
        assert_eq!(message(("seed", "3")), "`seed` could be train.seed or sample.seed: say which");
        assert_eq!(message(("class_cond", "maybe")), r#"model.class_cond = "maybe" is not true or false"#);
        assert_eq!(
            message(("num_heads", "2.5")),
            r#"model.num_heads = "2.5" is not a whole number (of 64 bits with sign)"#
        );
        assert_eq!(
            message(("attention_resolutions", "a,b")),
            r#"model.attention_resolutions = "a,b" is not a list of numbers such as 16,8"#
        );
        let schedule = message(("noise_schedule", "sigmoid"));
        assert!(
            schedule.starts_with("diffusion.noise_schedule = \"sigmoid\"") && schedule.contains("cosine"),
            "{schedule}"
        );
        assert!(message(("num_heads", "-3")).starts_with("model.num_heads = -3: "));
        assert!(message(("timestep_respacing", "5")).contains("could be diffusion.timestep_respacing or"));
    }

    #[test]
    fn files_are_named_in_their_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        for (text, expected) in [
            ("[model]\nimage_sise = 3", "did you mean `model.image_size`"),
            ("image_size = 3", "write it as `model.image_size`"),
            ("[model]\nimage_size = \"x\"", "model.image_size = \"x\""),
            ("[model\n", "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = Layers::default().add_file(&path).unwrap_err().0;
            assert!(message.contains("mine.toml") && message.contains(expected), "{message}");
        }
        let message = Layers::default().add_file(&folder.path().join("none.toml")).unwrap_err().0;
        assert!(message.contains("none.toml"), "{message}");
    }
}
