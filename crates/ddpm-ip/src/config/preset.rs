//! Recipes that come with the program.

use super::{Config, ConfigError};

/// A named configuration.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it trains, in a line.
    pub about: &'static str,
    /// FIDs of the paper (arXiv 2301.11706, tables 3 and 6) with and without input perturbation, where it has this recipe.
    pub published: Option<&'static str>,
    toml: &'static str,
}

/// All presets; the first is the default.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "digits",
        about: "the embedded handwritten digits, 8x8, in under two minutes",
        published: None,
        toml: include_str!("../../presets/digits.toml"),
    },
    Preset {
        name: "fashion-mnist",
        about: "Fashion-MNIST padded to 32x32, forty minutes on two CPU cores",
        published: None,
        toml: include_str!("../../presets/fashion-mnist.toml"),
    },
    Preset {
        name: "emoji",
        about: "colour emoji of `prepare emoji`, 32x32, an hour at most",
        published: None,
        toml: include_str!("../../presets/emoji.toml"),
    },
    Preset {
        name: "cifar10",
        about: "CIFAR-10, 32x32 (ADM-IP, gamma 0.15)",
        published: Some("2.76 against 2.99 at 1000 steps, 2.70 against 3.37 at 100"),
        toml: include_str!("../../presets/cifar10.toml"),
    },
    Preset {
        name: "imagenet32",
        about: "ImageNet, 32x32 (ADM-IP, gamma 0.1)",
        published: Some("2.87 against 3.60 at 1000 steps, 3.24 against 4.26 at 100"),
        toml: include_str!("../../presets/imagenet32.toml"),
    },
    Preset {
        name: "lsun-tower64",
        about: "LSUN tower, 64x64 (ADM-IP, gamma 0.1)",
        published: Some("2.68 against 3.39 at 1000 steps, 2.79 against 3.50 at 100"),
        toml: include_str!("../../presets/lsun-tower64.toml"),
    },
    Preset {
        name: "celeba64",
        about: "CelebA, 64x64 (ADM-IP, gamma 0.1)",
        published: Some("1.31 against 1.60 at 1000 steps, 2.21 against 3.02 at 100"),
        toml: include_str!("../../presets/celeba64.toml"),
    },
    Preset {
        name: "ffhq128",
        about: "FFHQ, 128x128 (ADM-IP, gamma 0.1)",
        published: Some("2.98 against 9.65 at 1000 steps, 5.94 against 14.52 at 100"),
        toml: include_str!("../../presets/ffhq128.toml"),
    },
    Preset {
        name: "cifar10-ddim",
        about: "CIFAR-10 with the network of DDIM (DDIM-IP, gamma 0.1)",
        published: Some("at eta 0, 10.54 against 14.21 at 10 steps, 4.52 against 4.66 at 100"),
        toml: include_str!("../../presets/cifar10-ddim.toml"),
    },
];

impl Preset {
    /// The preset of that name.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn find(name: &str) -> Result<&'static Self, ConfigError> {
        PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
            let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
            ConfigError(format!("there is no preset {name:?}: choose one of {}", names.join(", ")))
        })
    }

    /// Its table: the recipe's keys; the rest are defaults.
    pub fn table(&self) -> toml::Table {
        self.toml.parse().expect("the presets are tested to parse")
    }

    /// Its configuration.
    pub fn config(&self) -> Config {
        Config::from_table(self.table()).expect("the presets are tested to be valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for preset in PRESETS {
            let config = preset.config();
            config.validate().unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            assert!(
                config.train.last_step().is_some() || config.train.time_limit().unwrap().is_some(),
                "{}",
                preset.name
            );
        }
        assert!(Preset::find("digit").is_err());
    }
}
