//! Files that are either whole or not there.

use crate::Error;
use std::io::Write;
use std::path::Path;

/// Writes a file under a temporary name in its folder, syncs it and renames it. After an error nothing is left behind
/// and an older file of that name is untouched.
///
/// # Errors
/// What the system says, with the path.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut std::io::BufWriter<&std::fs::File>) -> std::io::Result<()>,
) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let io = |e| Error::io("write", path)(e);
    let file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder).map_err(io)?;
    let mut writer = std::io::BufWriter::new(file.as_file());
    write(&mut writer).and_then(|()| writer.flush()).map_err(io)?;
    drop(writer);
    file.as_file().sync_all().map_err(io)?;
    allow_reading(file.as_file()).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// Temporary files are private; a finished one is readable like any other.
#[cfg(unix)]
fn allow_reading(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn allow_reading(_: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}

/// Makes a rename in a folder durable where the system offers that; there is nothing to do where it does not.
pub(crate) fn sync_folder(folder: &Path) {
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}
