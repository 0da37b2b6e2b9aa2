//! The files of a folder and below.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Folders that systems put among people's files: what zip keeps for Macs, and thumbnails of Synology's.
const OF_SYSTEMS: [&str; 2] = ["__MACOSX", "@eaDir"];

/// Whether a path below a folder is one that people do not see: a name begins with a dot, or it is a system's.
pub fn is_hidden(path: &Path) -> bool {
    let hidden = |name: &str| name.starts_with('.') || OF_SYSTEMS.contains(&name);
    path.components().any(|part| hidden(&part.as_os_str().to_string_lossy()))
}

/// The files in a folder and below that are `wanted`: sorted by name, folders in their place. Links are followed, but not
/// back into a folder that is being listed. What is [hidden](is_hidden) is passed over.
///
/// # Errors
/// A folder that cannot be listed.
pub fn list(folder: &Path, wanted: fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    list_below(folder, wanted, &mut Vec::new(), &mut found)?;
    Ok(found)
}

fn list_below(
    folder: &Path,
    wanted: fn(&Path) -> bool,
    above: &mut Vec<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    let real = folder.canonicalize().map_err(Error::io("read", folder))?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    let mut entries = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(Error::io("list", folder))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if is_hidden(Path::new(&entry.file_name())) {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            list_below(&path, wanted, above, found)?;
        } else if wanted(&path) {
            found.push(path);
        }
    }
    above.pop();
    Ok(())
}
