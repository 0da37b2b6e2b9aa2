//! Recipes that come with the program.

use super::{Config, ConfigError};

/// A named configuration.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it trains, in a line.
    pub about: &'static str,
    toml: &'static str,
}

/// All presets; the first is the default.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "digits",
        about: "the embedded handwritten digits, 8x8, in under two minutes",
        toml: include_str!("../../../../presets/digits.toml"),
    },
    Preset {
        name: "fashion-mnist",
        about: "Fashion-MNIST padded to 32x32, forty minutes on two CPU cores",
        toml: include_str!("../../../../presets/fashion-mnist.toml"),
    },
    Preset {
        name: "cifar10",
        about: "the paper's CIFAR-10 recipe (ADM-IP, gamma 0.15), 32x32",
        toml: include_str!("../../../../presets/cifar10.toml"),
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
            ConfigError(format!("there is no preset {name:?}: known are {}", names.join(", ")))
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
