//! Files that are either whole or not there.

use crate::Error;
use crate::config::ConfigError;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
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
    let folder = folder_of(path);
    let io = |e| Error::io("write", path)(e);
    let file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder).map_err(|e| io(without_path(e)))?;
    let mut writer = std::io::BufWriter::new(file.as_file());
    write(&mut writer).and_then(|()| writer.flush()).map_err(io)?;
    drop(writer);
    file.as_file().sync_all().map_err(io)?;
    allow_reading(file.as_file()).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// What the system said when a temporary file was made, without the name of that file.
fn without_path(error: std::io::Error) -> std::io::Error {
    let code = error.get_ref().and_then(|inner| inner.source()?.downcast_ref::<std::io::Error>()?.raw_os_error());
    code.map_or(error, std::io::Error::from_raw_os_error)
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

/// The folder that a path lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Creates a folder with those above it that are missing, and makes their names durable.
///
/// # Errors
/// What the system says, with the path.
pub fn create_folder(path: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| *path != Path::new("") && !path.exists()).collect();
    std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    for made in missing {
        sync_folder(folder_of(made));
    }
    Ok(())
}

/// Refuses to write where a file is that is no `what`: one that does not begin with `head`.
///
/// # Errors
/// Such a file, named.
pub(crate) fn check_kind(path: &Path, what: &str, head: &[u8]) -> Result<(), ConfigError> {
    let Ok(file) = std::fs::File::open(path) else { return Ok(()) };
    let mut begins = Vec::new();
    let read = file.take(head.len() as u64).read_to_end(&mut begins);
    if read.is_ok() && (begins.is_empty() || begins == head) {
        return Ok(());
    }
    Err(ConfigError(format!("{} exists and is no {what}: choose another name, or remove it", path.display())))
}

/// How a PNG begins.
pub(crate) const PNG: &[u8] = b"\x89PNG";

/// What tells a file or folder from others, and from itself at another time: path, length and time of change, of a folder
/// those of all files in it and below.
pub(crate) fn stamp(path: &Path) -> Result<serde_json::Value, Error> {
    let of = |path: &Path| -> Result<_, Error> {
        let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        Ok((meta.len(), modified.map(|d| d.as_nanos())))
    };
    if !path.is_dir() {
        let (bytes, modified) = of(path)?;
        return Ok(serde_json::json!([spelled(path), bytes, modified.map(|d| d.to_string())]));
    }
    let mut hasher = std::hash::DefaultHasher::new();
    for file in ddpm_formats::folder::list(path, |_| true)? {
        (spelled(&file), of(&file)?).hash(&mut hasher);
    }
    Ok(serde_json::json!([spelled(path), hasher.finish()]))
}

/// What a path is whose file is not there.
pub(crate) fn missing(path: &Path) -> String {
    match path.read_link() {
        Ok(target) => format!("is a link to {}, which is not there", target.display()),
        Err(_) => "there is no such file or folder".into(),
    }
}

/// Refuses what cannot be a folder to write into, a file or a name of one; `instead` says what to do.
///
/// # Errors
/// As said.
pub(crate) fn check_folder(flag: &str, path: &Path, instead: &str) -> Result<(), ConfigError> {
    const FILES: [&str; 14] =
        ["png", "jpg", "jpeg", "gif", "webp", "npy", "npz", "zip", "json", "csv", "txt", "pt", "pth", "safetensors"];
    let refuse = |what: String| Err(ConfigError(format!("{flag} {} {what}: {instead}", path.display())));
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return refuse("is a file, not a folder".into());
    }
    if path.is_symlink() {
        return refuse(missing(path));
    }
    if let Some(above) = path.ancestors().find(|above| above.is_file()) {
        return refuse(format!("lies below {}, which is a file", above.display()));
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    match ending.filter(|ending| FILES.contains(&ending.as_str())) {
        Some(ending) => refuse(format!("would be a folder, but is named like a .{ending} file")),
        None => Ok(()),
    }
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A path as text in which no two are the same.
pub(crate) fn spelled(path: &Path) -> String {
    path.as_os_str().as_encoded_bytes().escape_ascii().to_string()
}

/// Makes a rename in a folder durable where the system offers that; there is nothing to do where it does not.
pub fn sync_folder(folder: &Path) {
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Adds a line of JSON to a file, durably.
pub(crate) fn append(path: &Path, line: &impl serde::Serialize) -> Result<(), Error> {
    use std::io::{Read, Seek, SeekFrom};
    let line = serde_json::to_string(line).map_err(|e| Error::file(path, e.to_string()))?;
    let options = std::fs::OpenOptions::new().create(true).read(true).append(true).clone();
    let mut file = options.open(path).map_err(Error::io("write", path))?;
    // A line that an earlier call left unfinished does not swallow this one.
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(-1)).is_ok() {
        file.read_exact(&mut last).map_err(Error::io("read", path))?;
    }
    let end = if last == [b'\n'] { "" } else { "\n" };
    writeln!(file, "{end}{line}").and_then(|()| file.sync_data()).map_err(Error::io("write", path))?;
    sync_folder(folder_of(path));
    Ok(())
}
