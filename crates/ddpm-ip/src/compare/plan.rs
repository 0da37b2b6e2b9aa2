//! What is compared: a TOML file.

use crate::Error;
use crate::config::{Config, ConfigError, Layers, Preset, SamplerKind};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::Table;

/// A comparison, as its file says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The recipe that all variants begin from.
    pub preset: Option<String>,
    /// A file of settings on top of it, relative to the plan.
    pub config: Option<PathBuf>,
    /// Settings on top of both, by section.
    #[serde(default)]
    pub settings: Table,
    /// Seeds that every variant is trained with.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// Real images that nothing was trained on: their distance stands beside those of samples.
    pub real: Option<String>,
    /// What is compared with each other.
    pub variant: Vec<Variant>,
    /// How each is sampled.
    #[serde(default)]
    pub sample: Vec<Sampling>,
    /// How the exposure bias of each variant's first seed is measured.
    pub bias: Option<Sampling>,
}

/// One of the things that are compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// Settings in which it differs.
    #[serde(default)]
    pub settings: Table,
    /// Seeds of its own.
    pub seeds: Option<Vec<u64>>,
    /// A run that is there already, relative to the plan; nothing is trained then.
    pub run: Option<PathBuf>,
}

/// A way to draw samples.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// The sampler.
    pub sampler: SamplerKind,
    /// Numbers of steps T′.
    #[serde(deserialize_with = "one_or_more")]
    pub steps: Vec<usize>,
    /// Images.
    #[serde(default = "thousand")]
    pub images: usize,
    /// Further settings.
    #[serde(default)]
    pub settings: Table,
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

fn thousand() -> usize {
    1000
}

/// What names of files are made of.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// A number or a list of them.
fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Steps {
        One(usize),
        More(Vec<usize>),
    }
    Ok(match Steps::deserialize(deserializer)? {
        Steps::One(steps) => vec![steps],
        Steps::More(steps) => steps,
    })
}

/// A network of a comparison: a variant with a seed.
#[derive(Clone, Debug)]
pub struct Member {
    /// The variant's name.
    pub variant: String,
    /// The seed of its training; of a run that is there it is not known before its settings are read.
    pub seed: u64,
    /// Its run directory.
    pub run: PathBuf,
    /// Its settings, if it is trained here.
    pub config: Option<Config>,
}

/// Names of a plan's keys, for the nearest of them.
const KEYS: [&str; 14] = [
    "preset", "config", "settings", "seeds", "real", "variant", "sample", "bias", "name", "run", "sampler", "steps",
    "images", "out",
];

