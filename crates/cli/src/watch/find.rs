//! Which runs there are.

use std::path::{Path, PathBuf};

/// How deep below a folder runs are looked for, and how many are shown at most.
const DEPTH: usize = 3;
pub(super) const MOST: usize = 200;

/// The run directories among some places and below them, in order of their names.
pub(super) fn runs(places: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in places {
        look(place, DEPTH, &mut found);
    }
    found.sort();
    found.dedup();
    found.truncate(MOST);
    found
}

fn look(place: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if place.join("config.toml").is_file() {
        found.push(place.to_path_buf());
        return;
    }
    if depth == 0 || found.len() >= MOST {
        return;
    }
    // A link that leads out of the folder, or round in it, is not followed.
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        look(&entry.path(), depth - 1, found);
    }
}
