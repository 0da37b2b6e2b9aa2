//! What training finds out about the classes of its images.

use super::ConfigError;
use serde::{Deserialize, Serialize};

/// The classes of the training images, as training finds and keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassesConfig {
    /// Their names, class 0 first, where file names or folders tell them.
    pub names: Vec<String>,
    /// The numbers of those of which there were no images, so that a network has not learned them.
    pub untrained: Vec<u32>,
}

impl ClassesConfig {
    /// Those of `count` classes that were trained: all, if it is not known.
    pub fn trained(&self, count: usize) -> Vec<u32> {
        let all = 0..count as u32;
        let trained: Vec<u32> = all.clone().filter(|class| !self.untrained.contains(class)).collect();
        if trained.is_empty() { all.collect() } else { trained }
    }

    /// The number of the class that a word stands for: its name, or else its number.
    ///
    /// # Errors
    /// A word that is neither.
    pub fn find(&self, word: &str) -> Result<u32, ConfigError> {
        let by_name = self.names.iter().position(|name| name == word).map(|place| place as u32);
        by_name.or_else(|| word.parse().ok()).ok_or_else(|| {
            let known = if self.names.is_empty() {
                "the network's classes have no names: use their numbers, as in 0,1,2".to_string()
            } else {
                format!("there are {}", listed(&self.names))
            };
            ConfigError(format!("there is no class {word:?}: {known}"))
        })
    }

    /// Numbers and names, for people; nothing where there are no names.
    pub fn describe(&self) -> Option<String> {
        let numbered = self.names.iter().enumerate().map(|(i, name)| format!("{i} {name}"));
        (!self.names.is_empty()).then(|| listed(numbered))
    }
}

/// A list for people, not too long.
pub(crate) fn listed(items: impl IntoIterator<Item: ToString>) -> String {
    const SHOWN: usize = 20;
    let mut items = items.into_iter().map(|item| item.to_string());
    let shown: Vec<String> = items.by_ref().take(SHOWN).collect();
    let more = if items.next().is_some() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}