impl Plan {
    /// Compares runs that are there, each by DDIM in 10, 20 and 50 steps and by ancestral sampling in 50.
    ///
    /// # Errors
    /// Runs that are named twice.
    pub fn of_runs(runs: &[PathBuf]) -> Result<Self, Error> {
        let name =
            |run: &PathBuf| run.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
        let names: Vec<String> = runs.iter().map(name).collect();
        let variant = |(at, run): (usize, &PathBuf)| {
            // Of runs of one name the place tells which it is.
            let is_alone = names.iter().filter(|other| **other == names[at]).count() == 1;
            let text = if is_alone { names[at].clone() } else { format!("{}-{}", names[at], at + 1) };
            let name = text.replace(|c: char| !is_of_name(c), "_").trim_start_matches('.').to_string();
            Variant { name, settings: Table::new(), seeds: None, run: Some(run.clone()) }
        };
        let sampling = |sampler, steps: &[usize]| Sampling {
            sampler,
            steps: steps.to_vec(),
            images: thousand(),
            settings: Table::new(),
        };
        let plan = Self {
            preset: None,
            config: None,
            settings: Table::new(),
            seeds: one_seed(),
            real: None,
            variant: runs.iter().enumerate().map(variant).collect(),
            sample: vec![sampling(SamplerKind::Ddim, &[10, 20, 50]), sampling(SamplerKind::Ddpm, &[50])],
            bias: None,
        };
        plan.check()?;
        Ok(plan)
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// A file that is no plan; the message says where, and names the nearest key.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let plan: Self = toml::from_str(&text).map_err(|e| {
            let unknown = e.message().strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
            let nearest = unknown.and_then(|(name, _)| {
                let likeness = |key: &&&str| strsim::normalized_damerau_levenshtein(name, key);
                KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|key| likeness(key) > 0.5)
            });
            let advice = nearest.map_or(String::new(), |key| format!("did you mean `{key}`?"));
            Error::file(path, format!("{e}{advice}"))
        })?;
        plan.check().map_err(|e| Error::file(path, e.to_string()))?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |message: String| Err(ConfigError(message));
        let mut names = BTreeSet::new();
        for variant in &self.variant {
            if variant.name.is_empty() || variant.name.starts_with('.') || !variant.name.chars().all(is_of_name) {
                return refuse(format!("variant {:?}: name it with letters, digits, `-`, `_` and `.`", variant.name));
            }
            if !names.insert(&variant.name) {
                return refuse(format!("two variants are called {:?}: give each a name of its own", variant.name));
            }
            if variant.run.is_some() && (variant.seeds.is_some() || !variant.settings.is_empty()) {
                return refuse(format!(
                    "variant {:?} is a run that is there: it takes no seeds and settings",
                    variant.name
                ));
            }
            let seeds = variant.seeds.as_ref().unwrap_or(&self.seeds);
            if seeds.iter().collect::<BTreeSet<_>>().len() != seeds.len() || seeds.is_empty() {
                return refuse(format!("variant {:?}: give it one seed or more, each once", variant.name));
            }
        }
        if self.variant.is_empty() {
            return refuse("no [[variant]] is there to compare".into());
        }
        if self.sample.iter().chain(&self.bias).any(|sampling| sampling.steps.is_empty() || sampling.images < 2) {
            return refuse("steps and at least 2 images are needed wherever something is drawn".into());
        }
        for (section, keys) in self.sample.iter().chain(&self.bias).flat_map(|sampling| &sampling.settings) {
            let own = ["sampler", "timestep_respacing", "num_samples", "seed"];
            let keys = keys.as_table().filter(|_| section == "sample");
            if keys.is_none_or(|keys| own.iter().any(|key| keys.contains_key(*key))) {
                return refuse(format!(
                    "[[sample]] and [bias] take settings of the section sample alone, without {}",
                    own.join(", ")
                ));
            }
        }
        if self.bias.as_ref().is_some_and(|bias| bias.steps.len() != 1) {
            return refuse("[bias] takes one number of steps".into());
        }
        Ok(())
    }

    /// The networks, the first seed of each variant before the second; runs lie in `out`, other paths are relative to `base`.
    ///
    /// # Errors
    /// Settings that cannot be used, with the variant's name.
    pub fn members(&self, base: &Path, out: &Path) -> Result<Vec<Member>, Error> {
        let seeds = |variant: &Variant| match variant.run {
            Some(_) => vec![0],
            None => variant.seeds.clone().unwrap_or_else(|| self.seeds.clone()),
        };
        let most = self.variant.iter().map(|variant| seeds(variant).len()).max().unwrap_or(0);
        let mut members = Vec::new();
        for at in 0..most {
            for variant in &self.variant {
                let Some(&seed) = seeds(variant).get(at) else { continue };
                let named = |e: ConfigError| ConfigError(format!("variant {}: {e}", variant.name));
                let (run, config) = if let Some(run) = &variant.run {
                    (base.join(run), None)
                } else {
                    let config = self.settings_of(base, &variant.settings, seed).map_err(named)?;
                    config.validate().map_err(named)?;
                    (out.join("runs").join(format!("{}-{seed}", variant.name)), Some(config))
                };
                members.push(Member { variant: variant.name.clone(), seed, run, config });
            }
        }
        Ok(members)
    }

    fn settings_of(&self, base: &Path, own: &Table, seed: u64) -> Result<Config, ConfigError> {
        let mut layers = Layers::default();
        if let Some(preset) = &self.preset {
            layers.add(Preset::find(preset)?.table())?;
        }
        if let Some(file) = &self.config {
            layers.add_file(&base.join(file))?;
        }
        layers.add(self.settings.clone())?;
        layers.add(own.clone())?;
        layers.set([("train.seed", seed.to_string().as_str())])?;
        layers.resolve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        std::fs::write(&path, text).unwrap();
        Plan::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn seeds_come_one_after_the_other_and_variants_may_have_their_own() {
        let plan = plan(
            "preset = 'digits'\nseeds = [3, 4]\n[settings.train]\nsteps = 5\n[[variant]]\nname = 'base'\n\
             settings.perturbation.gamma = 0\n[[variant]]\nname = 'ip'\nseeds = [7]\n[[variant]]\nname = 'old'\nrun = 'x'\n\
             [[sample]]\nsampler = 'ddim'\nsteps = 20\n[[sample]]\nsampler = 'ddpm'\nsteps = [5, 10]\nimages = 50\n",
        )
        .unwrap();
        let members = plan.members(Path::new("/base"), Path::new("/out")).unwrap();
        let runs: Vec<String> = members.iter().map(|m| m.run.display().to_string()).collect();
        assert_eq!(runs, ["/out/runs/base-3", "/out/runs/ip-7", "/base/x", "/out/runs/base-4"]);
        let config = members[0].config.as_ref().unwrap();
        assert_eq!((config.train.seed, config.train.steps, config.perturbation.gamma), (3, 5, 0.0));
        assert_eq!(members[1].config.as_ref().unwrap().perturbation.gamma, 0.1);
        assert!(members[2].config.is_none());
        assert_eq!((plan.sample[0].steps.as_slice(), plan.sample[0].images), (&[20][..], 1000));
    }

    #[test]
    fn mistakes_are_named() {
        let variant = "[[variant]]\nname = 'a'\n";
        for (text, parts) in [
            ("sedes = [1]\n[[variant]]\nname = 'a'\n".to_string(), &["sedes", "line 1", "did you mean `seeds`?"][..]),
            (format!("{variant}{variant}"), &["two variants are called \"a\""]),
            ("[[variant]]\nname = '../a'\n".into(), &["letters, digits"]),
            (format!("seeds = [1, 1]\n{variant}"), &["each once"]),
            ("variant = []\n".into(), &["no [[variant]]"]),
            (format!("{variant}[[sample]]\nsampler = 'ddpm'\nsteps = []\n"), &["steps and at least 2 images"]),
            (format!("{variant}[[sample]]\nsampler = 'dpm'\nsteps = 5\n"), &["unknown variant `dpm`"]),
            (
                format!("{variant}[bias]\nsampler = 'ddim'\nsteps = 5\nsettings.sample.seed = 1\n"),
                &["without sampler", "seed"],
            ),
            (
                format!("{variant}[bias]\nsampler = 'ddim'\nsteps = 5\nsettings.model.dropout = 1\n"),
                &["section sample alone"],
            ),
        ] {
            let error = plan(&text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let plan = plan("[[variant]]\nname = 'a'\nsettings.train.stepz = 1\n").unwrap();
        let error = plan.members(Path::new(""), Path::new("")).unwrap_err().to_string();
        assert!(error.contains("variant a") && error.contains("train.steps"), "{error}");
    }
}
